"""L6: the base class of all models, with intermediate outputs, fine-tuning and parameter groups.

A model lists its blocks in `sections`, in the order of the forward. Intermediate outputs, attention maps, gradient
checkpointing and layer-wise learning rates are derived from this list.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from numbers import Real
from operator import index
from threading import get_ident
from types import MappingProxyType
from typing import Any, Literal, overload

from minigrad import Tensor, nn, no_grad
from minigrad.nn import init
from minigrad.ops import checks

Size = int | Sequence[int]
"""A size of images, patches or windows: (height, width), or one integer for both."""


class _StoppedEarly(Exception):  # noqa: N818 -- not an error
    """Ends a forward whose last wanted output is there."""


class ImageModel(nn.Module):
    """A classifier of images (B, in_chans, H, W). Its methods have timm's names.

    A subclass defines `sections`, `forward_features`, `forward_head` and `feature_map`.
    """

    img_size: tuple[int, int]
    in_chans: int
    num_classes: int
    num_features: int  # channels of the head's input
    stem_stride: int  # rows of pixels for a row of the first feature map
    num_prefix_tokens = 0  # tokens of a block's output before those of the image
    global_pool: str = "avg"  # the input of the head
    head: nn.Module
    pretrained_cfg: Mapping[str, Any] = MappingProxyType({})  # of the published weights of this name, timm's keys

    def sections(self) -> list[list[str]]:
        """Names of parameters and modules in the order of the forward: first the stem, then one section for each block.

        The last name of a section is the block; the names before it are the modules between the previous block and this
        one, such as a downsampling. Modules in no section come after the last block.
        """
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to features, before any pooling."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features to logits (B, num_classes), or with `pre_logits` to the input of the last layer."""
        raise NotImplementedError

    def make_head(self, num_classes: int) -> nn.Module:
        """A newly initialized last layer; `nn.Identity` if `num_classes` is 0."""
        return linear_head(self.num_features, num_classes)

    def feature_map(self, x: Tensor) -> Tensor:
        """The output of a block as a feature map (B, C, H, W)."""
        raise NotImplementedError

    def heads(self) -> list[nn.Module]:
        """The last layers, whose outputs are logits: one, except in a model with several classifiers."""
        return [self.head]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    # Intermediate outputs -------------------------------------------------------------------------------------------

    def blocks_by_name(self) -> dict[str, nn.Module]:
        """The residual blocks by name, in the order of the forward."""
        modules = dict(self.named_modules())
        return {section[-1]: modules[section[-1]] for section in self.sections()[1:]}

    @overload
    def forward_intermediates(
        self, x: Tensor, indices: Iterable[int] | int | None = None, return_prefix_tokens: Literal[False] = False,
        norm: bool = False, stop_early: bool = False, output_fmt: str = "NCHW",
        intermediates_only: Literal[False] = False,
    ) -> tuple[Tensor, list[Tensor]]: ...  # fmt: skip
    @overload
    def forward_intermediates(
        self, x: Tensor, indices: Iterable[int] | int | None = None, return_prefix_tokens: bool = False,
        norm: bool = False, stop_early: bool = False, output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> Any: ...  # fmt: skip
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Iterable[int] | int | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """`forward_features(x)`, and the outputs of blocks as feature maps (B, C, H, W), in the order of the forward.

        Args:
            x: images.
            indices: indices of blocks (not of stages, as in timm) in `blocks_by_name()`, negative ones from the end, in
                any order. An integer n: the last n blocks. None: all blocks.
            return_prefix_tokens: for each block a pair: the map, and the prefix tokens (B, `num_prefix_tokens`, C).
            norm: apply the model's last norm to the outputs that it fits: in ViT all, in Swin those of the last stage.
            stop_early: end the forward after the last of these blocks. Needs `intermediates_only`.
            output_fmt: "NCHW", or "NLC" for tokens (B, H·W, C) in place of maps.
            intermediates_only: return the second result alone.

        Raises:
            ValueError: there are no prefix tokens to return, `output_fmt` is another string, or `stop_early` is given
                without `intermediates_only`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f'output_fmt must be "NCHW" or "NLC", got {output_fmt!r}')
        if return_prefix_tokens and not self.num_prefix_tokens:
            raise ValueError(f"{type(self).__name__} has no prefix tokens to return")
        if stop_early and not intermediates_only:
            raise ValueError("stop_early computes no final features: it needs intermediates_only=True")
        blocks = _selected(list(self.blocks_by_name().values()), indices)
        outputs: list[Tensor] = []

        def collect(block: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs.append(self.normalized(output) if norm else output)
            if stop_early and block is blocks[-1]:
                raise _StoppedEarly

        features = None
        with suppress(_StoppedEarly):
            features = self._forward_with_hook(x, blocks, collect) if blocks or not stop_early else None
        maps = [self.feature_map(output) for output in outputs]
        if output_fmt == "NLC":
            maps = [y.flatten(2).transpose(1, 2) for y in maps]  # (B, C, H, W) -> (B, H·W, C)
        found: list[Any] = [*maps]
        if return_prefix_tokens:
            found = [(y, output[:, : self.num_prefix_tokens]) for y, output in zip(maps, outputs, strict=True)]
        return found if intermediates_only else (features, found)

    def normalized(self, output: Tensor) -> Tensor:
        """The output of a block after the model's last norm, if the norm fits; else unchanged."""
        return output

    def feature_indices(self) -> list[int]:
        """The blocks whose outputs timm's `features_only` can return: the last of each stage."""
        starts = [i for i, section in enumerate(self.sections()[1:]) if i and len(section) > 1]
        return [*(start - 1 for start in starts), len(self.sections()) - 2]

    def feature_reductions(self) -> list[int]:
        """Rows of pixels for a row of each of these feature maps: each stage after the first halves the map."""
        return [self.stem_stride * 2**stage for stage in range(len(self.feature_indices()))]

    def attention_maps(self, x: Tensor, indices: Iterable[int] | int | None = None) -> list[Tensor]:
        """Attention probabilities of blocks: (B, heads, L, L), a row for each query, over L tokens.

        The tokens are the positions of the image, row by row; in ViT, the `num_prefix_tokens` prefix tokens come first:
        the class token, then DeiT's distillation token or DINOv2's registers. Each row sums to 1; in Swin, to less if
        part of the attention goes to padding tokens, whose columns are left out. In training mode, dropout changes the
        inputs of the blocks: call `eval()` first.

        Args:
            x: images.
            indices: indices of blocks, as for `forward_intermediates`, among the blocks with attention.

        Raises:
            TypeError: the model has no attention.
        """
        attending = [block for block in self.blocks_by_name().values() if hasattr(block, "attention_map")]
        if not attending:
            raise TypeError(
                f"{type(self).__name__} has no attention; forward_intermediates(x) returns the outputs of its blocks"
            )
        maps: list[Tensor] = []
        with no_grad():
            blocks = _selected(attending, indices)
            self._forward_with_hook(x, blocks, lambda block, inputs, output: maps.append(block.attention_map(*inputs)))
        return maps

    def _forward_with_hook(self, x: Tensor, blocks: list[nn.Module], hook: Callable[[Any, Any, Any], None]) -> Tensor:
        """`forward_features(x)`, with `hook` as a forward hook of these blocks, in this thread alone."""
        thread = get_ident()

        def hook_of_thread(block: nn.Module, inputs: Any, output: Any) -> None:
            if get_ident() == thread:
                hook(block, inputs, output)

        handles = [block.register_forward_hook(hook_of_thread) for block in blocks]
        try:
            return self.forward_features(x)
        finally:
            for handle in handles:
                handle.remove()

    # Fine-tuning ----------------------------------------------------------------------------------------------------

    def get_classifier(self) -> Any:
        """The head; a tuple if there are several."""
        return self.head if len(self.heads()) == 1 else tuple(self.heads())

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a newly initialized one for `num_classes`; 0: no head, the model returns features.

        Create the optimizer afterwards: an existing optimizer holds the old head.

        Args:
            num_classes: outputs of the new head.
            global_pool: the input of the head; None: as before. Only a ViT can change its pooling.
        """
        check_sizes(type(self).__name__, minimum=0, num_classes=num_classes)
        if global_pool not in (None, self.global_pool):
            raise ValueError(f"{type(self).__name__}: global_pool must be {self.global_pool!r}, got {global_pool!r}")
        like = next(self.parameters())
        head = self.make_head(num_classes).to(dtype=like.dtype, device=like.device)
        self.num_classes, self.head = num_classes, head

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay, besides biases and norms."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each block in backward, not save them: less memory, for one more forward."""
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
    """Parameter groups for an optimizer, each with its `lr` and `weight_decay`.

    Biases, norms and the parameters of `model.no_weight_decay()` have no weight decay, which regularizes weights, not
    offsets and scales. With `layer_decay` γ below 1, the learning rate at depth i of n + 1 is lr · γⁿ⁺¹⁻ⁱ: early layers
    have general features, which fine-tuning should change less.  Clark et al. 2020, arXiv:2003.10555.

    Raises:
        ValueError: `layer_decay` is not above 0 and at most 1.
        TypeError: `layer_decay` is not 1, and the model is not an `ImageModel`, so the depths are unknown.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be above 0 and at most 1 (no decay), got {layer_decay}")
    if layer_decay != 1 and not isinstance(model, ImageModel):
        raise TypeError(
            f"layer_decay needs an ImageModel, which knows the depths of its layers; got {type(model).__name__}"
        )
    excluded = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    depths = model.layer_ids() if isinstance(model, ImageModel) else {}
    deepest = len(model.sections()) if isinstance(model, ImageModel) else 0
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and name not in excluded
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


def linear_head(features: int, num_classes: int, std: float = 0.02) -> nn.Module:
    """A linear layer: weights truncated normal with this std, biases 0; `nn.Identity` if `num_classes` is 0."""
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(features, num_classes)
    init.trunc_normal_(head.weight, std=std)
    init.zeros_(head.bias)
    return head


def image_size(size: Size) -> tuple[int, int]:
    """(H, W), from a pair or from one integer for both."""
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(is_integer(side) and side > 0 for side in pair):
        raise ValueError(f"img_size must be an integer or a pair (height, width) of integers, at least 1, got {size!r}")
    return index(pair[0]), index(pair[1])


def pair_size(size: Size, name: str, model: str) -> Size:
    """A size of patches or windows: one integer if height and width are equal, else the pair (height, width)."""
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(is_integer(side) and side > 0 for side in pair):
        raise ValueError(
            f"{model}: {name} must be an integer or a pair (height, width) of integers, at least 1, got {size!r}"
        )
    H, W = map(index, pair)
    return H if H == W else (H, W)


def check_sizes(model: str, minimum: int = 1, **sizes: int) -> None:
    """Raise an error unless each of these arguments is an integer of at least `minimum`."""
    for name, value in sizes.items():
        if not is_integer(value) or value < minimum:
            raise ValueError(f"{model}: {name} must be an integer, at least {minimum}, got {value!r}")


def check_lists(model: str, minimum: int = 1, **lists: Sequence[int]) -> None:
    """Raise an error unless each of these arguments is a sequence of integers of at least `minimum`."""
    for name, values in lists.items():
        if not isinstance(values, Sequence) or not all(is_integer(size) and size >= minimum for size in values):
            raise ValueError(
                f"{model}: {name} must be a sequence of integers, each at least {minimum}, one for each stage, "
                f"got {values!r}"
            )


def check_rates(model: str, **rates: float) -> None:
    """Raise an error unless each of these probabilities is from 0 to 1."""
    for name, value in rates.items():
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(f"{model}: {name}: a probability must be from 0 to 1, got {value!r}")


def check_ratio(model: str, mlp_ratio: float, *widths: int) -> None:
    """Raise an error unless the MLP of each width has at least one hidden channel."""
    if not isinstance(mlp_ratio, Real) or not isfinite(mlp_ratio) or min(int(w * mlp_ratio) for w in widths) < 1:
        raise ValueError(f"{model}: mlp_ratio must be a number that gives the MLP a hidden channel, got {mlp_ratio!r}")


def is_integer(value: Any) -> bool:
    """True for an integer of Python or NumPy, except a bool."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def check_images(model: str, x: Tensor, in_chans: int, min_size: int = 1) -> None:
    """Raise an error unless x is (B, in_chans, H, W), with H and W at least `min_size`."""
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ValueError(f"{model}: this model needs images of shape (B, {in_chans}, H, W), got {x.shape}")
    if min(x.shape[2:]) < min_size:
        raise ValueError(
            f"{model}: images must be at least {min_size} x {min_size} for the strides of this model, got {x.shape}: "
            "enlarge them, or create the model with a smaller stem"
        )


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """The drop probability of each block, rising linearly from 0 at the first to `last` at the last.

    Huang et al. 2016, arXiv:1603.09382.
    """
    checks.probability(last, "drop_path_rate")
    return [last * i / max(blocks - 1, 1) for i in range(blocks)]


def prefixes(name: str) -> Iterator[str]:
    """`a.b.c`, `a.b`, `a`: a dotted name and the modules around it, innermost first."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(len(parts), 0, -1))


def _selected(blocks: list[nn.Module], indices: Iterable[int] | int | None) -> list[nn.Module]:
    if indices is None:
        return blocks
    if isinstance(indices, int) and indices < 0:
        raise ValueError(f"an integer is a number of last blocks, at least 0, got {indices}; one block is [{indices}]")
    indices = range(-indices, 0) if isinstance(indices, int) else list(indices)
    out_of_range = [i for i in indices if not -len(blocks) <= i < len(blocks)]
    if out_of_range:
        raise IndexError(f"there are {len(blocks)} blocks, from 0 to {len(blocks) - 1}, got {out_of_range[0]}")
    return [blocks[i] for i in sorted({i % len(blocks) for i in indices})]
