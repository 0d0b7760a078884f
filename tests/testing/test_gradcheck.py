"""gradcheck and watch detect each kind of wrong backward; strategies draw arrays as their arguments specify."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.autograd.function import Function
from minigrad.testing import GradcheckError, arrays, axes, broadcastable_shapes, dtypes, gradcheck, shapes, watch
from minigrad.testing.strategies import _contiguous, _reversed, _strided, _transposed

X = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])


class Square(Function):
    """y = x²;  ∂x = ∂y · 2x.  Correct; each subclass has one error."""

    def forward(self, x):
        self.x = x
        return x * x

    def backward(self, grad_output):
        return grad_output * 2 * self.x


class WrongEntry(Square):
    def backward(self, grad_output):
        grad_x = super().backward(grad_output)
        grad_x[1, 2] *= 1.001
        return grad_x


class WritesInput(Square):
    def forward(self, x):
        y = super().forward(x)
        x[0, 0] += 1e-3
        return y


class WritesSavedInput(Square):
    def backward(self, grad_output):
        self.x *= 2
        return grad_output * self.x


class WritesGradOutput(Square):
    def backward(self, grad_output):
        grad_output *= 2 * self.x
        return grad_output


class WritesBuffer(Square):
    def forward(self, x):
        self.twice = 2 * x
        return x * x

    def backward(self, grad_output):
        self.twice *= grad_output
        return self.twice.copy()


class ReturnsSaved(Square):
    def forward(self, x):
        self.twice = 2 * x
        return x * x

    def backward(self, grad_output):
        self.grad_x = self.twice * grad_output
        return self.grad_x


class ReturnsSavedView(Square):
    def forward(self, x):
        self.ones = np.ones((2, *x.shape))
        return x + 0

    def backward(self, grad_output):
        return self.ones[1]


class WrongShape(Square):
    def backward(self, grad_output):
        return (grad_output * 2 * self.x)[:, :2]


class WrongDtype(Square):
    def backward(self, grad_output):
        return (grad_output * 2 * self.x).astype(np.float32)


class NoGradient(Square):
    def backward(self, grad_output):
        return None


class TooMany(Square):
    def backward(self, grad_output):
        return grad_output * 2 * self.x, None


class NotAnArray(Square):
    def backward(self, grad_output):
        return 2.0


class SharedTwice(Function):
    """y = a + b;  backward returns one array as both gradients."""

    def forward(self, a, b):
        return a + b

    def backward(self, grad_output):
        grad = grad_output.copy()
        return grad, grad


def op(function, **options):
    return lambda *tensors: Tensor.apply(function, *tensors, **options)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (WrongEntry, r"the gradient of input 0, shape \(2, 3\), is wrong.*∂y\[1, 2\] / ∂x\[1, 2\].*-1\.5.*-1\.5015"),
        (WritesInput, "forward wrote to input 0"),
        (WritesSavedInput, "backward wrote to input 0"),
        (WritesGradOutput, "wrote to grad_output"),
        (WritesBuffer, "a second backward with retain_graph=True gives a different gradient"),
        (ReturnsSaved, "shares memory with an input, a saved array or"),
        (ReturnsSavedView, "shares memory with an input, a saved array or"),
        (WrongShape, r"must have the input's shape \(2, 3\).*got \(2, 2\)"),
        (WrongDtype, "gradient 0 must be float64, got float32"),
        (NoGradient, "grad is None after backward"),
        (TooMany, "one gradient per input, 1, returned 2"),
        (NotAnArray, "must be an array, a Partial or None, got float"),
    ],
)
def test_gradcheck_reports_the_error(function, message):
    with pytest.raises(GradcheckError, match=message):
        gradcheck(op(function), X.copy())


def test_gradcheck_names_op_and_input_shapes():
    with pytest.raises(GradcheckError, match=r"<lambda> \(WrongEntry\) of \(\(2, 3\) float64\)"):
        gradcheck(op(WrongEntry), X)


def test_gradcheck_detects_an_array_returned_twice():
    with pytest.raises(GradcheckError, match="gradient 1 shares memory"):
        gradcheck(op(SharedTwice), X, X + 1)


class Exchanged(Square):
    """Correct along the direction (1, 1), wrong in every entry of the Jacobian."""

    def backward(self, grad_output):
        return np.flip(grad_output * 2 * self.x).copy()


def test_full_jacobian_is_compared_for_small_arrays(monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", lambda seed: _AllOnes())
    x = np.array([0.5, 2.0])
    gradcheck(op(Exchanged), x, full_jacobian_below=3)
    with pytest.raises(GradcheckError, match=r"the Jacobian of input 0, shape \(2,\), is wrong.*∂y\["):
        gradcheck(op(Exchanged), x, full_jacobian_below=4)


class Cube(Function):
    """y = x³;  ∂x = ∂y · 3x² · factor.  Correct for factor 1."""

    def forward(self, x, *, factor=1.0):
        self.x, self.factor = x, factor
        return x**3

    def backward(self, grad_output):
        return grad_output * 3 * self.x**2 * self.factor


class LinearAtZero(Cube):
    """Wrong at x = 0: the gradient of x³ + x / 10⁹."""

    def backward(self, grad_output):
        return super().backward(grad_output) + grad_output * 1e-9


@pytest.mark.parametrize("x", [[0.0], [0.0, 0.0], [1e-9], [0.0, 1.0, -2.0], [[1e-7, 3e-7]]])
def test_gradcheck_accepts_gradients_below_the_truncation_error(x):
    gradcheck(op(Cube), np.array(x))
    gradcheck(lambda x: x**5, np.array(x))
    gradcheck(lambda x: 1e6 * x**3, np.array(x))


@pytest.mark.parametrize("full", [0, 100])
def test_truncation_does_not_hide_a_wrong_gradient(full):
    for x in ([0.0], [0.0, 0.0], [1e-9]):
        with pytest.raises(GradcheckError, match="backward gives 1"):
            gradcheck(op(LinearAtZero), np.array(x), full_jacobian_below=full)
    for factor in (1 + 3e-6, 1 - 3e-6):
        with pytest.raises(GradcheckError, match=r"input 0, shape \(2, 3\), is wrong"):
            gradcheck(op(Cube, factor=factor), X, full_jacobian_below=full)
    gradcheck(op(Cube, factor=1 + 0.5e-6), X, full_jacobian_below=full)


class WrongBelowInfinity(WrongEntry):
    def forward(self, x):
        return np.where(x < 1 + 1.5e-6, super().forward(x), np.inf)


@pytest.mark.parametrize("full", [0, 100])
def test_infinite_values_at_twice_the_step_do_not_hide_a_wrong_gradient(full, monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", lambda seed: _AllOnes())
    with pytest.raises(GradcheckError, match="input 0"):
        gradcheck(op(WrongBelowInfinity), np.ones((2, 3)), full_jacobian_below=full)


class _AllOnes:
    def standard_normal(self, shape):
        return np.ones(shape)


@given(arrays(shapes(max_dims=3, max_side=3)))
def test_gradcheck_accepts_correct_gradients(x):
    assert gradcheck(op(Square), x) is None
    gradcheck(lambda a, b: (a * b).sum(), x, x + 3)


def test_gradcheck_selects_inputs_by_dtype_and_wrt():
    condition = X > 0
    gradcheck(lambda c, a, b: Tensor(c.data * 1.0) * a + b, condition, X, X + 1)
    gradcheck(lambda a, b: a * b.detach(), X, X + 1, wrt=[0])
    gradcheck(lambda a, c: (a * a).masked_fill(c, 0.0), Tensor(X), Tensor(condition))
    with pytest.raises(GradcheckError, match="gradient of input 0"):
        gradcheck(op(WrongEntry), Tensor(X))
    with pytest.raises(GradcheckError, match="input 1: grad is None after backward"):
        gradcheck(lambda a, b: a * b.detach(), X, X + 1)
    with pytest.raises(GradcheckError, match="does not require a gradient"):
        gradcheck(lambda a: a.detach(), X)
    with pytest.raises(TypeError, match=r"input 0 is float32.*astype\(np.float64\)"):
        gradcheck(op(Square), X.astype(np.float32))
    with pytest.raises(ValueError, match="needs float64 arrays"):
        gradcheck(op(Square), condition)
    with pytest.raises(ValueError, match="wrt"):
        gradcheck(op(Square), X, wrt=[1])


def test_gradcheck_passes_options_and_is_deterministic():
    gradcheck(lambda x, *, exponent: x**exponent, X, exponent=3)
    messages = set()
    for _ in range(2):
        with pytest.raises(GradcheckError) as error:
            gradcheck(op(WrongEntry), X)
        messages.add(str(error.value))
    assert len(messages) == 1


def test_watch_allows_views_and_broadcast_gradients():
    x = Tensor(X, requires_grad=True)
    y = (x + np.ones((4, 1, 3))).sum(0)
    watch(y, X)
    y.backward(Tensor(np.ones(y.shape)))
    np.testing.assert_allclose(x.grad.data, np.full((2, 3), 4.0))


@given(arrays(shapes(), low=-1, high=3), arrays((3, 2), dtype=np.int64, low=2, high=4), arrays((5,), dtype=bool))
def test_arrays_have_the_given_range_and_dtype(x, integers, flags):
    assert isinstance(x, np.ndarray)
    assert x.dtype == np.float64
    assert ((x >= -1) & (x < 3)).all()
    assert integers.dtype == np.int64
    assert set(integers.reshape(-1).tolist()) <= {2, 3}
    assert flags.dtype == bool


@given(arrays(shapes(max_side=4), gap=0.005), dtypes())
def test_arrays_keep_the_gap(x, dtype):
    values = np.sort(np.append(x.reshape(-1), 0.0))
    assert (np.diff(values) >= 0.005).all()
    assert ((x >= -2) & (x < 2)).all()
    assert np.dtype(dtype).kind == "f"


def test_impossible_gap_is_refused():
    with pytest.raises(ValueError, match=r"100 values with a gap of 0\.1 do not fit"):
        find(arrays((100,), gap=0.1), lambda x: True)


def test_arrays_have_every_layout():
    fixed = settings(database=None, derandomize=True, max_examples=500)
    find(arrays((3, 4)), lambda x: x.flags.f_contiguous, settings=fixed)
    find(arrays((3, 4)), lambda x: min(x.strides) == 16, settings=fixed)
    find(arrays((3, 4)), lambda x: max(x.strides) < 0, settings=fixed)
    assert all(layout(np.array(1.0)).shape == () for layout in (_contiguous, _transposed, _strided, _reversed))
    find(shapes(), lambda shape: shape == (), settings=fixed)
    find(shapes(), lambda shape: 0 in shape and 1 in shape, settings=fixed)


@given(broadcastable_shapes(3), st.data())
def test_strategies_draw_broadcast_shapes_and_valid_axes(drawn, data):
    shape = np.broadcast_shapes(*drawn)
    assert len(drawn) == 3
    axis = data.draw(axes(len(shape)))
    np.zeros(shape).sum(axis=axis)


def test_gradcheck_works_without_hypothesis():
    program = """
