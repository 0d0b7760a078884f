"""Layers: arguments, defaults, running statistics."""

import numpy as np
import pytest

from minigrad import Tensor, nn
from minigrad import functional as F
from tests.nn.test_module import images


def test_momentum_none_is_a_cumulative_average():
    norm, batches = nn.BatchNorm2d(3, momentum=None), [images(n) * n for n in (2, 3, 4)]
    for x in batches:
        norm(x)
    norm.eval()(batches[0])
    assert norm.num_batches_tracked.item() == 3
    means = np.mean([x.numpy().mean((0, 2, 3)) for x in batches], 0)
    np.testing.assert_allclose(norm.running_mean.numpy(), means, rtol=1e-4, atol=1e-6)
    variances = np.mean([x.numpy().var((0, 2, 3), ddof=1) for x in batches], 0)
    np.testing.assert_allclose(norm.running_var.numpy(), variances, rtol=1e-5)


def test_batch_norm_updates_running_statistics():
    norm, x = nn.BatchNorm2d(3), images(4)
    y = norm(x)
    np.testing.assert_allclose(y.numpy().mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.1 * x.numpy().mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), 0.9 + 0.1 * x.numpy().var((0, 2, 3), ddof=1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), 4-D"):
        norm(x[0])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 4),
        nn.Conv1d(2, 4, 3),
        nn.Conv2d(2, 4, 3, bias=False),
        nn.ConvTranspose2d(2, 4, 3),
        nn.Embedding(5, 3, padding_idx=1),
        nn.LayerNorm(3),
        nn.LayerNorm(3, elementwise_affine=False),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(3, affine=True),
        nn.RMSNorm(3),
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3, momentum=None),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.PReLU(2, init=0.1),
    ],
)
def test_reset_parameters_gives_the_values_of_a_new_layer(layer):
    drawn = hasattr(layer, "weight") and layer.weight is not None and layer.weight.data.std() > 0
    before = {name: x.numpy().copy() for name, x in layer.state_dict().items()}
    for x in layer.state_dict().values():
        x.fill_(7)
    layer.reset_parameters()
    for name, x in layer.state_dict().items():
        assert (x != 7).all()
        assert drawn or (x.numpy() == before[name]).all()
    if isinstance(layer, nn.Embedding):
        assert (layer.weight[1] == 0).all()


def test_conv2d_passes_all_arguments():
    layer = nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 3), groups=2)
    x = Tensor(np.random.default_rng(0).normal(size=(2, 4, 9, 11)).astype(np.float32))
    expected = F.conv2d(x, layer.weight, layer.bias, (1, 2), (2, 1), (2, 3), 2)
    np.testing.assert_array_equal(layer(x).numpy(), expected.numpy())


@pytest.mark.parametrize(
    ("layer", "defaults"),
    [
        (nn.Linear(2, 3), "2, 3, bias=True"),
        (nn.Conv2d(2, 3, 1), "2, 3, kernel_size=(1, 1), stride=1, padding=0, groups=1, bias=True"),
        (nn.LayerNorm(2), "(2,), eps=1e-05"),
        (nn.GroupNorm(1, 2), "1, 2, eps=1e-05"),
        (nn.BatchNorm2d(2), "2, eps=1e-05, momentum=0.1"),
        (nn.SyncBatchNorm(2), "2, eps=1e-05, momentum=0.1"),
        (nn.DropPath(), "p=0.0"),
        (nn.Dropout(), "p=0.5"),
    ],
)
def test_default_arguments(layer, defaults):
    assert layer.extra_repr() == defaults


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups must divide"),
        (lambda: nn.Conv2d(3, 4, 0), "kernel_size must be at least 1"),
        (lambda: nn.SyncBatchNorm(2, process_group=[0, 1]), "process_group must be None"),
        (lambda: nn.SyncBatchNorm(3)(images()[..., None]), r"\(N, C\) or \(N, C, L\) or \(N, C, H, W\)"),
        (lambda: nn.Dropout(1.5), "probability must be from 0 to 1"),
    ],
)
def test_invalid_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
