"""L6: what all the models share: images to features to logits, and the ways to look inside and to fine-tune.

A model says in `sections` of which blocks it is made, in the order in which an image passes them. Everything here
follows from that: intermediate outputs, attention maps, checkpointing, and a learning rate for each depth.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
from numbers import Real
from operator import index
from threading import get_ident
from typing import Any

from minigrad import Tensor, nn, no_grad
from minigrad.ops import checks

Size = int | Sequence[int]
"""Of images: (H, W), or one number for both."""


class ImageModel(nn.Module):
    """A model that takes images (B, in_chans, H, W), and its views from outside. The names are timm's.

    A subclass defines `sections`, `forward_features`, `forward_head`, `make_head` and `feature_map`.
    """

    img_size: tuple[int, int]
    in_chans: int
    num_classes: int
    num_features: int  # channels of what the head reads
    head: nn.Module

    def sections(self) -> list[list[str]]:
        """Names of parameters and modules, in the order of the forward: first the stem, then one section for each
        block, the block last in it, after what leads to it. What is not named comes after the last block."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to features, before any pooling."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features to logits (B, num_classes), or with `pre_logits` to what the last layer would take."""
        raise NotImplementedError

    def make_head(self, num_classes: int) -> nn.Module:
        """A new last layer; with no classes, none."""
        raise NotImplementedError

    def feature_map(self, x: Tensor) -> Tensor:
        """The output of a block as an image (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    # Looking inside -------------------------------------------------------------------------------------------------

    def blocks_by_name(self) -> dict[str, nn.Module]:
        """The residual blocks, in the order of the forward."""
        modules = dict(self.named_modules())
        return {section[-1]: modules[section[-1]] for section in self.sections()[1:]}

    def forward_intermediates(
        self, x: Tensor, indices: Iterable[int] | int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """`forward_features(x)`, and the outputs of blocks (each, not each stage) as images (B, C, H, W).

        Args:
            x: images.
            indices: which of `blocks_by_name()`, from 0, or from -1 at the end; they come in the order of the forward,
                whatever the order here. A number n: the last n. None: all.
        """
        seen: list[Tensor] = []
        blocks = _chosen(list(self.blocks_by_name().values()), indices)
        features = self._watched(x, blocks, lambda block, inputs, output: seen.append(output))
        return features, [self.feature_map(output) for output in seen]

    def attention_maps(self, x: Tensor, indices: Iterable[int] | int | None = None) -> list[Tensor]:
        """For blocks with attention, how much each position looks at each other one: (B, heads, L, L), L positions
        row by row over the image (in ViT the class token is before them). Rows sum to 1, but for what Swin's look at
        in the padding of a map that its windows do not fit. In training mode dropout acts on what the blocks see, so
        call `eval()` first.

        Args:
            x: images.
            indices: which of the blocks with attention, as for `forward_intermediates`.

        Raises:
            TypeError: the model has no attention.
        """
        attending = [block for block in self.blocks_by_name().values() if hasattr(block, "attention_map")]
        if not attending:
            raise TypeError(
                f"{type(self).__name__} has no attention; forward_intermediates(x) shows what its blocks make"
            )
        maps: list[Tensor] = []
        with no_grad():
            blocks = _chosen(attending, indices)
            self._watched(x, blocks, lambda block, inputs, output: maps.append(block.attention_map(*inputs)))
        return maps

    def _watched(self, x: Tensor, blocks: list[nn.Module], look: Callable[[Any, Any, Any], None]) -> Tensor:
        """`forward_features(x)` with a look at each of these blocks when it has run, in this thread."""
        thread = get_ident()

        def hook(block: nn.Module, inputs: Any, output: Any) -> None:
            if get_ident() == thread:
                look(block, inputs, output)

        removals = [block.register_forward_hook(hook) for block in blocks]
        try:
            return self.forward_features(x)
        finally:
            for remove in removals:
                remove()

    # Fine-tuning ----------------------------------------------------------------------------------------------------

    def reset_classifier(self, num_classes: int) -> None:
        """A new, untrained head for another number of classes; 0: none, so that the model returns features.

        Make the optimiser afterwards: it would go on with the old one.
        """
        check_sizes(type(self).__name__, least=0, num_classes=num_classes)
        like = next(self.parameters())
        head = self.make_head(num_classes).to(dtype=like.dtype, device=like.device)
        self.num_classes, self.head = num_classes, head

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone, besides biases and norms."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside the blocks, and make them again in backward: less memory, a forward more."""
        for block in self.blocks_by_name().values():
            block.checkpointing = enable

    def layer_ids(self) -> dict[str, int]:
        """The depth of each parameter: 0 in the stem, i in the i-th of n blocks, n + 1 after them."""
        sections = self.sections()
        depths = {name: depth for depth, section in enumerate(sections) for name in section}

        def depth(parameter: str) -> int:
            return next((depths[prefix] for prefix in prefixes(parameter) if prefix in depths), len(sections))

        return {name: depth(name) for name, _ in self.named_parameters()}


def param_groups(model: nn.Module, lr: float, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameters in groups for an optimiser, each with its `lr` and `weight_decay`.

    Biases, norms, and what `model.no_weight_decay()` names do not decay: decay keeps products of weights small, an
    offset or a scale has nothing to gain from it. With `layer_decay` γ below 1, the rate at depth i of n + 1 is
    lr · γⁿ⁺¹⁻ⁱ: in fine-tuning, early layers, which are general, move less.  Clark et al. 2020, arXiv:2003.10555.

    Raises:
        ValueError: a layer decay that is not above 0, and at most 1.
        TypeError: a layer decay for a model that is no `ImageModel`, so that depths are not known.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be above 0, and at most 1, which is none; got {layer_decay}")
    if layer_decay != 1 and not isinstance(model, ImageModel):
        raise TypeError(f"layer_decay needs the depths of the layers, which {type(model).__name__} does not tell")
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    depths = model.layer_ids() if isinstance(model, ImageModel) else {}
    deepest = len(model.sections()) if isinstance(model, ImageModel) else 0
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and name not in spared
        depth = depths.get(name, 0) if layer_decay != 1 else deepest
        groups.setdefault((depth, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * layer_decay ** (deepest - depth),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in sorted(groups.items())
    ]


def image_size(size: Size) -> tuple[int, int]:
    """(H, W), given as a pair, or as one number for both."""
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(is_whole(side) and side > 0 for side in pair):
        raise ValueError(f"img_size: must be a size, or a pair (height, width), of whole numbers above 0; got {size!r}")
    return index(pair[0]), index(pair[1])


def pair_size(size: Size, name: str, model: str) -> Size:
    """A size of patches or windows: one number where height and width are the same, else the pair (height, width)."""
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(is_whole(side) and side > 0 for side in pair):
        raise ValueError(
            f"{model}: {name} must be made of whole numbers, each at least 1: one, or a pair (height, width); "
            f"got {size!r}"
        )
    H, W = map(index, pair)
    return H if H == W else (H, W)


def check_sizes(model: str, least: int = 1, **sizes: int) -> None:
    """Refuse arguments that are to be one whole number of at least `least`, and are not."""
    for name, value in sizes.items():
        if not is_whole(value) or value < least:
            one = (
                "; it is one number, not a sequence"
                if isinstance(value, Sequence) and not isinstance(value, str)
                else ""
            )
            raise ValueError(
                f"{model}: {name} must be made of whole numbers, each at least {least}; got {value!r}{one}"
            )


def check_lists(model: str, least: int = 1, **lists: Sequence[int]) -> None:
    """Refuse arguments that are to be sequences of whole numbers, one for each stage, and are not."""
    for name, values in lists.items():
        if not isinstance(values, Sequence) or not all(is_whole(size) and size >= least for size in values):
            raise ValueError(
                f"{model}: {name} must be made of whole numbers, each at least {least}, one for each stage; "
                f"got {values!r}"
            )


def check_rates(model: str, **rates: float) -> None:
    """Refuse probabilities, of dropout and the like, that are not from 0 to 1."""
    for name, value in rates.items():
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(f"{model}: {name}: a probability must be from 0 to 1, got {value!r}")


def check_ratio(model: str, mlp_ratio: float, *widths: int) -> None:
    """Refuse an MLP that would have no hidden channel."""
    if not isinstance(mlp_ratio, Real) or not isfinite(mlp_ratio) or min(int(w * mlp_ratio) for w in widths) < 1:
        raise ValueError(f"{model}: mlp_ratio must be a number, and leave the MLP a channel; got {mlp_ratio!r}")


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, Python's or NumPy's."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def check_images(model: str, x: Tensor, in_chans: int, smallest: int = 1) -> None:
    """Refuse what is no batch of images with these channels, or is too small for the model's strides."""
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ValueError(f"{model}: this model takes images of shape (B, {in_chans}, H, W), got {x.shape}")
    if min(x.shape[2:]) < smallest:
        raise ValueError(
            f"{model}: this model halves images until {smallest} pixels are one, so they must be at least "
            f"{smallest} x {smallest}; got {x.shape}: enlarge them, or create the model with a smaller stem"
        )


def drop_path_rates(highest: float, blocks: int) -> list[float]:
    """Stochastic depth for each block: from 0 at the first in equal steps to `highest` at the last.

    Huang et al. 2016, arXiv:1603.09382.
    """
    checks.probability(highest, "drop_path_rate")
    return [highest * i / max(blocks - 1, 1) for i in range(blocks)]


def prefixes(name: str) -> Iterator[str]:
    """`a.b.c`, `a.b`, `a`: a name, and those that it is within, the nearest first."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(len(parts), 0, -1))


def _chosen(blocks: list[nn.Module], indices: Iterable[int] | int | None) -> list[nn.Module]:
    if indices is None:
        return blocks
    indices = range(-indices, 0) if isinstance(indices, int) else list(indices)
    wrong = [i for i in indices if not -len(blocks) <= i < len(blocks)]
    if wrong:
        raise IndexError(f"there are {len(blocks)} blocks, from 0 to {len(blocks) - 1}; got {wrong[0]}")
    return [blocks[i] for i in sorted({i % len(blocks) for i in indices})]
