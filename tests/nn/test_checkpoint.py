"""Gradient checkpointing: the second forward repeats the first, also if modes, seed or autocast change."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn


class Block(nn.Module):
    def __init__(self):
        self.first, self.norm, self.drop = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.fails = False

    def forward(self, x):
        if self.fails:
            raise KeyError("on purpose")
        return self.drop(self.norm(self.first(x)))


def gradients(checkpointing, training, between):
    minigrad.manual_seed(0)
    block = Block().train(training)
    block.norm.training = not training  # modules may have different modes
    block.checkpointing = checkpointing
    x = Tensor(np.random.default_rng(0).normal(size=(2, 2, 5, 5)).astype(np.float32), requires_grad=True)
    y = block(x)
    state = {name: value.numpy().copy() for name, value in block.state_dict().items()}
    loss = (y * y).sum()
    with between(block):
        before = [part.training for part in block.modules()]
        loss.backward()
        assert [part.training for part in block.modules()] == before
    for name, value in block.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name])
    return [x.grad.numpy(), *(p.grad.numpy() for p in block.parameters())]


class _Between:
    def __init__(self, change):
        self.change = change

    def __call__(self, block):
        self.change(block)
        return minigrad.enable_grad()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "between",
    [
        _Between(lambda block: block.eval()), _Between(lambda block: block.train()),
        _Between(lambda block: minigrad.manual_seed(7)), lambda block: minigrad.autocast("bfloat16"),
        lambda block: minigrad.no_grad(),
    ],
)  # fmt: skip
def test_changes_before_backward_have_no_effect(training, between):
    expected = gradients(False, training, between)
    for ours, theirs in zip(gradients(True, training, between), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_backward_uses_autocast_of_forward():
    layer, x = nn.Linear(4, 4), minigrad.randn(3, 4)
    layer.checkpointing = True
    with minigrad.autocast("bfloat16"):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype.name == "bfloat16" and layer.weight.grad.dtype == np.float32


def test_modes_are_restored_after_an_error():
    block = Block()
    block.checkpointing = True
    y = block(minigrad.randn(2, 2, 5, 5)).sum()
    block.eval()
    block.fails = True
    with pytest.raises(KeyError):
        y.backward()
    assert not any(part.training for part in block.modules())
