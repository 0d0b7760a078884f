"""The moving average of a model, and a rate for each depth, against timm's."""

from importlib.util import find_spec

import numpy as np
import pytest

import models
from minigrad import Tensor, nn, optim
from models.compare import libraries
from models.weights.layouts import places

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="needs timm")  # importing it may need help


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9998])
def test_ema(decay):
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    names = list(ours.state_dict())
    rng = np.random.default_rng(0)

    def fill():
        for name, tensor in ours.state_dict().items():
            tensor.data[...] = rng.uniform(0.5, 1.5, tensor.shape)  # no variance is negative
            theirs.state_dict()[name].copy_(torch.from_numpy(tensor.data))

    fill()
    average = optim.EMA(ours, decay)
    reference = libraries.load("timm").utils.ModelEmaV3(theirs, decay)
    for _ in range(5):
        fill()
        average.update()
        reference.update(theirs)
    expected, found = reference.module.state_dict(), average.state_dict()
    for name in names:
        np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=1e-6, atol=1e-7, err_msg=name)
    images = rng.standard_normal((2, 3, 5, 5)).astype(np.float32)
    with average.applied():
        np.testing.assert_allclose(
            ours.eval()(Tensor(images)).numpy(),
            reference(torch.from_numpy(images)).detach().numpy(), rtol=1e-4, atol=1e-5,
        )  # fmt: skip


FAMILIES = {
    "vit_tiny_patch16_224": {"depth": 3, "embed_dim": 24, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {"depths": (2, 1, 3, 1), "embed_dim": 12, "num_heads": (1, 2, 3, 6)},
    "convnext_tiny": {"depths": (1, 2, 3, 1), "dims": (8, 16, 24, 40)},
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layer_decay", [1.0, 0.9, 0.5])
def test_a_rate_for_each_depth_and_who_decays(name, layer_decay):
    """timm's, but for a norm between the last block and the head: timm counts it to the block, BEiT to the head."""
    theirs = libraries.load("timm").create_model(name, num_classes=7, **FAMILIES[name])
    ours = models.create_model(name, num_classes=7, **FAMILIES[name])
    from timm.optim import param_groups_layer_decay

    spared = theirs.no_weight_decay() if hasattr(theirs, "no_weight_decay") else ()
    groups = param_groups_layer_decay(theirs, 0.05, no_weight_decay_list=spared, layer_decay=layer_decay)
    found = places([name for name, _ in theirs.named_parameters()], ours)
    names = {id(p): found[name].name for name, p in theirs.named_parameters()}
    expected = {names[id(p)]: (0.1 * g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    expected |= {name: (0.1, decay) for name, (_, decay) in expected.items() if name.startswith("norm.")}

    names = {id(p): name for name, p in ours.named_parameters()}
    groups = models.param_groups(ours, 0.1, 0.05, layer_decay)
    assert {names[id(p)]: (pytest.approx(g["lr"]), g["weight_decay"]) for g in groups for p in g["params"]} == expected


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon(shape):
    """torch multiplies in bfloat16, so that steps agree to two per cent of their length; their momentum agrees."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(shape).astype(np.float32)
    ours, theirs = nn.Parameter(start.copy()), torch.nn.Parameter(torch.tensor(start))
    settings = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
    optimizer = optim.Muon([{"params": [ours], "muon": True}], **settings)
    reference = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(5):
        grad = rng.standard_normal(shape).astype(np.float32)
        ours.grad, theirs.grad = Tensor(grad), torch.tensor(grad)
        optimizer.step()
        reference.step()
    found, expected = ours.numpy() - start, theirs.detach().numpy() - start
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    momentum = reference.state[theirs]["momentum_buffer"].numpy()
    np.testing.assert_allclose(optimizer.state[0][0]["m"], momentum, rtol=1e-5, atol=1e-6)
