"""L6: the plan for loading a file: the parameter for each array of the file, and the parameters without an array.

The plan is computed once, for loading, the table of mismatches, `head=None` and the search for a similar model.
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
    """An array of a file and its place in the model.

    Attributes:
        name: the name in the file.
        place: the model's parameter, or a part of it such as q, k or v.
        unexpected: the model has no parameter of this name, or an earlier entry has the same place.
        array: the values, resampled if `resized`, not yet transposed.
        resized: whether the array was resampled to another grid or window size.
    """

    name: str
    place: Place
    unexpected: bool
    array: np.ndarray
    resized: bool


@dataclass(frozen=True)
class Plan:
    """How to load a file into a model.

    Attributes:
        layout: the naming scheme of the file.
        head: the name prefixes of the classifiers (`model.heads()`), and last of the pre-logits layer.
        entries: the arrays of the file in the file's order, without buffers that the model computes itself.
        missing: the parameters, or parts of a parameter, without an entry.
    """

    layout: Layout
    head: tuple[str, ...]
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
        """The number of classes of the file's classifier; None: the file has no classifier bias."""
        bias = f"{self.head[0]}bias"
        return next((entry.array.size for entry in self.entries if entry.place.name == bias), None)

    def resized(self) -> list[str]:
        """The names of the resampled parameters."""
        return [entry.place.name for entry in self.entries if entry.resized]

    def state_dict(self, model: ImageModel) -> dict[str, np.ndarray]:
        """The arrays under the names and in the shapes of the model's parameters; every array must fit."""
        return assemble([(entry.place, entry.array) for entry in self.entries], model)


def make_plan(
    arrays: Mapping[str, np.ndarray], model: ImageModel, resize: bool = False, saved_from: ImageModel | None = None
) -> Plan:
    """Match the arrays of a file with the parameters of a model.

    Args:
        arrays: the arrays under the file's names.
        model: the model to load into.
        resize: resample position embeddings and relative position bias tables to the model's grid and window size.
        saved_from: the model that the file was saved from; None: unknown, assume a square grid and square windows.
    """
    layout, own = layout_of(arrays, model), model.state_dict()
    arrays = layout.unstacked(arrays)
    entries = []
    for name, found in layout.places(arrays, own).items():
        place, array = found or layout.place(name), arrays[name]
        if place.name not in own and _IGNORED.search(place.name):
            continue
        if resize and found:
            array = _resample(array, place.name, own[place.name].shape, model, saved_from)
        entries.append(Entry(name, place, not found, array, resized=array is not arrays[name]))
    names = {id(module): f"{name}." for name, module in model.named_modules()}
    head = *(names[id(module)] for module in model.heads()), "pre_logits."
    return Plan(layout, head, tuple(entries), tuple(_missing(entries, own)))


# Ignored if the model has no such array: our models recompute these buffers or do not need them, and the mask token
# replaces masked patches in DINOv2's training only.
_IGNORED = re.compile(
    r"(^|\.)(relative_position_index|relative_coords_table|attn_mask|num_batches_tracked|mask_token)$"
)


def _missing(entries: Iterable[Entry], own: Iterable[str]) -> Iterator[Place]:
    """The parameters without an entry; if only some parts of a parameter have one, the other parts."""
    filled: dict[str, list[Place]] = {}
    for entry in entries:
        filled.setdefault(entry.place.name, []).append(entry.place)
    for name in own:
        places = filled.get(name, [])
        for part in places[0].parts if places else (None,):
            if part not in [place.part for place in places]:
                yield Place(name, part)


# Position embeddings and bias tables of another size ----------------------------------------------------------------


def _resample(
    array: np.ndarray, name: str, shape: Shape, model: ImageModel, saved_from: ImageModel | None
) -> np.ndarray:
    """Resample a position embedding or a bias table of another grid or window size to the parameter `name` of this
    shape; return any other array unchanged. `saved_from` has the old size; None: assume a square."""
    if array.ndim != len(shape) or array.shape[-1] != shape[-1]:
        return array
    if name == "pos_embed" and isinstance(model, VisionTransformer):  # (1, n + h·w, D)
        n, grid = model.num_prefix_positions, model.patch_embed.grid_size
        side = isqrt(max(array.shape[1] - n, 0))
        old = saved_from.patch_embed.grid_size if isinstance(saved_from, VisionTransformer) else (side, side)
        if array.shape[:2] == (1, n + prod(old)) and grid != old:  # a grid of equal length too: 8 x 8 to 4 x 16
            return resample_pos_embed(_to_float(array), old, grid, num_prefix_positions=n).numpy()
    if name.endswith("relative_position_bias_table"):  # ((2M - 1)², heads)
        side, window = (isqrt(array.shape[0]) + 1) // 2, _window_size(model, name)
        if isinstance(saved_from, SwinTransformer):
            old = _window_size(saved_from, name)
        else:
            old = window if array.shape == shape else side
        if prod(2 * length - 1 for length in sides(old)) == array.shape[0] and old != window:
            return resample_relative_position_bias_table(_to_float(array), window, old).numpy()
    return array


def _window_size(model: ImageModel, name: str) -> Size:
    """The window size of the attention module with the bias table `name`."""
    modules: dict[str, Any] = dict(model.named_modules())
    return modules[name.rpartition(".")[0]].window_size


def _to_float(array: np.ndarray) -> Tensor:
    """A float32 Tensor; float64 for float64 and for 32- or 64-bit integers."""
    return Tensor(array.astype(np.promote_types(array.dtype, np.float32)))
