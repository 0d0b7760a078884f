"""PyTorch's own samples: for every op that exists here, the inputs PyTorch tests its op with, run through both.

Values, dtypes, every gradient (for a random `grad_output`) and what is written into running statistics must agree, to
1e-10 of the largest entry. A sample is left out only for a reason that its row of the table gives.
`pytest -s -m opinfo` prints, for each op, the samples run and left out, the reasons, and the largest error.
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

torch = pytest.importorskip("torch")
op_db = pytest.importorskip("torch.testing._internal.common_methods_invocations").op_db  # it needs expecttest

pytestmark = [pytest.mark.opinfo, pytest.mark.filterwarnings("ignore::UserWarning")]  # PyTorch's, on its own samples

TOLERANCE = 1e-10
MOST = 100  # samples an op, evenly spaced among PyTorch's

Rule = Callable[..., str | None]
"""From a sample's input and arguments, the reason to leave it out, or None."""


@dataclass(frozen=True)
class Row:
    """How an op of PyTorch is spelled here."""

    run: Callable[..., Any]  # takes what PyTorch's op takes, Tensors in place of its tensors
    skip: tuple[Rule, ...] = ()
    instead: Callable[..., Any] | None = None  # another function of PyTorch to run on this op's samples


# Why a sample may be left out -----------------------------------------------------------------------------------------


def given(*names: str) -> Rule:
    """An argument that is not supported."""

    def rule(*_: Any, **options: Any) -> str | None:
        return next((f"{name}= is not supported" for name in names if name in options), None)

    return rule


def two_numbers(a: Any, b: Any, **_: Any) -> str | None:
    tensors = isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor)
    return None if tensors else "two Python numbers, no tensor"


def number_first(a: Any, b: Any) -> str | None:
    return None if isinstance(a, torch.Tensor) else "a Python number first, whose reflected operation needs a tensor"


def no_correction(*_: Any, **options: Any) -> str | None:
    return "correction=None" if options.get("correction", 1) is None else None


def empty_among_others(tensors: Any, *_: Any, **__: Any) -> str | None:
    shapes = {t.shape for t in tensors}
    return "an empty 1-D tensor among others, which PyTorch overlooks" if len(shapes) > 1 and (0,) in shapes else None


def other_axes(x: Any, dim: int, index: Any) -> str | None:
    return None if x.ndim >= index.ndim else "an index with more axes than the input"


def not_square(x: Any) -> str | None:
    return None if x.shape[0] == x.shape[1] else "einsum's diagonals are of square matrices"


def indices_too(*_: Any, return_indices: bool, **__: Any) -> str | None:
    return "return_indices=True is not supported" if return_indices else None


def list_of_one(*arguments: Any) -> str | None:
    short = any(isinstance(value, list | tuple) and len(value) < 2 for value in arguments)
    return "a list of less than two sizes for height and width" if short else None


def not_an_image(x: Any, *_: Any, **__: Any) -> str | None:
    return None if x.ndim == 4 else "only images (N, C, H, W)"


def own_scales(*_: Any, **options: Any) -> str | None:
    scales = [options.get(name) for name in ("scale_factors", "scales_h", "scales_w")]
    return "scales besides the size" if any(scale is not None for scale in scales) else None


def negative_width(x: Any, widths: Any, mode: str) -> str | None:
    return "negative widths" if min(widths) < 0 else None


def no_channels(x: Any, *_: Any, **__: Any) -> str | None:
    return None if x.ndim > 1 else "no channel axis"


def other_norm(*_: Any, p: float = 2.0, **__: Any) -> str | None:
    return None if p == 2 else "only p=2"


def unknown_classes(*_: Any, num_classes: int) -> str | None:
    return "num_classes=-1" if num_classes < 0 else None


def at_random(*_: Any, training: bool = True, **options: Any) -> str | None:
    p = options.get("p", options.get("dropout_p", 0.5))
    return "dropout draws other random numbers" if training and 0 < p < 1 else None


# The table ------------------------------------------------------------------------------------------------------------


