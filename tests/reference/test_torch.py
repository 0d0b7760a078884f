"""Every op against PyTorch, values and gradients in float64. The worst differences are shown at the end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import ALL_CASES
from tests.compare import TOLERANCE, difference, outcome, torch_outcome

torch = pytest.importorskip("torch", reason="the comparison needs PyTorch: pip install 'minigrad[reference]'")

CASES = [case for case in ALL_CASES if case.torch is not None]


def grad_output(shape):
    return np.random.default_rng(1).standard_normal(shape)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@given(data=st.data())
def test_op_equals_torch(case, parity, data):
    call = data.draw(case.calls)
    ours, theirs = outcome(case, call, grad_output), torch_outcome(torch, case, call, grad_output)
    errors = [difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    parity.add(case.name, errors[0], max(errors[1:], default=0.0))
    assert max(errors) <= TOLERANCE
