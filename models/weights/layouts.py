"""L6: parameter names and shapes of other implementations, translated into ours.

Each public implementation has its own names for the same arrays. A Layout is one naming scheme: a table of regular
expressions, applied in order, that translates its names into ours. The layout of a file is detected: the layout whose
translation gives the largest number of the model's parameter names.
"""

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np

from minigrad.backend import Array
from minigrad.nn import Module

Shape = tuple[int, ...]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Place:
    """The place of an array in a model: a parameter, or an equal part of a parameter that is several arrays elsewhere.

    Args:
        name: the parameter's name in our model.
        part: "q", "k" or "v", a third of qkv; "gate" or "up", a half of the packed fc1 of a gated MLP; None: the entire
            parameter.
        axes: the argument of `transpose` that brings the array's axes into our order; None: no transpose.
    """

    name: str
    part: str | None = None
    axes: Shape | None = None

    @property
    def parts(self) -> tuple[str | None, ...]:
        """All parts of the parameter, in the order of its first axis."""
        return next((parts for parts in PARTS if self.part in parts), (None,))

    def shape(self, parameter_shape: Shape) -> Shape:
        """The shape of the part, given the shape of the parameter."""
        return parameter_shape if self.part is None else (parameter_shape[0] // len(self.parts), *parameter_shape[1:])

    def fits(self, shape: Shape, parameter_shape: Shape) -> bool:
        """Whether an array of `shape` can be transposed and reshaped to the part: adjacent axes may be merged,
        (heads, D_h, D) -> (D, D), and axes of size 1 dropped, (C, 1, 1) -> (C,): the order of elements is unchanged.
        """
        if self.axes is not None:
            if len(self.axes) != len(shape):
                return False
            shape = tuple(shape[axis] for axis in self.axes)
        sizes = list(accumulate(shape, mul, initial=1))
        expected = list(accumulate(self.shape(parameter_shape), mul, initial=1))
        return sizes[-1] == expected[-1] and set(expected) <= set(sizes)

    def arrange(self, array: Array, parameter_shape: Shape) -> Array:
        """The array transposed and reshaped to the part.

        Raises:
            ValueError: the array does not fit.
        """
        expected = self.shape(parameter_shape)
        if not self.fits(array.shape, parameter_shape):
            raise ValueError(f"{self.name}: an array of shape {array.shape} cannot be reshaped to {expected}")
        array = array if self.axes is None else array.transpose(self.axes)
        return array.reshape(expected)


class Layout:
    """The naming scheme of one implementation.

    Args:
        name: the name of the implementation.
        rules: (pattern, replacement), applied in order. A pattern matches complete dot-separated components; slashes
            are replaced by dots first. `[q]` or another of `PARTS` in a replacement marks a part of our parameter.
        axes: (pattern, axes): the first pattern that matches the name in the file gives the transpose.
        stacks: (pattern, parts): an array of several of our parameters, stacked along the first axis in equal parts.
            `parts` replace the pattern in the name; None: our models have no such parameter.
    """

    def __init__(
        self,
        name: str,
        rules: Iterable[Rule] = (),
        axes: Iterable[tuple[str, Shape]] = (),
        stacks: Iterable[tuple[str, Sequence[str | None]]] = (),
    ) -> None:
        self.name = name
        self.stacks = [(_components(pattern), parts) for pattern, parts in stacks]
        self.rules = [(_components(pattern), replacement) for pattern, replacement in rules]
        self.axes = [(_components(pattern), order) for pattern, order in axes]

    def place(self, name: str) -> Place:
        """The place of the array `name`, in a model that has the parameter."""
        name = _PREFIX.sub("", name.replace("/", "."))
        axes = next((order for pattern, order in self.axes if pattern.search(name)), None)
        for pattern, replacement in self.rules:
            name = pattern.sub(replacement, name)
        part = _PART.search(name)
        return Place(_PART.sub("", name), part[1] if part else None, axes)

    def parts(self, name: str) -> list[str | None]:
        """The names of the parts of a stacked array; of another array, its own name."""
        for pattern, parts in self.stacks:
            if pattern.search(name):
                return [part and pattern.sub(part, name) for part in parts]
        return [name]

    def unstacked(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays, with the parts of stacked arrays as views, under names of their own."""
        found: dict[str, Any] = {}
        for name, array in arrays.items():
            parts = self.parts(name) if array.ndim else [name]
            size = len(array) // len(parts) if len(parts) > 1 else None
            found |= {part: array[i * size : (i + 1) * size] if size else array for i, part in enumerate(parts) if part}
        return found

    def places(self, names: Iterable[str], own: Container[str]) -> dict[str, Place | None]:
        """The place of each array in a model with the parameters `own`; None: the model has no parameter at this
        place, or an earlier array has the same place."""
        found: dict[str, Place | None] = {}
        taken: set[tuple[str, str | None]] = set()
        for name in names:
            place = self.place(name)
            free = place.name in own and (place.name, place.part) not in taken
            found[name] = place if free else None
            taken.add((place.name, place.part))
        return found


def layout_of(names: Iterable[str], model: Module) -> Layout:
    """The layout that matches the largest number of the model's parameters; the first on a tie."""
    names, own = list(names), set(model.state_dict())

    def matches(layout: Layout) -> int:
        parts = (part for name in names for part in layout.parts(name))
        return len(own & {layout.place(part).name for part in parts if part})

    return max(LAYOUTS, key=matches)


def places(names: Iterable[str], model: Module) -> dict[str, Place | None]:
    """The place in `model` of each array of a file, or each parameter of another implementation; None: no place.

    A stacked array has an entry for each part (`Layout.unstacked`). One name alone is ambiguous, so all names are
    passed together to detect the layout: `layers.1.downsample` leads into stage 1 in timm's Swin, and out of stage 1
    in Microsoft's and ours.
    """
    names = list(names)
    layout = layout_of(names, model)
    return layout.places([part for name in names for part in layout.parts(name) if part], model.state_dict())


def to_canonical(entries: Mapping[str, Array], model: Module) -> dict[str, Array]:
    """The arrays with a place in `model`, under our names and in our shapes; parts such as q, k and v are concatenated.

    Elements are only rearranged, so the function converts gradients as well as weights.

    Raises:
        ValueError: a shape does not fit, or only some parts of a parameter are present.
    """
    found, entries = places(entries, model), layout_of(entries, model).unstacked(entries)
    return assemble([(place, entries[name]) for name, place in found.items() if place is not None], model)


def assemble(placed: Iterable[tuple[Place, Array]], model: Module) -> dict[str, Array]:
    """The arrays by the names and in the shapes of the model's parameters; parts are concatenated.

    Raises:
        ValueError: as for `to_canonical`.
    """
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    canonical: dict[str, Array] = {}
    divided: dict[tuple[str, tuple[str | None, ...]], dict[str | None, Array]] = {}
    for place, array in placed:
        divided.setdefault((place.name, place.parts), {})[place.part] = place.arrange(array, shapes[place.name])
    for (name, parts), arrays in divided.items():
        if len(arrays) != len(parts):
            *first, last = map(str, parts)
            found = ", ".join(str(part) for part in parts if part in arrays)
            raise ValueError(f"{name}: needs {', '.join(first)} and {last}, got only {found}")
        canonical[name] = arrays[None] if None in arrays else np.concatenate([arrays[part] for part in parts])
    return canonical


def _components(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^.])(?:{pattern})(?![^.])")


def _from_numbers(make: Callable[..., str]) -> Callable[[re.Match[str]], str]:
    """A replacement computed from the matched integers, such as the index of a stage."""
    return lambda match: make(*map(int, match.groups()))


# Prefixes of all names: from DistributedDataParallel, torch.compile, Lightning (the attribute with the network),
# Hugging Face's classes with a head, and JAX's trees.
_PREFIX = re.compile(
    r"^(?:(?:module|_orig_mod|model|net|network|backbone|vit|deit|dinov2|dinov2_with_registers|swin|swinv2|convnext"
    r"|convnextv2|opt\.target|params|img)\.)+"
)
PARTS = ("q", "k", "v"), ("gate", "up")
"""Parts of a parameter that are separate arrays in other implementations, in the order of the first axis."""
_PART = re.compile(rf"\[({'|'.join(part for parts in PARTS for part in parts)})\]")

_HUGGING_FACE_ATTENTION: list[Rule] = [
    (r"(?:attention\.)?attention\.(?:self\.)?(q|k|v)(?:_proj|uery|ey|alue)", r"attn.qkv[\1]"),
    (r"attention\.(?:o_proj|output\.dense)", "attn.proj"),
]
_HUGGING_FACE_BLOCK: list[Rule] = [
    *_HUGGING_FACE_ATTENTION,
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layernorm", "norm"),
    (r"classifier", "head"),
]

_HUGGING_FACE_TOKENS: list[Rule] = [
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"(?:encoder\.layer|layers)\.(\d+)", r"blocks.\1"),
]

