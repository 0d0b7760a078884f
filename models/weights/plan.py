"""L6: the plan for loading a file: where each of its arrays belongs in the model, and what the model misses.

The plan is computed once. Loading, the table of mismatches, `head=None` and the search for a similar model read it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isqrt, prod
from typing import Any

import numpy as np

from minigrad import Tensor
from minigrad.ops.checks import sides
from models.model import ImageModel, Size
from models.swin import SwinTransformer, resample_relative_position_bias_table
from models.vit import VisionTransformer, resample_pos_embed
from models.weights.layouts import Layout, Place, Shape, assemble, layout_of


@dataclass(frozen=True)
class Entry:
    """An array of a file, and where it belongs.

    Attributes:
        name: the name in the file.
        place: the parameter of the model, or the third of a qkv parameter.
        unexpected: the model has no parameter of this name, or an earlier entry fills the same place.
        array: the values, resampled if `resized`; the axes are still in the file's order.
        resized: whether the array was resampled to another grid or window size.
    """

    name: str
    place: Place
    unexpected: bool
    array: np.ndarray
    resized: bool


@dataclass(frozen=True)
class Plan:
    """What loading a file into a model would do.

    Attributes:
        layout: the naming scheme of the file.
        head: the prefixes of the head's parameters: of the classifier, and of the pre-logits layer before it.
        entries: the arrays of the file, in its order, without those that the model computes itself.
        missing: the parameters, or the thirds of a qkv parameter, that no entry fills.
    """

    layout: Layout
    head: tuple[str, str]
    entries: tuple[Entry, ...]
    missing: tuple[Place, ...]

    def part(self, head: bool) -> "Plan":
        """The plan for the head alone, or for all but the head."""
        return replace(
            self,
            entries=tuple(entry for entry in self.entries if entry.place.name.startswith(self.head) == head),
            missing=tuple(place for place in self.missing if place.name.startswith(self.head) == head),
        )

    def classes(self) -> int | None:
        """The number of classes of the file's classifier; None: there is no classifier with a bias."""
        bias = f"{self.head[0]}bias"
        return next((entry.array.size for entry in self.entries if entry.place.name == bias), None)

    def resized(self) -> list[str]:
        """The parameters whose arrays were resampled."""
        return [entry.place.name for entry in self.entries if entry.resized]

    def state_dict(self, model: ImageModel) -> dict[str, np.ndarray]:
        """The arrays by the model's names and in its shapes; each must fit."""
        return assemble([(entry.place, entry.array) for entry in self.entries], model)


def make_plan(
    arrays: Mapping[str, np.ndarray], model: ImageModel, resize: bool = False, origin: ImageModel | None = None
) -> Plan:
    """Find the place of each array.

    Args:
        arrays: the arrays of a file, by the names there.
        model: the model to load.
        resize: resample position embeddings and relative position bias tables to the model's size.
        origin: the model that the file was saved from; None: unknown, its grid and windows are taken to be square.
    """
    layout, own = layout_of(arrays, model), model.state_dict()
    entries = []
    for name, found in layout.places(arrays, own).items():
        place, array = found or layout.place(name), arrays[name]
        if place.name not in own and _COMPUTED.search(place.name):
            continue
        if resize and found:
            array = _resample(array, place.name, own[place.name].shape, model, origin)
        entries.append(Entry(name, place, not found, array, resized=array is not arrays[name]))
    head = next(f"{name}." for name, module in model.named_modules() if module is model.head)
    return Plan(layout, (head, "pre_logits."), tuple(entries), tuple(_missing(entries, own)))


# Buffers that models compute themselves, or do without.
_COMPUTED = re.compile(r"(^|\.)(relative_position_index|attn_mask|num_batches_tracked)$")


def _missing(entries: Iterable[Entry], own: Iterable[str]) -> Iterator[Place]:
    """The parameters that no entry fills; of a parameter that some of q, k and v fill, the other thirds."""
    filled = {(entry.place.name, entry.place.part) for entry in entries if not entry.unexpected}
    for name in own:
        in_thirds = any((name, part) in filled for part in range(3))
        for part in range(3) if in_thirds else [None]:
            if (name, part) not in filled:
                yield Place(name, part)


# Position embeddings and bias tables of another size ----------------------------------------------------------------


def _resample(array: np.ndarray, name: str, shape: Shape, model: ImageModel, origin: ImageModel | None) -> np.ndarray:
    """The array resampled for the parameter `name` of this shape, if it holds positions of another grid or window size;
    the same array otherwise. The old size is that of the model `origin`; None: a square."""
    if array.ndim != len(shape) or array.shape[-1] != shape[-1]:
        return array
    if name == "pos_embed" and isinstance(model, VisionTransformer):  # (1, 1 + h·w, D)
        side, grid = isqrt(max(array.shape[1] - 1, 0)), model.patch_embed.grid_size
        old = origin.patch_embed.grid_size if isinstance(origin, VisionTransformer) else (side, side)
        if array.shape[:2] == (1, 1 + prod(old)) and grid != old:  # grids of equal area too: 8 x 8, 4 x 16
            return resample_pos_embed(_to_float(array), old, grid).numpy()
    if name.endswith("relative_position_bias_table"):  # ((2M - 1)², heads)
        side, window = (isqrt(array.shape[0]) + 1) // 2, _window_size(model, name)
        if isinstance(origin, SwinTransformer):
            old = _window_size(origin, name)
        else:
            old = window if array.shape == shape else side
        if prod(2 * length - 1 for length in sides(old)) == array.shape[0] and old != window:
            return resample_relative_position_bias_table(_to_float(array), window, old).numpy()
    return array


def _window_size(model: ImageModel, name: str) -> Size:
    """The window size of the attention module that has the bias table `name`."""
    modules: dict[str, Any] = dict(model.named_modules())
    return modules[name.rpartition(".")[0]].window_size


def _to_float(array: np.ndarray) -> Tensor:
    """At least float32."""
    return Tensor(array.astype(np.promote_types(array.dtype, np.float32)))
