"""Whole models and a training run on the GPU give what they give on the CPU (or on a stand-in: tests/conftest.py)."""

import tomllib

import numpy as np
import pytest

import minigrad
import models
from minigrad import Tensor, nn, optim, serialize
from minigrad import functional as F
from minigrad.backend import to_device
from minigrad.kernels.cuda import launch
from minigrad.kernels.cuda.launch import Recorder, use_device
from models.compare import formula
from tests.cuda.runner import HAS_COMPILER, needs_compiler
from train.__main__ import main

SMALL = {
    "vit_nano_cifar": {"depth": 2, "img_size": 8},
    "hybrid_nano_cifar": {"depth": 1, "img_size": 8, "layers": (1,), "channels": (128,)},
    "swin_nano_cifar": {"depths": (2,), "num_heads": (2,), "img_size": 16},
    "convnext_atto_cifar": {"depths": (1, 1), "dims": (8, 16), "img_size": 8},
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
def test_training_steps(name, dtype, device):
    def build():
        return formula.fill(models.create_model(name, **SMALL[name]))

    size = build().img_size
    images = formula.stream("cuda", 4, 3, *size)
    labels = np.arange(4) % 10
    expected, weights = steps(build(), "cpu", np.float64, images, labels)
    model = build()
    losses, found = steps(model, device, dtype, images, labels)
    np.testing.assert_allclose(losses, expected, rtol=1e-10 if dtype == np.float64 else 1e-4)
    for key, value in found.items():  # a step of AdamW is lr · m / √v, however small both are
        np.testing.assert_allclose(value, weights[key], rtol=0, atol=1e-6 if dtype == np.float64 else 3e-3, err_msg=key)
    assert {p.device.split(":")[0] for p in model.parameters()} == {device}


@pytest.mark.parametrize("name", SMALL)
def test_gradients_in_float32(name, device):
    """On a GPU, float32 is what the kernels are for."""

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
    "hybrid_nano_cifar": {"group_norm_forward", "relu_forward"},
    "swin_nano_cifar": {"attention_forward", "layer_norm_forward"},
    "convnext_atto_cifar": {"depthwise_correlate", "gelu_backward"},
}


@needs_compiler
@pytest.mark.parametrize("name", SMALL)
def test_kernels_are_used(name, device):
    if device == "cpu":
        pytest.skip("kernels are for a GPU")
    recorder = Recorder(launch._device)
    images = formula.stream("cuda", 2, 3, *[SMALL[name]["img_size"]] * 2)
    with use_device(recorder):
        steps(formula.fill(models.create_model(name, **SMALL[name])), device, np.float32, images, np.arange(2))
    names = {noted.kernel.name for noted in recorder.launches}
    assert names >= KERNELS[name], names


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


