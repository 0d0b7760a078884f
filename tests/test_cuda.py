"""Whole models and a training run on the GPU give what they give on the CPU (or on a stand-in: tests/conftest.py)."""

import numpy as np
import pytest

import minigrad
import models
from minigrad import Tensor, nn, optim
from minigrad import functional as F
from minigrad.backend import to_device
from models.compare import formula
from train.__main__ import main

SMALL = {
    "vit_nano_cifar": {"depth": 2, "img_size": 16},
    "hybrid_nano_cifar": {"depth": 1, "img_size": 16},
    "swin_nano_cifar": {"depths": (2, 2), "num_heads": (2, 4), "img_size": 32},
    "convnext_atto_cifar": {"depths": (1, 1), "dims": (8, 16), "img_size": 16},
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


@pytest.mark.parametrize("name", SMALL)
def test_training_steps(name, device):
    def build():
        return formula.fill(models.create_model(name, **SMALL[name]))

    size = build().img_size
    images = formula.stream("cuda", 4, 3, *size)
    labels = np.arange(4) % 10
    expected, weights = steps(build(), "cpu", np.float64, images, labels)
    model = build()
    losses, found = steps(model, device, np.float64, images, labels)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    for key, value in found.items():
        np.testing.assert_allclose(value, weights[key], rtol=0, atol=1e-6, err_msg=key)  # AdamW divides by tiny √v
    assert {p.device.split(":")[0] for p in model.parameters()} == {device}


def test_dropout_is_the_same_everywhere(device):
    minigrad.manual_seed(3)
    expected = F.dropout(Tensor(np.ones((4, 5), np.float32)), 0.5).numpy()
    minigrad.manual_seed(3)
    np.testing.assert_array_equal(F.dropout(Tensor(np.ones((4, 5), np.float32), device=device), 0.5).numpy(), expected)


def test_a_module_goes_there_and_back(device, tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm2d(4))
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    model.to(device)
    assert all(p.device.startswith(device) for p in model.parameters())
    model.load_state_dict({name: value + 1 for name, value in before.items()})
    model.to("cpu")
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name] + 1)


def test_the_training_program(device, tmp_path, capsys):
    flags = [
        "--epochs",
        "1",
        "--train-num-samples",
        "128",
        "--val-num-samples",
        "64",
        "--batch-size",
        "32",
        "--model",
        "vit_nano_cifar",
    ]
    outputs = []
    for where in ("cpu", device):
        folder = tmp_path / f"{where}-{len(outputs)}"
        assert main([*flags, "--device", where, "--threads", "1", "--no-tune-cpu", "--output", str(folder)]) == 0
        outputs.append((folder / "metrics.csv").read_text().splitlines()[1].split(","))
    capsys.readouterr()
    for cpu, other in zip(outputs[0][:6], outputs[1][:6], strict=True):
        assert float(other) == pytest.approx(float(cpu), rel=1e-3)
