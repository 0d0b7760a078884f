"""The PyTorch lines of `tests/reference` on the GPU: kinds, shapes, dtypes, values and gradients as on the CPU.

Without a GPU, the arrays are those of `tests/cupy_on_cpu`. PyTorch is not needed.
"""

import inspect
import math
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from tests.reference.lines import LINES, NAMES
from tests.reference.statements import STATEMENTS, value_of

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # warnings of NumPy, at infinities
    pytest.mark.parametrize("device", ["cuda"], indirect=True),
]

TORCH_NAME = re.compile(r"torch\.(\w+)")
ELSEWHERE = ("cpu", "np.", "numpy", ".device", "is_cuda")  # statements about the host, NumPy's arrays, or the device
SUBJECTS = [lines for subject, lines in STATEMENTS.items() if subject != "values that are checked on the CPU alone"]


def described(value):
    """A value as kind, dtype and elements, with its Tensors on the host."""
    if isinstance(value, Exception):
        return type(value), None
    if isinstance(value, Tensor):
        host = value.detach().cpu().numpy()
        return (Tensor, value.requires_grad, host.dtype, host.shape), host
    if isinstance(value, tuple | list):
        pairs = [described(item) for item in value]
        return (type(value), [kind for kind, _ in pairs]), [elements for _, elements in pairs]
    return type(value), value


def assert_same(x, y):
    if isinstance(x, list):
        for a, b in zip(x, y, strict=True):
            assert_same(a, b)
    elif isinstance(x, np.ndarray | float):
        half = getattr(x, "dtype", None) in (np.float16, "bfloat16")
        wide = [np.asarray(a, complex if np.iscomplexobj(a) else float) for a in (x, y)]
        np.testing.assert_allclose(*wide, rtol=1e-2 if half else 1e-5, atol=1e-3 if half else 1e-5)
    else:
        assert x == y


def tensors_of(value):
    """The Tensors in a value."""
    if isinstance(value, tuple | list):
        return [x for item in value for x in tensors_of(item)]
    return [value] if isinstance(value, Tensor) else []


def on(device, value):
    """A function of the module minigrad, or a class of layers, whose results are on the device."""
    if isinstance(value, type) and issubclass(value, minigrad.nn.Module):
        return lambda *args, **options: value(*args, **options).to(device)
    if inspect.isfunction(value) and "device" in inspect.signature(value).parameters and "_like" not in value.__name__:
        return partial(value, device=device)
    return value


def evaluate(line, device, dtype=None):
    """The result of a line on the arrays NAMES, and the gradients of its sum."""
    names = {name: Tensor(x.copy()).to(device) for name, x in NAMES.items()}
    for name, x in names.items():
        x = x.to(dtype) if dtype and x.dtype == np.float32 else x
        names[name] = x.detach().requires_grad_(x.is_floating_point())
    used = {name: getattr(np if name.startswith("float") else minigrad, name) for name in TORCH_NAME.findall(line)}
    y = eval(line, {"torch": SimpleNamespace(**used), "F": minigrad.functional, "math": math, **names})
    assert {x.device.type for x in tensors_of(y)} <= {device}
    total = sum(x.double().sum() for x in tensors_of(y) if x.requires_grad)
    if isinstance(total, Tensor):
        total.backward()
    return y, [x.grad for x in names.values() if x.grad is not None]


def value_on(line, device):
    """The value of a line of statements, whose functions create tensors on the device."""
    minigrad.manual_seed(0)
    torch, nn, init = (
        SimpleNamespace(**{name: on(device, getattr(module, name)) for name in dir(module)})
        for module in (minigrad, minigrad.nn, minigrad.nn.init)
    )
    torch.nn, nn.init, nn.functional = nn, init, minigrad.functional
    try:
        return value_of(torch, line)
    finally:
        minigrad.set_grad_enabled(True)


@pytest.mark.parametrize("line", LINES)
def test_line_gives_on_the_gpu_what_the_cpu_gives(line, device):
    (kinds, values), (cpu_kinds, cpu_values) = described(evaluate(line, device)), described(evaluate(line, "cpu"))
    assert kinds == cpu_kinds
    assert_same(values, cpu_values)


