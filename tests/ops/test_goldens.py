"""Every op against recorded results of PyTorch (tests/goldens), without PyTorch installed."""

import numpy as np
import pytest

from tests import goldens
from tests.cases import ALL_CASES
from tests.compare import TOLERANCE, forward_backward, relative_error

CASES = {case.name: case for case in ALL_CASES if case.torch is not None}
GOLDENS = goldens.load()


def test_every_op_has_goldens():
    assert {golden.case for golden in GOLDENS} == set(CASES), "run: python -m tests.goldens.record"


@pytest.mark.parametrize("name", CASES)
def test_ops_equal_recorded_pytorch_results(name):
    for golden in GOLDENS:
        if golden.case == name:
            actual = forward_backward(
                CASES[name], golden.call, lambda shape, grad_output=golden.grad_output: grad_output
            )
            for y, result in zip(actual, golden.results, strict=True):
                assert relative_error(y, result) <= TOLERANCE, golden.call


@pytest.mark.parametrize("option", [None, 0.5, "same", (1, (2, 3)), [1, 2], slice(None, 3, -1), (..., slice(1))])
def test_options_survive_a_round_trip_through_json(option):
    assert goldens._decoded(goldens._encoded(option)) == option
    assert goldens._encoded(np.int64(3)) == 3
