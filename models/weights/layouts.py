"""L6: where the parameters of other implementations belong in the models here.

Each public implementation has its own names for the same arrays: a layout. Here a layout is a table of regular
expressions, applied in order, that turns its names into ours. Which layout a file has is not asked: it is the one whose
table finds the most of the model's parameters.
"""

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import numpy as np

from minigrad.backend import Array
from minigrad.nn import Module

Shape = tuple[int, ...]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Place:
    """Where an array of a file belongs: the parameter, or one part of it, and the order of its axes.

    Args:
        name: our parameter.
        part: 0, 1, 2: the array is the queries', the keys' or the values' third of the first axis; None: all of it.
        axes: as for `transpose`: what brings its axes into our order; None: they are in it.
    """

    name: str
    part: int | None = None
    axes: Shape | None = None

    def shape(self, whole: Shape) -> Shape:
        """The shape of this part of a parameter of shape `whole`."""
        return whole if self.part is None else (whole[0] // 3, *whole[1:])

    def fits(self, shape: Shape, whole: Shape) -> bool:
        """Whether an array of `shape` can go here: neighbouring axes may be merged, as (heads, D_h, D) -> (D, D),
        and axes of size 1 dropped, as (C, 1, 1) -> (C,); neither mixes up numbers."""
        if self.axes is not None:
            if len(self.axes) != len(shape):
                return False
            shape = tuple(shape[axis] for axis in self.axes)
        ends, wanted = list(accumulate(shape, mul, initial=1)), list(accumulate(self.shape(whole), mul, initial=1))
        return ends[-1] == wanted[-1] and set(wanted) <= set(ends)

    def arrange(self, array: Array, whole: Shape) -> Array:
        """The array in our order of axes and our shape.

        Raises:
            ValueError: it does not fit.
        """
        if not self.fits(array.shape, whole):
            raise ValueError(f"{self.name}: an array of shape {array.shape} cannot become {self.shape(whole)}")
        array = array if self.axes is None else array.transpose(self.axes)
        return array.reshape(self.shape(whole))


class Layout:
    """The names of one implementation.

    Args:
        name: whose names these are.
        rules: (pattern, replacement) in order; a pattern matches whole words between the dots, and slashes count as
            dots. `[q]`, `[k]` or `[v]` in a replacement says which third of our parameter an array is.
        axes: (pattern, axes): the first that matches tells how to transpose an array.
    """

    def __init__(self, name: str, rules: Iterable[Rule] = (), axes: Iterable[tuple[str, Shape]] = ()) -> None:
        self.name = name
        self.rules = [(_words(pattern), replacement) for pattern, replacement in rules]
        self.axes = [(_words(pattern), order) for pattern, order in axes]

    def place(self, name: str) -> Place:
        """Where an entry belongs, in a model that has the parameter."""
        name = _PREFIX.sub("", name.replace("/", "."))
        axes = next((order for pattern, order in self.axes if pattern.search(name)), None)
        for pattern, replacement in self.rules:
            name = pattern.sub(replacement, name)
        third = _THIRD.search(name)
        return Place(_THIRD.sub("", name), "qkv".index(third[1]) if third else None, axes)

    def places(self, names: Iterable[str], own: Container[str]) -> dict[str, Place | None]:
        """The place of each entry in a model with the parameters `own`; None: there is none, or it is taken."""
        found: dict[str, Place | None] = {}
        taken: set[tuple[str, int | None]] = set()
        for name in names:
            place = self.place(name)
            free = place.name in own and (place.name, place.part) not in taken
            found[name] = place if free else None
            taken.add((place.name, place.part))
        return found


def layout_of(names: Iterable[str], model: Module) -> Layout:
    """The layout in which most of the model's parameters have an entry; the first of them, where several are equal."""
    names, own = list(names), set(model.state_dict())
    return max(LAYOUTS, key=lambda layout: len(own & {layout.place(name).name for name in names}))


def places(names: Iterable[str], model: Module) -> dict[str, Place | None]:
    """The place of each entry of a file, or of each parameter of another implementation, in `model`; None: it has none.

    All names are given at once, as together they decide the layout: `layers.1.downsample` leads into stage 1 in timm's
    Swin, and out of stage 1 in Microsoft's and ours.
    """
    names = list(names)
    return layout_of(names, model).places(names, model.state_dict())


def to_canonical(entries: Mapping[str, Array], model: Module) -> dict[str, Array]:
    """The entries that belong in `model` by our names and in our shapes, queries, keys and values stacked.

    Every step is linear and only moves numbers, so it serves gradients as well as weights.

    Raises:
        ValueError: a shape does not fit, or of queries, keys and values some are there and some are not.
    """
    found = places(entries, model)
    return assemble([(place, entries[name]) for name, place in found.items() if place is not None], model)


def assemble(placed: Iterable[tuple[Place, Array]], model: Module) -> dict[str, Array]:
    """The arrays by the names and in the shapes of the model's parameters; q, k and v are concatenated.

    Raises:
        ValueError: as for `to_canonical`.
    """
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    canonical: dict[str, Array] = {}
    thirds: dict[str, dict[int, Array]] = {}
    for place, array in placed:
        array = place.arrange(array, shapes[place.name])
        if place.part is None:
            canonical[place.name] = array
        else:
            thirds.setdefault(place.name, {})[place.part] = array
    for name, parts in thirds.items():
        if len(parts) != 3:
            raise ValueError(f"{name}: needs q, k and v, got only {', '.join('qkv'[part] for part in sorted(parts))}")
        canonical[name] = np.concatenate([parts[0], parts[1], parts[2]])
    return canonical


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^.])(?:{pattern})(?![^.])")