import sys
sys.modules["hypothesis"] = None
import numpy as np
from minigrad import testing
testing.gradcheck(lambda x: x * x, np.ones(3))
try:
    testing.shapes()
except ImportError as error:
    assert "pip install hypothesis" in str(error)
else:
    raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# PyTorch's calling form, and functions that return something else -----------------------------------------------------


def leaf(x):
    return Tensor(x.copy(), requires_grad=True)


def test_calling_form_of_pytorch():
    assert gradcheck(lambda a, b: a * b.detach(), (leaf(X), Tensor(X)), eps=1e-6, atol=1e-5, rtol=1e-3) is True
    assert gradcheck(op(Square), [leaf(X)], check_undefined_grad=False, fast_mode=True) is True
    assert gradcheck(op(Cube, factor=1.1), (leaf(X),), raise_exception=False) is False
    with pytest.raises(GradcheckError, match="central differences give"):
        gradcheck(op(Cube, factor=1.1), (leaf(X),))
    with pytest.raises(ValueError, match="must require a gradient"):
        gradcheck(op(Square), (Tensor(X),))
    with pytest.raises(TypeError, match="check_forward_ad"):
        gradcheck(op(Square), (leaf(X),), check_forward_ad=True)


@pytest.mark.parametrize(("factor", "atol", "correct"), [(1.01, 0.1, True), (1.01, 1e-3, False)])
def test_atol_is_an_error_of_each_entry(factor, atol, correct):
    """Entries of J are 3x², at most 3.6: an error of 1 % is at most 0.04."""
    x = np.linspace(0.5, 1.1, 6)
    assert gradcheck(op(Cube, factor=factor), (leaf(x),), atol=atol, rtol=0.0, raise_exception=False) is correct