def reflected(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, other: operation(other, x)


def clamp(x: Any, min_val: float | None = -1.0, max_val: float | None = 1.0) -> Any:
    return x.clamp(min_val, max_val)


def bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = minigrad.einsum("...i,oij,...j->...o", x, weight, y)
    return product if bias is None else product + bias


def max_pool2d(x: Tensor, return_indices: bool, **options: Any) -> Tensor:
    return F.max_pool2d(x, **options)


def antialiased(x: Tensor, output_size: Any, align_corners: bool, **no_scales: Any) -> Tensor:
    return F.interpolate(x, output_size, mode="bilinear", align_corners=align_corners, antialias=True)


TABLE: dict[str, Row] = {
    # elementwise
    "abs": Row(minigrad.abs),
    "add": Row(operator.add, skip=(two_numbers, given("alpha"))),
    "sub": Row(operator.sub, skip=(two_numbers, given("alpha"))),
    "mul": Row(operator.mul, skip=(two_numbers,)),
    "div.no_rounding_mode": Row(operator.truediv, skip=(two_numbers,)),
    "neg": Row(operator.neg),
    "pow": Row(operator.pow, skip=(two_numbers,)),
    "__radd__": Row(reflected(operator.add), skip=(number_first,)),
    "__rsub__": Row(reflected(operator.sub), skip=(number_first,)),
    "__rmul__": Row(reflected(operator.mul), skip=(number_first,)),
    "__rdiv__": Row(reflected(operator.truediv), skip=(number_first,)),
    "__rpow__": Row(reflected(operator.pow), skip=(number_first,)),
    "exp": Row(minigrad.exp),
    "log": Row(minigrad.log),
    "sqrt": Row(minigrad.sqrt),
    "tanh": Row(minigrad.tanh),
    "sigmoid": Row(minigrad.sigmoid),
    "erf": Row(minigrad.erf),
    "maximum": Row(minigrad.maximum),
    "minimum": Row(minigrad.minimum),
    "max.binary": Row(minigrad.maximum),
    "min.binary": Row(minigrad.minimum),
    "nn.functional.hardtanh": Row(clamp, instead=clamp),  # PyTorch's samples for clamp have bounds that are tensors
    "nn.functional.relu6": Row(
        partial(clamp, min_val=None, max_val=6), instead=partial(clamp, min_val=None, max_val=6)
    ),
    "masked_fill": Row(minigrad.masked_fill),
    "where": Row(lambda a, condition, b: minigrad.where(condition, a, b)),
    "isfinite": Row(Tensor.isfinite),
    "eq": Row(operator.eq),
    "ne": Row(operator.ne),
    "lt": Row(operator.lt),
    "le": Row(operator.le),
    "gt": Row(operator.gt),
    "ge": Row(operator.ge),
    # reductions
    "sum": Row(minigrad.sum, skip=(given("dtype"),)),
    "mean": Row(minigrad.mean, skip=(given("dtype"),)),
    "var": Row(minigrad.var, skip=(given("unbiased"), no_correction)),
    "std": Row(minigrad.std, skip=(given("unbiased"), no_correction)),
    "var.unbiased": Row(lambda x, unbiased: x.var(correction=int(unbiased))),
    "std.unbiased": Row(lambda x, unbiased: x.std(correction=int(unbiased))),
    "amax": Row(minigrad.amax),
    "amin": Row(minigrad.amin),
    "prod": Row(minigrad.prod, skip=(given("dtype"),)),
    "logsumexp": Row(minigrad.logsumexp),
    "cumsum": Row(minigrad.cumsum, skip=(given("dtype"),)),
    "argmax": Row(minigrad.argmax),
    # shapes
    "reshape": Row(minigrad.reshape),
    "view": Row(minigrad.reshape),
    "flatten": Row(minigrad.flatten),
    "unflatten": Row(Tensor.unflatten),
    "permute": Row(minigrad.permute),
    "transpose": Row(minigrad.transpose),
    "movedim": Row(minigrad.movedim),
    "T": Row(lambda x: x.T),
    "mT": Row(lambda x: x.mT),
    "expand": Row(Tensor.expand),
    "broadcast_to": Row(Tensor.expand),
    "squeeze": Row(minigrad.squeeze),
    "squeeze.multiple": Row(minigrad.squeeze),
    "unsqueeze": Row(minigrad.unsqueeze),
    "split": Row(minigrad.split),
    "split.list_args": Row(minigrad.split),
    "split_with_sizes": Row(minigrad.split),
    "chunk": Row(minigrad.chunk),
    "unbind": Row(minigrad.unbind),
    "roll": Row(minigrad.roll),
    "flip": Row(lambda x, dims: minigrad.flip(x, dims)),
    "cat": Row(minigrad.cat, skip=(empty_among_others,)),
    "stack": Row(minigrad.stack),
    # entries
    "__getitem__": Row(operator.getitem),
    "gather": Row(minigrad.gather, skip=(other_axes,)),
    "index_select": Row(minigrad.index_select, skip=(other_axes,)),
    # products
    "matmul": Row(minigrad.matmul),
    "__rmatmul__": Row(Tensor.__rmatmul__),
    "mm": Row(operator.matmul),
    "bmm": Row(operator.matmul),
    "mv": Row(operator.matmul),
    "dot": Row(operator.matmul),
    "einsum": Row(lambda operands, equation: minigrad.einsum(equation, *operands)),
    "trace": Row(lambda x: minigrad.einsum("ii", x), skip=(not_square,)),
    "outer": Row(lambda a, b: minigrad.einsum("i,j", a, b)),
    "nn.functional.bilinear": Row(bilinear),
    "nn.functional.linear": Row(F.linear),
    # images
    "nn.functional.conv2d": Row(F.conv2d),
    "nn.functional.max_pool2d": Row(max_pool2d, skip=(indices_too,)),
    "nn.functional.avg_pool2d": Row(F.avg_pool2d, skip=(list_of_one,)),
    "nn.functional.adaptive_avg_pool2d": Row(F.adaptive_avg_pool2d),
    "nn.functional.interpolate.nearest": Row(F.interpolate, skip=(not_an_image,)),
    "nn.functional.interpolate.nearest-exact": Row(F.interpolate, skip=(not_an_image,)),
    "nn.functional.interpolate.bilinear": Row(F.interpolate),
    "nn.functional.interpolate.bicubic": Row(F.interpolate),
    "nn.functional.upsample_nearest": Row(F.interpolate, skip=(not_an_image,)),
    "nn.functional.upsample_bilinear": Row(partial(F.interpolate, mode="bilinear", align_corners=True)),
    "_upsample_bilinear2d_aa": Row(antialiased, skip=(own_scales,)),
    "nn.functional.pad.constant": Row(F.pad),
    "nn.functional.pad.reflect": Row(F.pad, skip=(negative_width,)),
    "nn.functional.pad.replicate": Row(F.pad, skip=(negative_width,)),
    "nn.functional.pad.circular": Row(F.pad, skip=(negative_width,)),
    "constant_pad_nd": Row(lambda x, pad, value=0: F.pad(x, pad, value=value)),
    # normalisation
    "nn.functional.layer_norm": Row(F.layer_norm),
    "native_layer_norm": Row(F.layer_norm, instead=lambda *inputs: torch.native_layer_norm(*inputs)[0]),
    "nn.functional.group_norm": Row(F.group_norm),
    "nn.functional.batch_norm": Row(F.batch_norm, skip=(no_channels,)),
    "nn.functional.normalize": Row(F.normalize, skip=(other_norm,)),
    # activations, attention, losses
    "nn.functional.relu": Row(F.relu),
    "nn.functional.gelu": Row(F.gelu),
    "nn.functional.silu": Row(F.silu),
    "softmax": Row(F.softmax),
    "nn.functional.softmin": Row(lambda x, dim: F.softmax(-x, dim)),
    "log_softmax": Row(F.log_softmax),
    "nn.functional.scaled_dot_product_attention": Row(F.scaled_dot_product_attention, skip=(at_random,)),
    "nn.functional.cross_entropy": Row(F.cross_entropy),
    "nn.functional.nll_loss": Row(F.cross_entropy, instead=torch.nn.functional.cross_entropy),
    "nn.functional.mse_loss": Row(F.mse_loss),
    "nn.functional.one_hot": Row(F.one_hot, skip=(unknown_classes,)),
    "nn.functional.dropout": Row(F.dropout, skip=(at_random,)),
    # new tensors
    "zeros": Row(minigrad.zeros),
    "ones": Row(minigrad.ones),
    "full": Row(minigrad.full),
    "zeros_like": Row(minigrad.zeros_like, skip=(given("dtype", "device"),)),
    "ones_like": Row(minigrad.ones_like, skip=(given("dtype", "device"),)),
    "full_like": Row(minigrad.full_like, skip=(given("dtype", "device"),)),
    "arange": Row(minigrad.arange, skip=(given("end"),)),
    "float": Row(Tensor.float, skip=(given("memory_format"),)),
    "double": Row(Tensor.double, skip=(given("memory_format"),)),
    "half": Row(Tensor.half, skip=(given("memory_format"),)),
    "item": Row(Tensor.item),
}
SMALL_SETS = {
    "where",
    "half",
}  # PyTorch fails to make the larger set for `where`, and rounds it to half precision twice
NOT_THERE = {
    "clamp",  # in the table as hardtanh and relu6
    "bfloat16", "cpu", "cuda", "to",  # moves; PyTorch's samples for `to` are about memory formats
    "drop_path", "residual", "residual_layer_norm", "standardize_weight", "window_attention",  # unknown to PyTorch
}  # fmt: skip
OPS = {f"{op.name}.{op.variant_test_name}".rstrip("."): op for op in op_db}


# The comparison -------------------------------------------------------------------------------------------------------


def samples_of(name: str) -> tuple[list[Any], Counter[str]]:
    """At most MOST of PyTorch's samples for an op, always the same ones; and the reasons why others are left out."""
    op = OPS[name]
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (PyTorch's samples draw from it)
    torch.manual_seed(0)
    dtype = torch.float64 if torch.float64 in op.dtypes else torch.int64
    make = op.sample_inputs if name in SMALL_SETS else op.reference_inputs
    samples, skipped = [], Counter[str]()
    for sample in make("cpu", dtype, requires_grad=op.supports_autograd and dtype.is_floating_point):
        reasons = (rule(sample.input, *sample.args, **sample.kwargs) for rule in TABLE[name].skip)
        reason = next(filter(None, reasons), None)
        if reason:
            skipped[reason] += 1
        else:
            samples.append(sample)
    return [samples[i * len(samples) // MOST] for i in range(MOST)] if len(samples) > MOST else samples, skipped


def both(value: Any, tensors: dict[int, Any]) -> tuple[Any, Any]:
    """An argument as minigrad takes it, and as PyTorch does. `tensors` collects the tensors, each once."""
    if isinstance(value, torch.Tensor):
        if id(value) not in tensors:
            mine = Tensor(value.detach().numpy(), requires_grad=value.requires_grad)  # keeps the memory layout
            tensors[id(value)] = mine, value.detach().clone().requires_grad_(value.requires_grad)
        return tensors[id(value)]
    if isinstance(value, list | tuple):
        pairs = [both(item, tensors) for item in value]
        kind = list if isinstance(value, list) else tuple
        return kind(mine for mine, _ in pairs), kind(theirs for _, theirs in pairs)
    if isinstance(value, torch.dtype):
        return np.dtype(str(value).removeprefix("torch.")), value
    return value, value


def error_of(mine: Any, theirs: Any) -> float:
    """The largest difference, as a share of the largest entry; shape, dtype, NaN and infinities must be the same."""
    actual, expected = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in (mine, theirs))
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.where(finite, 0, actual), np.where(finite, 0, expected))
    actual, expected = actual[finite].astype(np.float64), expected[finite].astype(np.float64)
    largest = abs(expected).max(initial=1e-2)  # what should be 0 may be of the size of a rounding error
    return float(abs(actual - expected).max(initial=0.0) / largest)


def compare(row: Row, op: Any, sample: Any) -> float:
    """Run a sample through both and return the largest error among values, gradients and inputs written to."""
    tensors: dict[int, tuple[Any, Any]] = {}
    pairs = [both(value, tensors) for value in (sample.input, *sample.args)]
    options = {name: both(value, tensors) for name, value in sample.kwargs.items()}
    theirs = (row.instead or op)(*(b for _, b in pairs), **{name: b for name, (_, b) in options.items()})
    mine = row.run(*(a for a, _ in pairs), **{name: a for name, (a, _) in options.items()})

    outputs = list(zip(mine, theirs, strict=True)) if isinstance(theirs, list | tuple) else [(mine, theirs)]
    errors = [error_of(a.data if isinstance(a, Tensor) else a, b) for a, b in outputs]
    for a, b in outputs:
        if isinstance(b, torch.Tensor):
            assert a.requires_grad == b.requires_grad
            if b.requires_grad:
                grad_output = torch.randn(b.shape, dtype=torch.float64).to(b.dtype)
                b.backward(grad_output, retain_graph=True)
                a.backward(Tensor(grad_output.numpy()), retain_graph=True)
    errors += [error_of(a.data, b) for a, b in tensors.values()]
    if not any(b.is_floating_point() and b.isnan().any() for _, b in tensors.values()):  # no gradient there is right
        for a, b in tensors.values():
            if b.requires_grad:
                zeros = np.zeros(b.shape)
                errors.append(error_of(zeros if a.grad is None else a.grad.data, zeros if b.grad is None else b.grad))
    return max(errors)


@pytest.fixture(scope="module")
def report():
    """Lines of a table, printed when all ops are through."""
    lines = [f"\n{'op':44} run  skipped  error"]
    yield lines
    print("\n".join(lines))


@pytest.mark.parametrize("name", TABLE)
@np.errstate(all="ignore")  # PyTorch's samples hold infinities too
def test_equals_pytorch(name, report):
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
    report.append(f"{name:44} {len(samples):3}  {skipped.total():7}  {worst:5.0e}  {reasons}")
    assert samples, f"no sample of {name} was run: {reasons}"


def test_every_op_is_in_the_table():
    public = {
        name
        for place, home in ((F, F.__name__), (Methods, Methods.__module__))
        for name, value in vars(place).items()
        if isfunction(value) and value.__module__ == home and not name.startswith("_")
    }
    assert public - {OPS[name].name.removeprefix("nn.functional.") for name in TABLE} == NOT_THERE