@pytest.mark.parametrize("line", [x for lines in SUBJECTS for x in lines if not any(word in x for word in ELSEWHERE)])
def test_statement_gives_on_the_gpu_what_the_cpu_gives(line, device):
    ours, theirs = value_on(line, device), value_on(line, "cpu")
    (kinds, values), (cpu_kinds, cpu_values) = described(ours), described(theirs)
    assert kinds == cpu_kinds, repr(ours)
    assert_same(values, cpu_values)
    assert {x.device.type for x in tensors_of(ours)} <= {device}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("line", LINES)
def test_line_gives_in_16_bits_on_the_gpu_what_the_cpu_gives(line, dtype, device):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    (kinds, values), (cpu_kinds, cpu_values) = (described(evaluate(line, place, dtype)) for place in (device, "cpu"))
    assert kinds == cpu_kinds
    assert_same(values, cpu_values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
    "line",
    [
        "torch.bernoulli(p)",
        "torch.multinomial(p, 2)",
        "torch.multinomial(p, 2, replacement=True)",
        "torch.normal(p, p)",
        "torch.normal(p, 2.0)",
        "torch.normal(1.0, p)",
        "torch.rand_like(p)",
        "torch.randn_like(p)",
        "torch.randint_like(p, 9)",
        "p.uniform_(0, 2)",
        "p.normal_(0, 2)",
        "p.bernoulli_(0.3)",
        "torch.nn.functional.dropout(p, 0.5)",
        "torch.nn.functional.gumbel_softmax(p)",
    ],
)
def test_random_values_on_the_gpu_are_those_of_the_cpu(line, dtype, device):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    results = []
    for place in (device, "cpu"):
        minigrad.manual_seed(0)
        p = minigrad.tensor([[0.1, 0.5, 0.9], [0.4, 0.2, 0.7]]).to(place).to(dtype)
        y = eval(line, {"torch": minigrad, "p": p})
        assert y.device.type == place
        results.append(described(y))
    (kinds, values), (cpu_kinds, cpu_values) = results
    assert kinds == cpu_kinds
    assert_same(values, cpu_values)


def test_indices_and_values_of_the_host_are_copied_to_the_gpu(device):
    host = np.arange(12, dtype=np.float32).reshape(3, 4)
    x = Tensor(host).to(device)
    for index in (np.array([2, 0]), [2, 0], (slice(None), [1, 3]), np.array([True, False, True])):
        np.testing.assert_array_equal(x[index].cpu().numpy(), host[index])
    np.testing.assert_array_equal(x[Tensor(np.array([2, 0]))].cpu().numpy(), host[[2, 0]])
    x[[0, 2]] = minigrad.zeros(2, 4)
    np.testing.assert_array_equal(x.cpu().numpy(), host * [[0], [1], [0]])


def test_a_tensor_on_the_gpu_is_not_copied_there_again(device):
    x = minigrad.ones(3, device=device)
    assert x.to(device) is x and minigrad.as_tensor(x, device=device) is x


@pytest.mark.parametrize("names", [minigrad.tril_indices, minigrad.triu_indices])
def test_indices_of_a_triangle_on_the_gpu(names, device):
    indices = names(3, 4, device=device, dtype=np.int32)
    assert (indices.device.type, indices.dtype) == (device, np.int32)
    np.testing.assert_array_equal(indices.cpu().numpy(), names(3, 4).numpy())


def test_a_generator_serves_the_gpu(device):
    draws = [
        minigrad.rand(3, generator=minigrad.Generator(device=at).manual_seed(3), device=at) for at in (device, "cpu")
    ]
    np.testing.assert_array_equal(*(draw.cpu().numpy() for draw in draws))


def test_histc_of_bfloat16_has_exact_edges(device):
    pytest.importorskip("ml_dtypes")
    x = minigrad.arange(250.0, 300, 2, device=device).bfloat16()
    np.testing.assert_array_equal(
        x.histc(300, 0, 300).float().cpu().numpy(), x.float().histc(300, 0, 300).cpu().numpy()
    )
