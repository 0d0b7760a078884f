"""PyTorch's own samples (OpInfo): the inputs with which PyTorch tests its ops, run by PyTorch and by minigrad.

Outputs, dtypes, gradients (for a random `grad_output`) and updated running statistics must agree to 1e-10, relative to
the maximum entry. An entry of the table skips samples only by rules that return the reason. `pytest -s -m opinfo`
prints for each op the numbers of samples run and skipped, the reasons, and the maximum error.
"""

import operator
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import isfunction
from typing import Any

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from minigrad.methods import Methods
from tests.compare import TOLERANCE, relative_error

torch = pytest.importorskip("torch")
op_db = pytest.importorskip("torch.testing._internal.common_methods_invocations").op_db  # this import needs expecttest

pytestmark = [pytest.mark.opinfo, pytest.mark.filterwarnings("ignore::UserWarning")]  # warnings of PyTorch

MAX_SAMPLES = 100  # per op, evenly spaced among PyTorch's

Rule = Callable[..., str | None]
"""A function of a sample's input and arguments that returns the reason to skip the sample, or None."""


@dataclass(frozen=True)
class Entry:
    """minigrad's equivalent of an op of PyTorch."""

    run: Callable[..., Any]  # takes the arguments of PyTorch's op, with Tensors of minigrad
    skip: tuple[Rule, ...] = ()
    instead: Callable[..., Any] | None = None  # the function of PyTorch to compare with, if not the op


# Reasons to skip a sample --------------------------------------------------------------------------------------------


def unsupported(*names: str) -> Rule:
    """Skip samples with one of these unsupported arguments."""

    def rule(*_: Any, **options: Any) -> str | None:
        return next((f"{name}= is not supported" for name in names if name in options), None)

    return rule


def two_python_numbers(a: Any, b: Any, **_: Any) -> str | None:
    tensors = isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor)
    return None if tensors else "two Python numbers, no tensor"


def python_number_first(a: Any, b: Any, **_: Any) -> str | None:
    return None if isinstance(a, torch.Tensor) else "a Python number as the first operand, where a tensor is needed"


def more_index_axes(x: Any, dim: int, index: Any) -> str | None:
    return None if x.ndim >= index.ndim else "an index with more axes than the input"


def with_gradient(a: Any, b: Any) -> str | None:
    wanted = any(isinstance(x, torch.Tensor) and x.requires_grad for x in (a, b))
    return "a gradient, which PyTorch does not implement" if wanted else None


def empty_index_of_more_axes(x: Any, dim: int, index: Any) -> str | None:
    return None if max(x.ndim, 1) >= index.ndim else "an empty index with more axes than the input"


def python_number_dividend(divisor: Any, dividend: Any) -> str | None:
    return None if isinstance(dividend, torch.Tensor) else "a gradient, which PyTorch does not implement"


def not_square(x: Any) -> str | None:
    return None if x.shape[0] == x.shape[1] else "einsum's diagonals are of square matrices"


def list_with_one_size(*arguments: Any) -> str | None:
    short = any(isinstance(value, list | tuple) and len(value) < 2 for value in arguments)
    return "a list with fewer than two sizes" if short else None


def not_an_image(x: Any, *_: Any, **__: Any) -> str | None:
    return None if x.ndim == 4 else "only images (N, C, H, W)"


def separate_scales(*_: Any, **options: Any) -> str | None:
    scales = [options.get(name) for name in ("scale_factors", "scales_h", "scales_w")]
    return "scales in addition to the size" if any(scale is not None for scale in scales) else None


def negative_width(x: Any, widths: Any, mode: str) -> str | None:
    return "negative widths" if min(widths) < 0 else None


def no_channels(x: Any, *_: Any, **__: Any) -> str | None:
    return None if x.ndim > 1 else "no channel axis"


def random_dropout(*_: Any, training: bool = True, **options: Any) -> str | None:
    p = options.get("p", options.get("dropout_p", 0.5))
    return "the random numbers of dropout differ" if training and 0 < p < 1 else None


# The table ------------------------------------------------------------------------------------------------------------