class BackwardReturnsTensor(Square):
    def backward(self, grad_output):
        return Tensor(super().backward(grad_output))


class ReturnsTensor(Square):
    def forward(self, x):
        return Tensor(super().forward(x))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: (x, x * 2), TypeError, "must return one Tensor, got a tuple of 2 values"),
        (lambda x: x.numpy(), TypeError, "must return a Tensor, got ndarray"),
        (op(ReturnsTensor), TypeError, "must return an array, got Tensor: forward and backward of an op compute on"),
        (op(BackwardReturnsTensor), GradcheckError, "gradient 0 must be an array, a Partial or None, got Tensor"),
        (Square, TypeError, "Square is the class of an op: pass Square.apply"),
        (lambda x: (x - 100).log(), GradcheckError, "the output has NaN or infinite values"),
        (lambda x: x / 0.0, GradcheckError, "the output has NaN or infinite values"),
    ],
)
def test_what_is_no_tensor_or_no_number_is_told(function, error, message):
    with np.errstate(all="ignore"), pytest.raises(error, match=message):
        gradcheck(function, X)


def test_a_failing_check_shows_the_lines_of_the_test():
    with pytest.raises(GradcheckError) as caught:
        gradcheck(op(WrongEntry), X)
    shown = {entry.path.name for entry in caught.traceback.filter(caught)}
    assert shown == {"test_gradcheck.py"}