def _numbers(make: Callable[..., str]) -> Callable[[re.Match[str]], str]:
    """A replacement that computes with the numbers matched."""
    return lambda match: make(*map(int, match.groups()))


# What DistributedDataParallel, torch.compile, Lightning (the attribute that holds the network), Hugging Face's classes
# with a head, and JAX's trees put before all names.
_PREFIX = re.compile(
    r"^(?:(?:module|_orig_mod|model|net|network|backbone|vit|swin|convnext|opt\.target|params|img)\.)+"
)
_THIRD = re.compile(r"\[([qkv])\]")

_HUGGING_FACE_BLOCK: list[Rule] = [
    (r"(?:attention\.)?attention\.(?:self\.)?(q|k|v)(?:_proj|uery|ey|alue)", r"attn.qkv[\1]"),
    (r"attention\.(?:o_proj|output\.dense)", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layernorm", "norm"),
    (r"classifier", "head"),
]

LAYOUTS = [
    Layout("minigrad, timm's ViT, Microsoft's Swin, Facebook's ConvNeXt, torchvision's ResNet"),
    Layout("timm's hybrid that is all stem", [(r"backbone\.(conv|norm)", r"backbone.stem.\1")]),
    Layout(
        "timm's Swin",
        [
            (r"layers\.(\d+)\.downsample", _numbers(lambda s: f"layers.{s - 1}.downsample")),
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
    Layout(
        "torchvision's Swin",
        [
            (r"features\.0\.0", "patch_embed.proj"),
            (r"features\.0\.2", "patch_embed.norm"),
            (r"features\.(\d*[13579])\.(\d+)", _numbers(lambda i, b: f"layers.{i // 2}.blocks.{b}")),
            (r"features\.(\d*[02468])", _numbers(lambda i: f"layers.{i // 2 - 1}.downsample")),
            (r"mlp\.0", "mlp.fc1"),
            (r"mlp\.3", "mlp.fc2"),
        ],
    ),
    Layout(
        "torchvision's ConvNeXt",
        [
            (r"features\.(\d*[13579])\.(\d+)", _numbers(lambda i, b: f"stages.{i // 2}.{b}")),
            (r"features\.(\d*[02468])", _numbers(lambda i: f"downsample_layers.{i // 2}")),
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
        "Hugging Face's ViT",
        [
            (r"embeddings\.cls_token", "cls_token"),
            (r"embeddings\.position_embeddings", "pos_embed"),
            (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
            (r"(?:encoder\.layer|layers)\.(\d+)", r"blocks.\1"),
            (r"pooler\.dense", "pre_logits.fc"),
            *_HUGGING_FACE_BLOCK,
        ],
    ),
    Layout(
        "Hugging Face's Swin",
        [
            (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
            (r"embeddings\.norm", "patch_embed.norm"),
            (r"encoder\.layers", "layers"),
            (r"attention\.(?:self|relative_position_bias)\.(relative_position_\w+)", r"attn.\1"),
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
                _numbers(lambda s, b: f"patch_embed.backbone.stages.{s - 1}.blocks.{b - 1}"),
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
