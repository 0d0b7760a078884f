"""`python -m tests.gpu` compares training steps of minigrad and timm, which start from the same weights."""

import numpy as np

from tests.gpu.stages import contenders
from tests.reference.conftest import skip_without


def test_weights_of_the_steps_are_equal():
    skip_without("timm")
    theirs, ours = contenders.reference("hybrid_cifar"), contenders.weights_of("hybrid_cifar")
    values = {theirs.places[name].name: p.detach().numpy() for name, p in theirs.network.named_parameters()}
    assert values.keys() == ours.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value.astype(np.float32).ravel(), ours[name].ravel(), err_msg=name)