@pytest.mark.parametrize("augmented", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_the_training_program(augmented, tmp_path, capsys, device):
    """On the CPU, on the device, and there as a graph, which is the default: from the images' numbers to the average.

    The fourth step is captured, the last two replay it, and the last batch of an epoch is smaller.
    """
    flags = ["--model", "vit_nano_cifar", "--epochs", "2", "--train-num-samples", "15", "--val-num-samples", "4"]
    flags += ["--batch-size", "4", "--threads", "1", "--no-tune-cpu", "--drop-path", "0.2"]
    flags += ["--smoothing", "0.1", "--model-ema", "--model-ema-decay", "0.5", "--layer-decay", "0.9"]
    if augmented:
        flags += ["--hflip", "0.5", "--crop-padding", "2", "--aa", "rand-m9-mstd0.5", "--reprob", "0.5"]
        flags += ["--mixup", "0.8", "--cutmix", "1", "--cutout", "3", "--aug-repeats", "2"]
        flags += ["--batch-size", "2", "--grad-accum-steps", "2"]
    outputs, weights = [], []
    for i, where in enumerate((["--device", "cpu"], ["--device", device, "--no-graph"], ["--device", device])):
        if i and (device == "cpu" or (i == 2 and not HAS_COMPILER)):  # on the CPU, a draw is not for a graph
            break
        assert main([*flags, *where, "--output", str(tmp_path / str(i))]) == 0
        rows = (tmp_path / str(i) / "metrics.csv").read_text().splitlines()[1:]
        outputs.append([[float(x) for x in row.split(",")[:6]] for row in rows])
        weights.append(serialize.load(tmp_path / str(i) / "last.npz")[0])
        assert tomllib.loads((tmp_path / str(i) / "args.toml").read_text())["graph"] == (i == 2)
    capsys.readouterr()
    for found in outputs[1:]:
        np.testing.assert_allclose(found, outputs[0], rtol=1e-3)
    assert outputs[2:] in ([], outputs[1:2])  # bit for bit
    for graphed in weights[2:]:
        for name, array in weights[1].items():
            np.testing.assert_array_equal(graphed[name], array, err_msg=name)


def test_the_training_program_in_mixed_precision(tmp_path, capsys, device):
    flags = ["--model", "vit_nano_cifar", "--epochs", "2", "--train-num-samples", "12", "--val-num-samples", "4"]
    flags += ["--batch-size", "4", "--threads", "1", "--no-tune-cpu", "--drop-path", "0.2"]
    outputs = []
    for i, more in enumerate((["--device", "cpu", "--no-graph"], ["--amp", "--no-graph"], ["--amp", "--graph"])):
        if i == 2 and (device == "cpu" or not HAS_COMPILER):
            break
        assert main([*flags, "--device", device, *more, "--output", str(tmp_path / str(i))]) == 0
        rows = (tmp_path / str(i) / "metrics.csv").read_text().splitlines()[1:]
        outputs.append([[float(x) for x in row.split(",")[:6]] for row in rows])
    capsys.readouterr()
    exact, found, *graphed = outputs
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in exact], rtol=0.03)
    assert found != exact and graphed in ([], [found])  # bit for bit


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--amp", "--amp-dtype", "float16"], "loss scaling of float16 runs on the host"),
        (["--opt", "muon"], "Muon's learning rates are computed on the host"),
    ],
)
def test_what_no_graph_can(flags, reason, tmp_path, capsys, device):
    """Who asks for it is refused; who does not is told, and trains launch by launch."""
    flags = [*flags, "--epochs", "1", "--train-num-samples", "4", "--val-num-samples", "2", "--no-tune-cpu"]
    flags += ["--device", device]
    assert main([*flags, "--graph", "--output", str(tmp_path / "asked")]) == 2
    assert ("graphs are for a GPU" if device == "cpu" else reason) in capsys.readouterr().err
    assert main([*flags, "--output", str(tmp_path / "default")]) == 0
    assert (f"graph    none: {reason}" in capsys.readouterr().out) == (device == "cuda")


def test_muon_on_the_device_trains_what_the_cpu_trains(tmp_path, device):
    flags = ["--epochs", "2", "--train-num-samples", "8", "--val-num-samples", "2", "--no-tune-cpu", "--opt", "muon"]
    losses = []
    for where in ("cpu", device):
        folder = tmp_path / str(len(losses))
        more = ["--batch-size", "4", "--threads", "1", "--device", where, "--output", str(folder)]
        assert main([*flags, *more]) == 0
        rows = (folder / "metrics.csv").read_text().splitlines()[1:]
        losses.append([float(row.split(",")[2]) for row in rows])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_sums_stay_channels_last(device):
    """Of a residual connection, and of the gradients of what is used twice: what CuPy adds itself would not."""
    x = Tensor(to_device(np.ones((2, 4, 5, 3), np.float32), device).transpose(0, 3, 1, 2), requires_grad=True)
    y = x + x
    grads = []
    y.register_hook(lambda grad: grads.append(grad.data.strides))
    z = F.relu(y) + F.relu(y)
    z.backward(Tensor(to_device(np.ones((2, 4, 5, 3), np.float32), device).transpose(0, 3, 1, 2)))
    assert y.data.strides == z.data.strides == grads[0] == x.data.strides
    np.testing.assert_array_equal(x.grad.cpu().numpy(), np.full(x.shape, 4))