_HUGGING_FACE_SWIN: list[Rule] = [
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.norm", "patch_embed.norm"),
    (r"encoder\.layers", "layers"),
]

_TORCHVISION_SWIN: list[Rule] = [
    (r"features\.0\.0", "patch_embed.proj"),
    (r"features\.0\.2", "patch_embed.norm"),
    (r"features\.(\d*[13579])\.(\d+)", _from_numbers(lambda i, b: f"layers.{i // 2}.blocks.{b}")),
    (r"features\.(\d*[02468])", _from_numbers(lambda i: f"layers.{i // 2 - 1}.downsample")),
    (r"mlp\.0", "mlp.fc1"),
    (r"mlp\.3", "mlp.fc2"),
]

LAYOUTS = [
    Layout("minigrad, timm's ViT, DeiT and DINOv2, Microsoft's Swin, Facebook's ConvNeXt, torchvision's ResNet"),
    Layout(
        "Facebook's DeiT III and DINOv2",
        [
            (r"gamma_([12])", r"ls\1.gamma"),
            (r"register_tokens", "reg_token"),
            (r"mlp\.w12", "mlp.fc1"),
            (r"mlp\.w3", "mlp.fc2"),
        ],
    ),
    Layout("timm's hybrid without ResNet stages", [(r"backbone\.(conv|norm)", r"backbone.stem.\1")]),
    Layout(
        "timm's Swin",
        [
            (r"layers\.(\d+)\.downsample", _from_numbers(lambda s: f"layers.{s - 1}.downsample")),
            (r"head\.fc", "head"),
        ],
    ),
    Layout(
        "timm's ConvNeXt",
        [
            (r"stem", "downsample_layers.0"),
            (r"stages\.(\d+)\.downsample", r"downsample_layers.\1"),
            (r"stages\.(\d+)\.blocks", r"stages.\1"),
            (r"conv_dw", "dwconv"),
            (r"mlp\.fc([12])", r"pwconv\1"),
            (r"mlp\.grn\.weight", "grn.gamma"),
            (r"mlp\.grn\.bias", "grn.beta"),
            (r"head\.norm", "norm"),
            (r"head\.fc", "head"),
        ],
    ),
    Layout(
        "torchvision's ViT",
        [
            (r"class_token", "cls_token"),
            (r"encoder\.pos_embedding", "pos_embed"),
            (r"conv_proj", "patch_embed.proj"),
            (r"encoder\.layers\.encoder_layer_(\d+)", r"blocks.\1"),
            (r"ln_([12])", r"norm\1"),
            (r"self_attention\.in_proj_(weight|bias)", r"attn.qkv.\1"),
            (r"self_attention\.out_proj", "attn.proj"),
            (r"mlp\.(?:0|linear_1)", "mlp.fc1"),
            (r"mlp\.(?:3|linear_2)", "mlp.fc2"),
            (r"encoder\.ln", "norm"),
            (r"heads\.pre_logits", "pre_logits.fc"),
            (r"heads\.head", "head"),
        ],
    ),
    Layout("torchvision's Swin", _TORCHVISION_SWIN),
    Layout(  # the bias of the keys has no effect
        "torchvision's Swin V2", _TORCHVISION_SWIN, stacks=[(r"qkv\.bias", ("q_bias", None, "v_bias"))]
    ),
    Layout(
        "torchvision's ConvNeXt",
        [
            (r"features\.(\d*[13579])\.(\d+)", _from_numbers(lambda i, b: f"stages.{i // 2}.{b}")),
            (r"features\.(\d*[02468])", _from_numbers(lambda i: f"downsample_layers.{i // 2}")),
            (r"block\.0", "dwconv"),
            (r"block\.2", "norm"),
            (r"block\.3", "pwconv1"),
            (r"block\.5", "pwconv2"),
            (r"layer_scale", "gamma"),
            (r"classifier\.0", "norm"),
            (r"classifier\.2", "head"),
        ],
    ),
    Layout(
        "Hugging Face's ViT and DeiT",
        [
            (r"embeddings\.distillation_token", "dist_token"),
            *_HUGGING_FACE_TOKENS,
            (r"pooler\.dense", "pre_logits.fc"),
            (r"cls_classifier", "head"),
            (r"distillation_classifier", "head_dist"),
            *_HUGGING_FACE_BLOCK,
        ],
    ),
    Layout(
        "Hugging Face's DINOv2",
        [
            (r"embeddings\.register_tokens", "reg_token"),
            *_HUGGING_FACE_TOKENS,
            *_HUGGING_FACE_ATTENTION,
            (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
            (r"mlp\.(gate|up)_proj", r"mlp.fc1[\1]"),
            (r"mlp\.weights_in", "mlp.fc1"),
            (r"mlp\.(?:down_proj|weights_out)", "mlp.fc2"),
            (r"layernorm", "norm"),
            (r"classifier", "head"),  # it also reads the mean of the patch tokens: only head=False fits
        ],
    ),
    Layout(
        "Hugging Face's Swin",
        [
            *_HUGGING_FACE_SWIN,
            (r"attention\.(?:self|relative_position_bias)\.(relative_position_\w+)", r"attn.\1"),
            *_HUGGING_FACE_BLOCK,
        ],
    ),
    Layout(
        "Hugging Face's Swin V2",
        [
            *_HUGGING_FACE_SWIN,
            (r"attention\.self\.(q|v)(?:uery|alue)\.bias", r"attn.\1_bias"),
            (r"attention\.self\.continuous_position_bias_mlp", "attn.cpb_mlp"),
            (r"attention\.self\.(logit_scale|relative_\w+)", r"attn.\1"),
            *_HUGGING_FACE_BLOCK,
        ],
    ),
    Layout(
        "Hugging Face's ConvNeXt",
        [
            (r"embeddings\.patch_embeddings", "downsample_layers.0.0"),
            (r"embeddings\.layernorm", "downsample_layers.0.1"),
            (r"encoder\.stages\.(\d+)\.downsampling_layer", r"downsample_layers.\1"),
            (r"encoder\.stages\.(\d+)\.layers", r"stages.\1"),
            (r"layer_scale_parameter", "gamma"),
            (r"grn\.weight", "grn.gamma"),
            (r"grn\.bias", "grn.beta"),
            (r"layernorm", "norm"),
            (r"classifier", "head"),
        ],
    ),
    Layout(
        "Google's JAX ViT and hybrid (vision_transformer, big_vision)",
        [
            (r"cls", "cls_token"),
            (r"(?:Transformer\.posembed_input\.)?pos_embedding", "pos_embed"),
            (r"conv_root", "patch_embed.backbone.stem.conv"),
            (r"gn_root", "patch_embed.backbone.stem.norm"),
            (
                r"block(\d+)\.unit(\d+)",
                _from_numbers(lambda s, b: f"patch_embed.backbone.stages.{s - 1}.blocks.{b - 1}"),
            ),
            (r"conv_proj", "downsample.conv"),
            (r"gn_proj", "downsample.norm"),
            (r"gn([123])", r"norm\1"),
            (r"embedding", "patch_embed.proj"),
            (r"Transformer\.encoderblock_(\d+)", r"blocks.\1"),
            (r"LayerNorm_0", "norm1"),
            (r"LayerNorm_[12]", "norm2"),
            (r"MultiHeadDotProductAttention_[01]\.(q|k|v)(?:uery|ey|alue)", r"attn.qkv[\1]"),
            (r"MultiHeadDotProductAttention_[01]\.out", "attn.proj"),
            (r"MlpBlock_[03]\.Dense_0", "mlp.fc1"),
            (r"MlpBlock_[03]\.Dense_1", "mlp.fc2"),
            (r"Transformer\.encoder_norm", "norm"),
            (r"pre_logits", "pre_logits.fc"),
            (r"kernel|scale", "weight"),
        ],
        [
            (r"(?:query|key|value)\.kernel", (1, 2, 0)),  # (D, heads, D_h) -> (heads, D_h, D)
            (r"out\.kernel", (2, 0, 1)),  # (heads, D_h, D) -> (D, heads, D_h)
            (r"(?:embedding|conv\w*)\.kernel", (3, 2, 0, 1)),  # (P, P, in, out) -> (out, in, P, P)
            (r"kernel", (1, 0)),  # (in, out) -> (out, in)
        ],
    ),
]
