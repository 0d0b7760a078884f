"""ConvNeXt V2: global response normalisation in the blocks."""

import numpy as np

import minigrad
from minigrad import Tensor
from models.compare import formula
from models.convnextv2 import GRN
from tests.models.small import small


def test_a_new_grn_is_the_identity():
    x = minigrad.randn(2, 3, 4, 6)
    np.testing.assert_array_equal(GRN(6)(x).numpy(), x.numpy())


def test_grn_scales_channels_by_their_share_of_the_response():
    """Of two channels with norms 3 and 1, the factors are 3 / 2 and 1 / 2; other images have no effect."""
    grn, x = GRN(2), np.zeros((2, 2, 2, 2))
    x[0, 0, 1], x[1] = [3, 1], 100
    grn.gamma.data[...], grn.beta.data[...] = 1, 0.25
    y = grn(Tensor(x)).numpy()
    np.testing.assert_allclose(y[0, 0, 1], [3 + 3 * 1.5 + 0.25, 1 + 1 * 0.5 + 0.25], rtol=1e-5)
    np.testing.assert_array_equal(y[0, 1], 0.25)


def test_blocks_have_grn_and_no_layer_scale():
    model = small("convnextv2")
    names = {name for name, _ in model.named_parameters()}
    assert {"stages.0.0.grn.gamma", "stages.0.0.grn.beta"} <= names and "stages.0.0.gamma" not in names
    assert model.stages[1][0].grn.gamma.shape == (48,)
    assert small("convnextv2", layer_scale_init_value=1e-6).stages[0][0].gamma.shape == (8,)


def test_initial_weights_equal_those_of_convnext():
    """GRN is initially the identity: with the same weights, the logits are equal."""
    model, elder = small("convnextv2"), small("convnext", layer_scale_init_value=None)
    elder.load_state_dict(model.state_dict(), strict=False)
    x = Tensor(formula.stream("x", 2, 3, 32, 32).astype(np.float32))
    np.testing.assert_array_equal(model(x).numpy(), elder(x).numpy())
