"""L6: the cost of a model: parameters, and multiply-accumulates (MACs), counted by tracing its ops.

A trace runs the model on meta arrays (`minigrad/backend/meta.py`), so tracing takes milliseconds and no memory, even
for a model larger than the memory of this machine. As in papers (many call a MAC a FLOP), MACs count matrix
products and convolutions; biases, norms, softmax, activations and pooling count as 0.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from math import prod
from typing import Any, NamedTuple

import numpy as np

from minigrad import Tensor, nn, no_grad
from minigrad.autograd.anomaly import Observer, observing
from minigrad.autograd.function import Function
from minigrad.backend import Array
from minigrad.backend.fast_paths import without_fast_paths
from minigrad.backend.meta import MetaArray
from minigrad.nn.hooks import KINDS
from minigrad.ops.attention import ScaledDotProductAttention
from minigrad.ops.checks import sides
from minigrad.ops.conv import Conv2d
from minigrad.ops.einsum import Einsum, make_plan
from minigrad.ops.matmul import Linear, MatMul
from minigrad.ops.window_attention import WindowAttention
from models.model import ImageModel, Size, image_size, prefixes
from models.vit import Attention

Shape = tuple[int, ...]


class Call(NamedTuple):
    """One op of a trace."""

    module: str  # the dotted name of the innermost module that ran the op; "" is the model itself
    op: str
    inputs: tuple[Shape, ...]
    output: Shape
    macs: int


def trace(module: nn.Module, shape: Sequence[int]) -> list[Call]:
    """The ops that `module` runs on an input of this shape, in order, in evaluation mode, without fast paths: as in
    papers, ViT's last block computes all tokens."""
    meta_module = _to_meta(module, {})
    tracer = _Tracer(meta_module)
    with no_grad(), without_fast_paths(), observing(tracer):
        meta_module(Tensor(MetaArray(shape, np.float32)))
    return tracer.calls


def output_shapes(model: ImageModel, indices: Sequence[int]) -> list[Shape]:
    """The shapes of the feature maps of these blocks, for one image of the default size of the model."""
    meta_model: Any = _to_meta(model, {})
    with no_grad():
        image = Tensor(MetaArray(_one_image(model, None), np.float32))
        return [y.shape for y in meta_model.forward_intermediates(image, indices, intermediates_only=True)]


def macs(model: ImageModel, img_size: Size | None = None) -> int:
    """Multiply-accumulates for one image, of the default size of the model or of `img_size`.

    Raises:
        ValueError: the model does not accept images of this size (create a ViT with `img_size=...`).
    """
    return sum(call.macs for call in trace(model, _one_image(model, img_size)))


def parameters(model: nn.Module) -> int:
    """The number of elements of all parameters."""
    return sum(parameter.data.size for parameter in model.parameters())


class Part(NamedTuple):
    """A row of a model's table: a block, or a module or parameter outside of the blocks."""

    name: str
    output: Shape | None  # the output of the last op; None for a parameter
    parameters: int
    macs: int


def parts(model: ImageModel, img_size: Size | None = None) -> list[Part]:
    """The blocks of the model and the modules around the blocks, in the order of the forward. The sums over all parts
    are `parameters(model)` and `macs(model, img_size)`."""
    listed = dict.fromkeys(name for section in model.sections() for name in section)

    def part_of(name: str) -> str:
        """The part to which a module or parameter of this name belongs."""
        around = list(prefixes(name))
        return next((prefix for prefix in around if prefix in listed), around[-1])

    outputs: dict[str, Shape] = {}
    learned, products = Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        learned[part_of(name)] += parameter.data.size
    for call in trace(model, _one_image(model, img_size)):
        outputs[part_of(call.module)] = call.output
        products[part_of(call.module)] += call.macs
    names = dict.fromkeys([*listed, *learned, *outputs])
    found = [Part(name, outputs.get(name), learned[name], products[name]) for name in names]
    return [part for part in found if part.parameters or part.macs]


# The cost of attention ------------------------------------------------------------------------------------------------


def msa_macs(h: int, w: int, C: int) -> int:
    """Equation (1) of the Swin paper, arXiv:2103.14030: attention between all tokens of an h x w map.

    For each token, C² MACs for each of the projections to q, k, v and output; for each pair of tokens, C for q kᵀ and
    C for the product with v:  Ω(MSA) = 4 hw C² + 2 (hw)² C
    """
    return 4 * h * w * C**2 + 2 * (h * w) ** 2 * C


