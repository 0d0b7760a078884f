"""EMA and layer-wise learning rate decay against timm, Muon against PyTorch."""

import numpy as np
import pytest

import models
from minigrad import Tensor, nn, optim
from models.compare import libraries
from models.weights.layouts import places
from tests.reference.conftest import skip_without

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9998])
def test_ema_equals_timm(decay):
    skip_without("timm")
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    names = list(ours.state_dict())
    rng = np.random.default_rng(0)

    def fill():
        for name, tensor in ours.state_dict().items():
            tensor.data[...] = rng.uniform(0.5, 1.5, tensor.shape)  # positive, as variances are
            theirs.state_dict()[name].copy_(torch.from_numpy(tensor.data))

    fill()
    average = optim.EMA(ours, decay)
    reference = libraries.load("timm").utils.ModelEmaV3(theirs, decay)
    for _ in range(5):
        fill()
        average.update()
        reference.update(theirs)
    expected, actual = reference.module.state_dict(), average.state_dict()
    for name in names:
        np.testing.assert_allclose(actual[name], expected[name].numpy(), rtol=1e-6, atol=1e-7, err_msg=name)
    images = rng.standard_normal((2, 3, 5, 5)).astype(np.float32)
    with average.applied():
        np.testing.assert_allclose(
            ours.eval()(Tensor(images)).numpy(),
            reference(torch.from_numpy(images)).detach().numpy(), rtol=1e-4, atol=1e-5,
        )  # fmt: skip


FAMILIES = {
    "vit_tiny_patch16_224": {"depth": 3, "embed_dim": 24, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {"depths": (2, 1, 3, 1), "embed_dim": 12, "num_heads": (1, 2, 3, 6)},
    "swinv2_tiny_window8_256": {"depths": (2, 1, 3, 1), "embed_dim": 12, "num_heads": (1, 2, 3, 6)},
    "convnext_tiny": {"depths": (1, 2, 3, 1), "dims": (8, 16, 24, 40)},
    "convnextv2_tiny": {"depths": (1, 2, 3, 1), "dims": (8, 16, 24, 40)},
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layer_decay", [1.0, 0.9, 0.5])
def test_layer_decay_and_weight_decay_equal_timm(name, layer_decay):
    """One exception: the norm after the last block belongs to the head here and in BEiT, to the block in timm."""
    skip_without("timm")
    theirs = libraries.load("timm").create_model(name, num_classes=7, **FAMILIES[name])
    ours = models.create_model(name, num_classes=7, **FAMILIES[name])
    from timm.optim import param_groups_layer_decay

    no_decay = theirs.no_weight_decay() if hasattr(theirs, "no_weight_decay") else ()
    groups = param_groups_layer_decay(theirs, 0.05, no_weight_decay_list=no_decay, layer_decay=layer_decay)
    actual = places([name for name, _ in theirs.named_parameters()], ours)
    names = {id(p): actual[name].name for name, p in theirs.named_parameters()}
    expected = {names[id(p)]: (0.1 * g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    expected |= {name: (0.1, decay) for name, (_, decay) in expected.items() if name.startswith("norm.")}

    names = {id(p): name for name, p in ours.named_parameters()}
    groups = models.param_groups(ours, 0.1, 0.05, layer_decay)
    assert {names[id(p)]: (pytest.approx(g["lr"]), g["weight_decay"]) for g in groups for p in g["params"]} == expected


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16), (16, 3, 3, 2)])
def test_muon_equals_pytorch(shape):
    """PyTorch multiplies in bfloat16: the total update agrees to 2 %, the momentum to float32 precision.

    PyTorch's Muon accepts matrices alone: filters are compared with the matrix of the same elements.
    """
    rng = np.random.default_rng(0)
    start = rng.standard_normal(shape).astype(np.float32)
    matrix = torch.tensor(start).flatten(1)
    ours, theirs = nn.Parameter(start.copy()), torch.nn.Parameter(matrix.clone())
    settings = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
    optimizer = optim.Muon([{"params": [ours], "muon": True}], **settings)
    reference = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(5):
        grad = rng.standard_normal(shape).astype(np.float32)
        ours.grad, theirs.grad = Tensor(grad), torch.tensor(grad).flatten(1)
        optimizer.step()
        reference.step()
    actual, expected = (ours.numpy() - start).reshape(matrix.shape), (theirs.detach() - matrix).numpy()
    assert np.linalg.norm(actual - expected) < 0.02 * np.linalg.norm(expected)
    momentum = reference.state[theirs]["momentum_buffer"].numpy()
    found = optimizer.state[0][0]["m"].reshape(momentum.shape)
    np.testing.assert_allclose(found, momentum, rtol=1e-5, atol=1e-6)