def reflected(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, other: operation(other, x)


def clamp(x: Any, min_val: float | None = -1.0, max_val: float | None = 1.0) -> Any:
    return x.clamp(min_val, max_val)


def bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = minigrad.einsum("...i,oij,...j->...o", x, weight, y)
    return product if bias is None else product + bias


def vector_norm(x: Tensor, ord: float = 2, **options: Any) -> Tensor:
    return x.norm(ord, **options)


def hardsigmoid(x: Any) -> Any:
    return torch.nn.functional.relu6(x + 3) / 6  # PyTorch's gradient of hardsigmoid has 1/6 in float32


def antialiased(x: Tensor, output_size: Any, align_corners: bool, **no_scales: Any) -> Tensor:
    return F.interpolate(x, output_size, mode="bilinear", align_corners=align_corners, antialias=True)


TABLE: dict[str, Entry] = {
    # elementwise
    "abs": Entry(minigrad.abs),
    "add": Entry(minigrad.add, skip=(two_python_numbers, python_number_first)),
    "sub": Entry(minigrad.sub, skip=(two_python_numbers, python_number_first)),
    "mul": Entry(operator.mul, skip=(two_python_numbers,)),
    "div.no_rounding_mode": Entry(operator.truediv, skip=(two_python_numbers,)),
    "neg": Entry(operator.neg),
    "div.floor_rounding": Entry(minigrad.div, skip=(two_python_numbers, python_number_first)),
    "div.trunc_rounding": Entry(minigrad.div, skip=(two_python_numbers, python_number_first)),
    "floor_divide": Entry(operator.floordiv, skip=(two_python_numbers, with_gradient)),
    "fmod": Entry(Tensor.fmod, skip=(two_python_numbers, python_number_first)),
    "remainder": Entry(operator.mod, skip=(two_python_numbers, python_number_first)),
    "__rmod__": Entry(reflected(operator.mod), skip=(python_number_dividend,)),
    "floor": Entry(minigrad.floor),
    "ceil": Entry(minigrad.ceil),
    "trunc": Entry(minigrad.trunc),
    "round": Entry(minigrad.round),
    "round.decimals_0": Entry(minigrad.round),
    "round.decimals_3": Entry(minigrad.round),
    "round.decimals_neg_3": Entry(minigrad.round),
    "sign": Entry(minigrad.sign),
    "sin": Entry(minigrad.sin),
    "cos": Entry(minigrad.cos),
    "rsqrt": Entry(minigrad.rsqrt),
    "square": Entry(minigrad.square),
    "lerp": Entry(minigrad.lerp),
    "expm1": Entry(minigrad.expm1),
    "log1p": Entry(minigrad.log1p),
    "pow": Entry(operator.pow, skip=(two_python_numbers,)),
    "__radd__": Entry(reflected(operator.add), skip=(python_number_first,)),
    "__rsub__": Entry(reflected(operator.sub), skip=(python_number_first,)),
    "__rmul__": Entry(reflected(operator.mul), skip=(python_number_first,)),
    "__rdiv__": Entry(reflected(operator.truediv), skip=(python_number_first,)),
    "__rpow__": Entry(reflected(operator.pow), skip=(python_number_first,)),
    "exp": Entry(minigrad.exp),
    "log": Entry(minigrad.log),
    "sqrt": Entry(minigrad.sqrt),
    "tanh": Entry(minigrad.tanh),
    "sigmoid": Entry(minigrad.sigmoid),
    "erf": Entry(minigrad.erf),
    "maximum": Entry(minigrad.maximum),
    "minimum": Entry(minigrad.minimum),
    "max.binary": Entry(minigrad.maximum),
    "min.binary": Entry(minigrad.minimum),
    "clamp": Entry(minigrad.clamp),
    "clamp_min": Entry(lambda x, low: x.clamp(min=low)),
    "clamp_max": Entry(lambda x, high: x.clamp(max=high)),
    "nn.functional.hardtanh": Entry(clamp, instead=clamp),
    "nn.functional.relu6": Entry(
        partial(clamp, min_val=None, max_val=6), instead=partial(clamp, min_val=None, max_val=6)
    ),
    "masked_fill": Entry(minigrad.masked_fill),
    "where": Entry(lambda a, condition, b: minigrad.where(condition, a, b)),
    "isfinite": Entry(Tensor.isfinite),
    "isinf": Entry(Tensor.isinf),
    "isnan": Entry(Tensor.isnan),
    "isclose": Entry(Tensor.isclose),
    "allclose": Entry(Tensor.allclose),
    "equal": Entry(Tensor.equal),
    "logical_and": Entry(Tensor.logical_and),
    "logical_or": Entry(Tensor.logical_or),
    "logical_xor": Entry(Tensor.logical_xor),
    "logical_not": Entry(Tensor.logical_not),
    "any": Entry(minigrad.any),
    "all": Entry(minigrad.all),
    "nonzero": Entry(minigrad.nonzero),
    "eq": Entry(operator.eq),
    "ne": Entry(operator.ne),
    "lt": Entry(operator.lt),
    "le": Entry(operator.le),
    "gt": Entry(operator.gt),
    "ge": Entry(operator.ge),
    # reductions
    "sum": Entry(minigrad.sum),
    "mean": Entry(minigrad.mean),
    "var": Entry(minigrad.var),
    "std": Entry(minigrad.std),
    "var.unbiased": Entry(minigrad.var),
    "std.unbiased": Entry(minigrad.std),
    "amax": Entry(minigrad.amax),
    "amin": Entry(minigrad.amin),
    "prod": Entry(minigrad.prod),
    "logsumexp": Entry(minigrad.logsumexp),
    "cumsum": Entry(minigrad.cumsum),
    "cumprod": Entry(minigrad.cumprod),
    "argmax": Entry(minigrad.argmax),
    "argmin": Entry(minigrad.argmin),
    "max.reduction_no_dim": Entry(minigrad.max),
    "min.reduction_no_dim": Entry(minigrad.min),
    "max.reduction_with_dim": Entry(minigrad.max),
    "min.reduction_with_dim": Entry(minigrad.min),
    "norm": Entry(minigrad.norm),
    "norm.fro": Entry(minigrad.norm),
    "norm.inf": Entry(minigrad.norm),
    "linalg.vector_norm": Entry(vector_norm),
    "sort": Entry(minigrad.sort),
    "argsort": Entry(minigrad.argsort),
    "topk": Entry(minigrad.topk),
    # shapes
    "reshape": Entry(minigrad.reshape),
    "view": Entry(minigrad.reshape),
    "flatten": Entry(minigrad.flatten),
    "unflatten": Entry(Tensor.unflatten),
    "permute": Entry(minigrad.permute),
    "transpose": Entry(minigrad.transpose),
    "movedim": Entry(minigrad.movedim),
    "T": Entry(lambda x: x.T),
    "mT": Entry(lambda x: x.mT),
    "expand": Entry(Tensor.expand),
    "broadcast_to": Entry(Tensor.expand),
    "squeeze": Entry(minigrad.squeeze),
    "squeeze.multiple": Entry(minigrad.squeeze),
    "unsqueeze": Entry(minigrad.unsqueeze),
    "split": Entry(minigrad.split),
    "split.list_args": Entry(minigrad.split),
    "split_with_sizes": Entry(minigrad.split),
    "chunk": Entry(minigrad.chunk),
    "unbind": Entry(minigrad.unbind),
    "roll": Entry(minigrad.roll),
    "flip": Entry(lambda x, dims: minigrad.flip(x, dims)),
    "cat": Entry(minigrad.cat),
    "stack": Entry(minigrad.stack),
    # entries
    "__getitem__": Entry(operator.getitem),
    "gather": Entry(minigrad.gather, skip=(empty_index_of_more_axes,)),
    "index_select": Entry(minigrad.index_select, skip=(more_index_axes,)),
    "scatter": Entry(minigrad.scatter, skip=(unsupported("reduce"),)),
    "scatter_add": Entry(minigrad.scatter_add),
    "nn.functional.embedding": Entry(
        lambda weight, index, **options: F.embedding(index, weight, **options),
        skip=(unsupported("max_norm", "scale_grad_by_freq"),),
    ),
    # products
    "matmul": Entry(minigrad.matmul),
    "__rmatmul__": Entry(Tensor.__rmatmul__),
    "mm": Entry(minigrad.mm),
    "bmm": Entry(minigrad.bmm),
    "mv": Entry(minigrad.mv),
    "dot": Entry(minigrad.dot),
    "addmm": Entry(minigrad.addmm),
    "baddbmm": Entry(minigrad.baddbmm),
    "einsum": Entry(lambda operands, equation: minigrad.einsum(equation, *operands)),
    "trace": Entry(lambda x: minigrad.einsum("ii", x), skip=(not_square,)),
    "outer": Entry(minigrad.outer),
    "nn.functional.bilinear": Entry(bilinear),
    "nn.functional.linear": Entry(F.linear),
    # images
    "nn.functional.conv1d": Entry(F.conv1d),
    "nn.functional.conv2d": Entry(F.conv2d),
    "nn.functional.conv_transpose2d": Entry(F.conv_transpose2d),
    "nn.functional.unfold": Entry(F.unfold),
    "nn.functional.max_pool2d": Entry(F.max_pool2d),
    "nn.functional.avg_pool2d": Entry(F.avg_pool2d, skip=(list_with_one_size,)),
    "nn.functional.adaptive_avg_pool2d": Entry(F.adaptive_avg_pool2d),
    "nn.functional.interpolate.nearest": Entry(F.interpolate, skip=(not_an_image,)),
    "nn.functional.interpolate.nearest-exact": Entry(F.interpolate, skip=(not_an_image,)),
    "nn.functional.interpolate.bilinear": Entry(F.interpolate),
    "nn.functional.interpolate.bicubic": Entry(F.interpolate),
    "nn.functional.upsample_nearest": Entry(F.interpolate, skip=(not_an_image,)),
    "nn.functional.upsample_bilinear": Entry(partial(F.interpolate, mode="bilinear", align_corners=True)),
    "_upsample_bilinear2d_aa": Entry(antialiased, skip=(separate_scales,)),
    "nn.functional.pad.constant": Entry(F.pad),
    "nn.functional.pad.reflect": Entry(F.pad, skip=(negative_width,)),
    "nn.functional.pad.replicate": Entry(F.pad, skip=(negative_width,)),
    "nn.functional.pad.circular": Entry(F.pad, skip=(negative_width,)),
    "constant_pad_nd": Entry(lambda x, pad, value=0: F.pad(x, pad, value=value)),
    # normalisation
    "nn.functional.layer_norm": Entry(F.layer_norm),
    "native_layer_norm": Entry(F.layer_norm, instead=lambda *inputs: torch.native_layer_norm(*inputs)[0]),
    "nn.functional.group_norm": Entry(F.group_norm),
    "nn.functional.batch_norm": Entry(F.batch_norm, skip=(no_channels,)),
    "nn.functional.normalize": Entry(F.normalize),
    # activations, attention, losses
    "nn.functional.relu": Entry(F.relu),
    "nn.functional.gelu": Entry(F.gelu),
    "nn.functional.silu": Entry(F.silu),
    "nn.functional.leaky_relu": Entry(F.leaky_relu),
    "nn.functional.elu": Entry(F.elu),
    "nn.functional.softplus": Entry(F.softplus),
    "nn.functional.hardsigmoid": Entry(F.hardsigmoid, instead=hardsigmoid),
    "nn.functional.hardswish": Entry(F.hardswish),
    "nn.functional.cosine_similarity": Entry(F.cosine_similarity),
    "softmax": Entry(F.softmax),
    "softmax.with_dtype": Entry(F.softmax),
    "log_softmax.with_dtype": Entry(F.log_softmax),
    "nn.functional.softmin": Entry(lambda x, dim: F.softmax(-x, dim)),
    "log_softmax": Entry(F.log_softmax),
    "nn.functional.scaled_dot_product_attention": Entry(F.scaled_dot_product_attention, skip=(random_dropout,)),
    "nn.functional.cross_entropy": Entry(F.cross_entropy),
    "nn.functional.nll_loss": Entry(F.nll_loss),
    "nn.functional.l1_loss": Entry(F.l1_loss),
    "nn.functional.smooth_l1_loss": Entry(F.smooth_l1_loss),
    "nn.functional.huber_loss": Entry(F.huber_loss),
    "nn.functional.binary_cross_entropy": Entry(F.binary_cross_entropy),
    "nn.functional.binary_cross_entropy_with_logits": Entry(F.binary_cross_entropy_with_logits),
    "nn.functional.kl_div": Entry(F.kl_div),
    "nn.functional.mse_loss": Entry(F.mse_loss),
    "nn.functional.one_hot": Entry(F.one_hot),
    "nn.functional.dropout": Entry(F.dropout, skip=(random_dropout,)),
    # views and copies
    "view_as": Entry(Tensor.view_as),
    "reshape_as": Entry(Tensor.reshape_as),
    "expand_as": Entry(Tensor.expand_as),
    "t": Entry(Tensor.t),
    "narrow": Entry(Tensor.narrow),
    "select": Entry(Tensor.select),
    "tril": Entry(Tensor.tril),
    "triu": Entry(Tensor.triu),
    "repeat": Entry(Tensor.repeat),
    "clone": Entry(Tensor.clone, skip=(unsupported("memory_format"),)),
    "contiguous": Entry(Tensor.contiguous, skip=(unsupported("memory_format"),)),
    # new tensors
    "zeros": Entry(minigrad.zeros),
    "ones": Entry(minigrad.ones),
    "full": Entry(minigrad.full),
    "zeros_like": Entry(minigrad.zeros_like, skip=(unsupported("dtype", "device"),)),
    "ones_like": Entry(minigrad.ones_like, skip=(unsupported("dtype", "device"),)),
    "full_like": Entry(minigrad.full_like, skip=(unsupported("dtype", "device"),)),
    "arange": Entry(minigrad.arange, skip=(unsupported("end"),)),
    "new_zeros": Entry(Tensor.new_zeros),
    "new_ones": Entry(Tensor.new_ones),
    "new_full": Entry(Tensor.new_full),
    "bool": Entry(Tensor.bool, skip=(unsupported("memory_format"),)),
    "int": Entry(Tensor.int, skip=(unsupported("memory_format"),)),
    "long": Entry(Tensor.long, skip=(unsupported("memory_format"),)),
    "float": Entry(Tensor.float, skip=(unsupported("memory_format"),)),
    "double": Entry(Tensor.double, skip=(unsupported("memory_format"),)),
    "half": Entry(Tensor.half, skip=(unsupported("memory_format"),)),
    "item": Entry(Tensor.item),
    # further names
    "acos": Entry(minigrad.acos),
    "addmv": Entry(minigrad.addmv),
    "aminmax": Entry(minigrad.aminmax),
    "argwhere": Entry(minigrad.argwhere),
    "asin": Entry(minigrad.asin),
    "atan": Entry(minigrad.atan),
    "atan2": Entry(minigrad.atan2),
    "bincount": Entry(minigrad.bincount),
    "bitwise_not": Entry(minigrad.bitwise_not),
    "cartesian_prod": Entry(minigrad.cartesian_prod),
    "nn.functional.channel_shuffle": Entry(F.channel_shuffle),
    "column_stack": Entry(minigrad.column_stack),
    "cosh": Entry(minigrad.cosh),
    "nn.functional.cosine_embedding_loss": Entry(F.cosine_embedding_loss),
    "count_nonzero": Entry(minigrad.count_nonzero),
    "cross": Entry(minigrad.cross),
    "deg2rad": Entry(minigrad.deg2rad),
    "diag": Entry(minigrad.diag),
    "diagonal": Entry(minigrad.diagonal),
    "dist": Entry(minigrad.dist),
    "exp2": Entry(minigrad.exp2),
    "fliplr": Entry(minigrad.fliplr),
    "flipud": Entry(minigrad.flipud),
    "frac": Entry(minigrad.frac),
    "nn.functional.glu": Entry(F.glu),
    "hstack": Entry(minigrad.hstack),
    "inner": Entry(minigrad.inner),
    "isin": Entry(minigrad.isin),
    "kron": Entry(minigrad.kron),
    "block_diag": Entry(minigrad.block_diag),
    "log10": Entry(minigrad.log10),
    "log2": Entry(minigrad.log2),
    "logaddexp": Entry(minigrad.logaddexp),
    "nn.functional.logsigmoid": Entry(F.logsigmoid),
    "nn.functional.margin_ranking_loss": Entry(F.margin_ranking_loss),
    "masked_select": Entry(minigrad.masked_select),
    "nn.functional.mish": Entry(F.mish),
    "nn.functional.multilabel_soft_margin_loss": Entry(F.multilabel_soft_margin_loss),
    "nanmean": Entry(minigrad.nanmean),
    "nansum": Entry(minigrad.nansum),
    "nn.functional.pairwise_distance": Entry(F.pairwise_distance),
    "nn.functional.pixel_shuffle": Entry(F.pixel_shuffle),
    "nn.functional.pixel_unshuffle": Entry(F.pixel_unshuffle),
    "rad2deg": Entry(minigrad.rad2deg),
    "ravel": Entry(minigrad.ravel),
    "reciprocal": Entry(minigrad.reciprocal),
    "nn.functional.rms_norm": Entry(F.rms_norm),
    "nn.functional.selu": Entry(F.selu),
    "sinh": Entry(minigrad.sinh),
    "nn.functional.softsign": Entry(F.softsign),
    "std_mean": Entry(minigrad.std_mean),
    "take": Entry(minigrad.take),
    "tan": Entry(minigrad.tan),
    "nn.functional.tanhshrink": Entry(F.tanhshrink),
    "tensor_split": Entry(minigrad.tensor_split),
    "tile": Entry(minigrad.tile),
    "nn.functional.triplet_margin_loss": Entry(F.triplet_margin_loss),
    "unique": Entry(minigrad.unique),
    "unique_consecutive": Entry(minigrad.unique_consecutive),
    "var_mean": Entry(minigrad.var_mean),
    "vstack": Entry(minigrad.vstack),
    "short": Entry(Tensor.short, skip=(unsupported("memory_format"),)),
    "bitwise_and": Entry(minigrad.bitwise_and, skip=(python_number_first,)),
    "bitwise_or": Entry(minigrad.bitwise_or, skip=(python_number_first,)),
    "bitwise_xor": Entry(minigrad.bitwise_xor, skip=(python_number_first,)),
    "nan_to_num": Entry(minigrad.nan_to_num),
    "nn.functional.hardshrink": Entry(F.hardshrink),
    "nn.functional.softshrink": Entry(F.softshrink),
    "nn.functional.threshold": Entry(F.threshold),
    "nn.functional.hinge_embedding_loss": Entry(F.hinge_embedding_loss),
    "nn.functional.gaussian_nll_loss": Entry(F.gaussian_nll_loss),
    "nn.functional.soft_margin_loss": Entry(F.soft_margin_loss),
    "repeat_interleave": Entry(minigrad.repeat_interleave, skip=(unsupported("output_size"),)),
    "diag_embed": Entry(minigrad.diag_embed, skip=(unsupported("dim1"),)),
}
SMALL_SAMPLE_SETS = {"clamp", "where", "half"}  # PyTorch's larger sets fail, and round to half precision twice
NOT_IN_TABLE = {
    "clip", "moveaxis", "swapaxes", "swapdims", "nelement",  # aliases
    "bfloat16", "cpu", "cuda", "to", "type_as",  # conversions; PyTorch's samples for `to` test memory formats
    "fold", "new_tensor",  # not in op_db
    "new_empty",  # values are not defined
    "dim", "numel", "size", "stride", "is_contiguous", "is_floating_point",  # no tensors
    "drop_path", "group_norm_relu", "residual", "residual_layer_norm",  # not in PyTorch
    "global_response_norm", "standardize_weight", "window_attention",
    # More aliases.
    "absolute", "arccos", "arcsin", "arctan", "arctan2", "divide", "fix", "greater", "greater_equal", "less",
    "less_equal", "multiply", "ndimension", "negative", "not_equal", "sgn", "subtract", "true_divide", "type",
    "element_size", "dropout1d", "dropout2d", "gumbel_softmax",
    # Most samples have arguments or 0-d tensors that are not supported: compared in test_lines.py.
    "adaptive_avg_pool1d", "addcdiv", "addcmul", "avg_pool1d", "celu", "cummax", "cummin", "diff",
    "histc", "index_add", "index_copy", "index_fill", "instance_norm", "kthvalue", "logit", "max_pool1d", "median",
    "poisson_nll_loss", "prelu", "quantile", "take_along_dim",
}  # fmt: skip
OPS = {f"{op.name}.{op.variant_test_name}".rstrip("."): op for op in op_db}


# The comparison -------------------------------------------------------------------------------------------------------


def samples_of(name: str) -> tuple[list[Any], Counter[str]]:
    """At most MAX_SAMPLES samples for an op, the same in each run; and the number of skipped samples per reason."""
    op = OPS[name]
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (PyTorch's samples draw from it)
    torch.manual_seed(0)
    dtype = torch.float64 if torch.float64 in op.dtypes else torch.int64
    make = op.sample_inputs if name in SMALL_SAMPLE_SETS else op.reference_inputs
    samples, skipped = [], Counter[str]()
    for sample in make("cpu", dtype, requires_grad=op.supports_autograd and dtype.is_floating_point):
        reasons = (rule(sample.input, *sample.args, **sample.kwargs) for rule in TABLE[name].skip)
        reason = next(filter(None, reasons), None)
        if reason:
            skipped[reason] += 1
        else:
            samples.append(sample)
    if len(samples) > MAX_SAMPLES:
        samples = [samples[i * len(samples) // MAX_SAMPLES] for i in range(MAX_SAMPLES)]
    return samples, skipped


def to_both(value: Any, tensors: dict[int, Any]) -> tuple[Any, Any]:
    """An argument for minigrad and for PyTorch. `tensors` collects each tensor once, by id."""
    if isinstance(value, torch.Tensor):
        if id(value) not in tensors:
            actual = Tensor(value.detach().numpy(), requires_grad=value.requires_grad)  # keeps the memory layout
            tensors[id(value)] = actual, value.detach().clone().requires_grad_(value.requires_grad)
        return tensors[id(value)]
    if isinstance(value, list | tuple):
        pairs = [to_both(item, tensors) for item in value]
        kind = list if isinstance(value, list) else tuple
        return kind(actual for actual, _ in pairs), kind(expected for _, expected in pairs)
    if isinstance(value, torch.dtype):
        return np.dtype(str(value).removeprefix("torch.")), value
    return value, value


def error_of(actual: Any, expected: Any) -> float:
    """The relative error of an array or number. Shapes and dtypes must be equal."""
    actual, expected = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in (actual, expected))
    assert actual.dtype == expected.dtype
    return relative_error(actual.astype(np.float64), expected.astype(np.float64), floor=1e-2)


def compare(entry: Entry, op: Any, sample: Any) -> float:
    """Run a sample in both libraries and return the maximum error of outputs, gradients and inputs."""
    tensors: dict[int, tuple[Any, Any]] = {}
    pairs = [to_both(value, tensors) for value in (sample.input, *sample.args)]
    options = {name: to_both(value, tensors) for name, value in sample.kwargs.items()}
    expected = (entry.instead or op)(*(b for _, b in pairs), **{name: b for name, (_, b) in options.items()})
    actual = entry.run(*(a for a, _ in pairs), **{name: a for name, (a, _) in options.items()})

    outputs = list(zip(actual, expected, strict=True)) if isinstance(expected, list | tuple) else [(actual, expected)]
    errors = [error_of(a.data if isinstance(a, Tensor) else a, b) for a, b in outputs]
    for a, b in outputs:
        if isinstance(b, torch.Tensor):
            assert a.requires_grad == b.requires_grad
            if b.requires_grad:
                grad_output = torch.randn(b.shape, dtype=torch.float64).to(b.dtype)
                b.backward(grad_output, retain_graph=True)
                a.backward(Tensor(grad_output.numpy()), retain_graph=True)
    errors += [error_of(a.data, b) for a, b in tensors.values()]
    if any(b.is_floating_point() and b.isnan().any() for _, b in tensors.values()):
        return max(errors)  # gradients at NaN are arbitrary
    for a, b in tensors.values():
        if b.requires_grad:
            zeros = np.zeros(b.shape)
            errors.append(error_of(zeros if a.grad is None else a.grad.data, zeros if b.grad is None else b.grad))
    return max(errors)


@pytest.fixture(scope="module")
def table():
    """The lines of the report, printed after the last op."""
    lines = [f"\n{'op':44} run  skipped  error"]
    yield lines
    print("\n".join(lines))


@pytest.mark.parametrize("name", TABLE)
@np.errstate(all="ignore")  # PyTorch's samples contain infinities
def test_ops_equal_pytorch_on_its_samples(name, table):
    samples, skipped = samples_of(name)
    worst = 0.0
    for sample in samples:
        try:
            error = compare(TABLE[name], OPS[name], sample)
            assert error <= TOLERANCE
        except Exception as exception:
            exception.add_note(f"{name} on {sample.summary()}")
            raise
        worst = max(worst, error)
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
    table.append(f"{name:44} {len(samples):3}  {skipped.total():7}  {worst:5.0e}  {reasons}")
    assert samples, f"no sample of {name} was run: {reasons}"


ACCEPTED = {  # error inputs of PyTorch that are valid here
    "arange": "a step away from the end gives an empty tensor, as in NumPy",
    "masked_fill": "a value with axes that broadcasts", "nn.functional.hardtanh": "min above max, as in clamp",
    "flipud": "a 0-d tensor", "nn.functional.softshrink": "a negative lambd",
    "nn.functional.triplet_margin_loss": "inputs that broadcast, a negative margin",
    "roll": "dim 0 of a 0-d tensor", "scatter": "src of another dtype", "scatter_add": "src of another dtype",
}  # fmt: skip
PYTHON_NUMBERS = {  # whose error inputs are Python numbers in place of tensors, which these ops accept
    "add", "sub", "mul", "div.no_rounding_mode", "div.floor_rounding", "div.trunc_rounding", "floor_divide", "pow",
    "fmod", "remainder", "__radd__", "__rsub__", "__rmul__", "__rdiv__", "__rmod__", "__rpow__", "maximum", "minimum",
    "max.binary", "min.binary", "atan2", "bitwise_and", "bitwise_or", "bitwise_xor", "logaddexp",
    "clamp_min", "clamp_max", "logical_and", "logical_or", "logical_xor",
    "eq", "ne", "lt", "le", "gt", "ge",
}  # fmt: skip
OTHER_DEVICES = {"T", "where"}  # whose error inputs are only for a GPU
ERRORS = [
    name for name in TABLE
    if OPS[name].error_inputs_func and name not in {*ACCEPTED, *PYTHON_NUMBERS, *OTHER_DEVICES}
]  # fmt: skip


def is_unsupported(value: Any) -> bool:
    """True for complex tensors, and for more axes than NumPy allows."""
    return isinstance(value, torch.Tensor) and (value.is_complex() or value.ndim > 64)


@pytest.mark.parametrize("name", ERRORS)
def test_error_inputs_of_pytorch_are_refused(name):
    for error in OPS[name].error_inputs("cpu"):
        sample = error.sample_input
        if any(map(is_unsupported, [sample.input, *sample.args])) or isinstance(sample.input, int):
            continue
        inputs = [to_both(value, {})[0] for value in (sample.input, *sample.args)]
        options = {key: to_both(value, {})[0] for key, value in sample.kwargs.items()}
        with pytest.raises((ValueError, TypeError, IndexError, RuntimeError)):
            TABLE[name].run(*inputs, **options)


def test_every_op_is_in_the_table():
    methods = {name: value for base in Methods.__mro__ for name, value in vars(base).items()}
    public = {name for name, value in {**vars(F), **methods}.items() if isfunction(value) and name[0] != "_"}
    public = {name for name in public if not name.endswith("_")}  # in place: test_statements.py
    assert public - {OPS[name].name.removeprefix("nn.functional.") for name in TABLE} == NOT_IN_TABLE
