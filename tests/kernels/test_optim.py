"""AdamW chunk by chunk equals the reference implementation."""

import numpy as np
import pytest

import minigrad
from minigrad import nn, optim
from minigrad.backend.fast_paths import fast_path
from minigrad.kernels.cpu.optim import LARGE
from minigrad.ops import updates


def steps(shape, amsgrad):
    """A parameter and its state after three steps."""
    rng = np.random.default_rng(0)
    parameter = nn.Parameter(rng.standard_normal(shape).astype(np.float32))
    optimizer = optim.AdamW([parameter], lr=0.1, weight_decay=0.1, amsgrad=amsgrad)
    for scale in (1, 10, 0.1):
        parameter.grad = minigrad.tensor(scale * rng.standard_normal(shape).astype(np.float32))
        optimizer.step()
    state = optimizer.state_dict()["state"][0]
    return [parameter.numpy(), *(state[name] for name in sorted(state))]


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("shape", [(LARGE + 1,), (768, 1024)])  # the last chunk is a single element; all are full
def test_adamw_equals_reference(shape, amsgrad):
    found = steps(shape, amsgrad)
    with minigrad.without_fast_paths():
        expected = steps(shape, amsgrad)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)


def test_only_large_contiguous_float32_parameters_are_updated_in_chunks():
    x = np.ones((4, 1024, 1024), np.float32)
    assert fast_path(updates.adamw, *x) is not None
    assert fast_path(updates.adamw, *x[:, :512]) is None
    assert fast_path(updates.adamw, *x.swapaxes(1, 2)) is None
    assert fast_path(updates.adamw, *x.astype(np.float64)) is None
