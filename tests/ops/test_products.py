"""Products that require a number of axes: what does not fit is refused; beta = 0."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor


def ones(*shape):
    return Tensor(np.ones(shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ones(2).mm(ones(2, 2)), "mm: needs a 2-D and a 2-D tensor"),
        (lambda: ones(2, 2).bmm(ones(2, 2)), "bmm: needs a 3-D and a 3-D tensor"),
        (lambda: ones(1, 2, 2).bmm(ones(3, 2, 2)), "bmm: both need the same number of matrices"),
        (lambda: ones(2, 2).mv(ones(2, 1)), "mv: needs a 2-D and a 1-D tensor"),
        (lambda: minigrad.dot(ones(2, 2), ones(2)), "dot: needs a 1-D and a 1-D tensor"),
        (lambda: ones(2).outer(ones(1, 2)), "outer: needs a 1-D and a 1-D tensor"),
        (lambda: ones(3, 2).addmm(ones(2, 2), ones(2, 2)), r"addmm: \(3, 2\) does not broadcast"),
        (lambda: ones(1, 2, 2).addmm(ones(2, 2), ones(2, 2)), "addmm: .* does not broadcast"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_beta_0_ignores_the_values_of_x():
    x = Tensor([np.nan], requires_grad=True)
    y = x.addmm(ones(2, 3), ones(3, 2), beta=0, alpha=2)
    assert y.tolist() == [[6, 6], [6, 6]] and not y.requires_grad