def w_msa_macs(h: int, w: int, C: int, M: Size) -> int:
    """Equation (2): attention within windows of M x M, so M² pairs for each token:  Ω(W-MSA) = 4 hw C² + 2 M² hw C"""
    return 4 * h * w * C**2 + 2 * prod(sides(M)) * h * w * C


class AttentionCost(NamedTuple):
    """Attention in one block: size of the feature map, window size, and MACs by formula and as counted."""

    h: int
    w: int
    C: int
    M: Size
    msa: int
    msa_counted: int
    w_msa: int
    w_msa_counted: int


def attention_costs(model: ImageModel, img_size: Size | None = None) -> list[AttentionCost]:
    """For each stage of a Swin Transformer: attention in its first block, and ViT's attention on the same map."""
    costs: list[AttentionCost] = []
    calls = trace(model, _one_image(model, img_size))
    outputs = {call.module: call.output for call in calls}
    for name, block in model.blocks_by_name().items():
        attn: Any = block.attn  # type: ignore[attr-defined]
        _, h, w, C = outputs[name]
        M = attn.window(h, w)
        if costs and costs[-1][:4] == (h, w, C, M):  # the blocks of a stage cost the same
            continue
        msa_calls = trace(_vit_attention(C, attn.num_heads), (1, h * w, C))
        w_msa_calls = (call for call in calls if call.module.startswith(f"{name}.attn"))
        counted = sum(call.macs for call in msa_calls), sum(call.macs for call in w_msa_calls)
        costs.append(AttentionCost(h, w, C, M, msa_macs(h, w, C), counted[0], w_msa_macs(h, w, C, M), counted[1]))
    return costs


def _vit_attention(dim: int, num_heads: int) -> Attention:
    with nn.init.meta_init():
        return Attention(dim, num_heads, qkv_bias=True, attn_drop=0.0, proj_drop=0.0)


# Tracing --------------------------------------------------------------------------------------------------------------


class _Tracer(Observer):
    """Records each op with the module that runs it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.names = {id(inner): name for name, inner in module.named_modules()}

    def forward(self, node: Function, arrays: list[Any], output: Array) -> None:
        where = next(self.names[id(module)] for module in reversed(self.path) if id(module) in self.names)
        shapes = tuple(x.shape for x in arrays if hasattr(x, "shape"))
        count = _MACS.get(type(node))
        products = count(node, output, *arrays) if count else 0
        self.calls.append(Call(where, node.op_name, shapes, output.shape, products))


def _einsum_macs(op: Any, y: Array, *operands: Array) -> int:
    """MACs of the matrix products to which the equation is lowered."""
    terms, sizes = op.parsed.terms, op.parsed.sizes
    plan = make_plan(terms, op.parsed.output, tuple(tuple(sizes[label] for label in term) for term in terms))
    return sum(prod(pair.shape) * pair.a.shape[-2 if pair.a.swap else -1] for pair in plan.pairs if pair.contracts)


_MACS: dict[type[Function], Callable[..., int]] = {  # functions of an op, its output and its inputs
    Linear: lambda op, y, x, weight, bias: y.size * weight.shape[1],
    MatMul: lambda op, y, a, b: y.size * a.shape[-1],
    Einsum: _einsum_macs,
    Conv2d: lambda op, y, x, weight, bias: y.size * prod(weight.shape[1:]),  # (O, C / groups, KH, KW)
    ScaledDotProductAttention: lambda op, y, q, k, v, mask: (
        y.size // v.shape[-1] * k.shape[-2] * (q.shape[-1] + v.shape[-1])  # (..., L) by S pairs, E for q kᵀ, V for P v
    ),
    WindowAttention: lambda op, y, qkv, bias: 2 * y.size * prod(sides(op.windows[0])),  # M² keys for each token
}


def _to_meta(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy of the module and its submodules, in evaluation mode, with meta arrays as parameters and buffers."""
    if module not in copies:
        copied = copies[module] = copy(module)
        copied.training = copied.checkpointing = False
        for kind in KINDS:
            vars(copied).pop(kind, None)
        for name, value in list(vars(copied).items()):
            if isinstance(value, nn.Module):
                setattr(copied, name, _to_meta(value, copies))
            elif isinstance(value, Tensor):
                vars(copied)[name] = Tensor(MetaArray(value.shape, value.dtype))  # requires no gradient
    return copies[module]


def _one_image(model: ImageModel, img_size: Size | None) -> Shape:
    return 1, model.in_chans, *image_size(model.img_size if img_size is None else img_size)
