"""Weight standardisation in CUDA, run on the CPU, against the reference in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad import functional as F
from minigrad.kernels.cuda.norm import CUDALayerNorm
from minigrad.ops.norm import StandardizeWeight
from tests.cuda.comparison import assert_matches_reference, guarded_copy, kernel_names, random_array
from tests.cuda.runner import ORDERS, emulated, needs_compiler

pytestmark = needs_compiler


@given(
    st.integers(1, 9), st.sampled_from([(3, 3, 3), (8, 1, 1), (4, 2, 3), (7,), (130, 3, 3)]),
    st.booleans(), st.sampled_from(["after", "before"]), st.sampled_from(ORDERS),
)  # fmt: skip
def test_standardize_weight_matches_reference(O, filters, channels_last, guard, order):  # noqa: E741
    """One warp or block per filter; ∂weight in C order or, as from a convolution, channels-last."""
    weight = guarded_copy(random_array(0, O, *filters, scale=1, offset=1), guard)
    _, launches = assert_matches_reference(
        F.standardize_weight, weight, fast_path=StandardizeWeight,
        grad_layout="channels-last" if channels_last else "C", guard=guard, order=order,
    )  # fmt: skip
    assert kernel_names(launches) == ["layer_norm_forward", "layer_norm_backward"]


@pytest.mark.parametrize(
    "weight",
    [
        random_array(0, 4, 3, 3, dtype=np.float64), random_array(0, 4, 6)[:, ::2], random_array(0, 0, 4),
        random_array(0, 2, 8193),
    ],
)  # fmt: skip
def test_unsupported_arrays_run_the_reference(weight):
    with emulated():
        y = F.standardize_weight(Tensor(weight, requires_grad=True))
    assert not isinstance(y.grad_fn.norm, CUDALayerNorm)


def test_errors_are_those_of_the_reference():
    for weight in (random_array(0, 4), random_array(0, 4, 0)):
        with emulated(), pytest.raises(ValueError, match=r"the weight must be \(O, \.\.\.\)"):
            F.standardize_weight(Tensor(weight))
