"""Models on a GPU (or a stand-in: tests/conftest.py) give the results of a CPU."""

import numpy as np
import pytest

import models
from minigrad import Tensor, optim
from minigrad import functional as F
from minigrad.backend import to_device
from minigrad.kernels.cuda import launch
from minigrad.kernels.cuda.launch import Recorder, use_device
from models.compare import formula
from tests.cuda.runner import needs_compiler

_SIZES = {"patch_size": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 10}
SMALL = {
    "vit_nano_cifar": {"depth": 2, "img_size": 8},
    "deit_tiny_distilled_patch16_224": {"depth": 1, "img_size": 8, **_SIZES},
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "img_size": 8, **_SIZES},
    "hybrid_nano_cifar": {"depth": 1, "img_size": 8, "layers": (1,), "channels": (128,)},
    "swin_nano_cifar": {"depths": (2,), "num_heads": (2,), "img_size": 16},
    "swinv2_nano_cifar": {"depths": (2,), "num_heads": (2,), "img_size": 16},
    "convnext_atto_cifar": {"depths": (1, 1), "dims": (8, 16), "img_size": 8},
    "convnextv2_atto_cifar": {"depths": (1, 1), "dims": (8, 16), "img_size": 8},
}


def steps(model, device, dtype, images, labels):
    """The losses of two steps of AdamW, and the parameters afterwards."""
    model.to(device, dtype)
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(Tensor(images, device=device).to(dtype=dtype)), Tensor(labels, device=device))
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: to_device(p.data, "cpu") for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", SMALL)
def test_training_steps_match_the_cpu(name, dtype, device):
    def build():
        return formula.fill(models.create_model(name, **SMALL[name]))

    size = build().img_size
    images = formula.stream("cuda", 4, 3, *size)
    labels = np.arange(4) % 10
    expected, weights = steps(build(), "cpu", np.float64, images, labels)
    model = build()
    losses, found = steps(model, device, dtype, images, labels)
    np.testing.assert_allclose(losses, expected, rtol=1e-10 if dtype == np.float64 else 1e-4)
    for key, value in found.items():  # m / √v amplifies rounding errors of small gradients
        np.testing.assert_allclose(value, weights[key], rtol=0, atol=1e-6 if dtype == np.float64 else 3e-3, err_msg=key)
    assert {p.device.split(":")[0] for p in model.parameters()} == {device}


@pytest.mark.parametrize("name", SMALL)
def test_float32_gradients_match_the_cpu(name, device):
    """The CUDA kernels support float32, not float64."""

    def gradients(device, dtype):
        model = formula.fill(models.create_model(name, **SMALL[name])).to(dtype=dtype).to(device)
        images = Tensor(formula.stream("cuda", 4, 3, *model.img_size).astype(dtype), device=device, requires_grad=True)
        F.cross_entropy(model(images), Tensor(np.arange(4), device=device)).backward()
        return {key: p.grad.cpu().numpy() for key, p in [("images", images), *model.named_parameters()]}

    exact = gradients("cpu", np.float64)
    for key, found in gradients(device, np.float32).items():
        assert abs(found - exact[key]).max() <= 1e-4 * max(abs(exact[key]).max(), 1e-3), key


KERNELS = {
    "vit_nano_cifar": {"layer_norm_forward", "layer_norm_backward", "gelu_forward", "attention_forward", "adamw"},
    "deit_tiny_distilled_patch16_224": {"attention_forward", "layer_norm_forward"},
    "vit_small_patch14_reg4_dinov2": {"attention_forward", "residual_forward", "residual_backward"},
    "hybrid_nano_cifar": {"group_norm_forward", "group_norm_backward"},
    "swin_nano_cifar": {"attention_forward", "layer_norm_forward"},
    "swinv2_nano_cifar": {"attention_forward", "layer_norm_forward"},
    "convnext_atto_cifar": {"depthwise_correlate", "gelu_backward"},
    "convnextv2_atto_cifar": {"depthwise_correlate", "gelu_backward"},
}


@needs_compiler
@pytest.mark.parametrize("name", SMALL)
def test_cuda_kernels_are_used(name, device, pytestconfig):
    if device == "cpu" or pytestconfig.getoption("--without-fast-paths"):
        pytest.skip("CUDA kernels are fast paths on a GPU")
    recorder = Recorder(launch._device)
    images = formula.stream("cuda", 2, 3, *[SMALL[name]["img_size"]] * 2)
    with use_device(recorder):
        steps(formula.fill(models.create_model(name, **SMALL[name])), device, np.float32, images, np.arange(2))
    names = {launch.kernel.name for launch in recorder.launches}
    assert names >= KERNELS[name], names
