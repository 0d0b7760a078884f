"""Every op against PyTorch's recorded answers (tests/goldens), for machines without PyTorch."""

import numpy as np
import pytest

from tests import goldens
from tests.cases import ALL_CASES
from tests.compare import TOLERANCE, difference, outcome

CASES = {case.name: case for case in ALL_CASES if case.torch is not None}
GOLDENS = goldens.load()


def test_every_op_has_goldens():
    assert {golden.case for golden in GOLDENS} == set(CASES), "run: python -m tests.goldens.record"


@pytest.mark.parametrize("name", CASES)
def test_op_equals_golden(name):
    for golden in GOLDENS:
        if golden.case == name:
            ours = outcome(CASES[name], golden.call, lambda shape, given=golden.grad_output: given)
            for our, answer in zip(ours, golden.answers, strict=True):
                assert difference(our, answer) <= TOLERANCE, golden.call


@pytest.mark.parametrize("choice", [None, 0.5, "same", (1, (2, 3)), [1, 2], slice(None, 3, -1), (..., slice(1))])
def test_choices_survive_being_written_down(choice):
    assert goldens._decoded(goldens._encoded(choice)) == choice
    assert goldens._encoded(np.int64(3)) == 3
