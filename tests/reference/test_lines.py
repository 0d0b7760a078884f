"""PyTorch lines, run with torch and with minigrad under the same names: kind, shape, dtype, values, gradients."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from tests.reference.lines import LINES, NAMES

torch = pytest.importorskip("torch", reason="the comparison needs PyTorch: pip install -e '.[reference]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of PyTorch and of NumPy, at infinities

TORCH_NAME = re.compile(r"torch\.(\w+)")


def evaluate(line, library):
    """The result, and the gradients of its sum with respect to the floating-point names."""
    if library is torch:
        kind, functional, dtypes = torch.Tensor, torch.nn.functional, torch
        names = {name: torch.tensor(x, requires_grad=x.dtype.kind == "f") for name, x in NAMES.items()}
    else:
        kind, functional, dtypes = Tensor, minigrad.functional, np
        names = {name: Tensor(x.copy(), requires_grad=x.dtype.kind == "f") for name, x in NAMES.items()}
    used = {name: getattr(dtypes if name.startswith("float") else library, name) for name in TORCH_NAME.findall(line)}
    y = eval(line, {"torch": SimpleNamespace(**used), "F": functional, "math": math, **names})
    outputs = list(y) if isinstance(y, tuple) else [y]
    total = sum(x.double().sum() for x in outputs if isinstance(x, kind) and x.requires_grad)
    if isinstance(total, kind):
        total.backward()
    fields = hasattr(y, "values") and hasattr(y, "indices") and isinstance(y, tuple)
    form = ("values and indices" if fields else "tuple") if isinstance(y, tuple) else type(y).__name__
    values = [x.detach().numpy() if isinstance(x, kind) else x for x in outputs]
    required = [isinstance(x, kind) and x.requires_grad for x in outputs]
    return [form, required, values, {name: x.grad.numpy() for name, x in names.items() if x.grad is not None}]


@pytest.mark.parametrize("line", LINES)
def test_line_gives_the_same_in_torch_and_in_minigrad(line):
    (form, required, values, gradients), (torch_form, torch_required, torch_values, torch_gradients) = (
        evaluate(line, library) for library in (minigrad, torch)
    )
    assert [form, required, list(gradients)] == [torch_form, torch_required, list(torch_gradients)]
    tolerance = 2e-3 if "h" in gradients else 1e-5
    pairs = zip([*values, *gradients.values()], [*torch_values, *torch_gradients.values()], strict=True)
    for x, y in pairs:
        assert np.result_type(x) == np.result_type(y) and np.shape(x) == np.shape(y)
        np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), rtol=tolerance, atol=tolerance)
