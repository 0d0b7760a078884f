"""Mixed precision: dtypes within autocast, cached casts of parameters, models."""

import gc
import sys
import threading
import weakref

import ml_dtypes
import numpy as np
import pytest

import minigrad
import models
from minigrad import Tensor, autocast, nn
from minigrad import functional as F
from minigrad.backend.cublas import pointer
from minigrad.backend.dtypes import cast
from minigrad.kernels.cuda import launch
from minigrad.kernels.cuda.launch import Recorder, use_device
from models.compare import formula
from tests.cuda.runner import HAS_COMPILER
from tests.models.test_devices import SMALL

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALF = [np.dtype(np.float16), BFLOAT16]
both = pytest.mark.parametrize("dtype", HALF, ids=str)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@both
def test_output_dtypes_within_autocast(dtype, device):
    """16-bit: matrix products and later ops. Float32: earlier ops, losses, softmax, sums, gradients of parameters."""
    x, norm, linear = Tensor(normal(4, 6), device=device), nn.LayerNorm(6).to(device), nn.Linear(6, 6).to(device)
    with autocast(dtype):
        before, y = F.gelu(x), linear(x)
        z = norm(y + x)
        loss = F.cross_entropy(z, Tensor(np.arange(4), device=device))
        found = [t.dtype for t in (before, y, F.gelu(y), z, loss, F.softmax(y, -1), y.sum(), y[0], y.exp())]
    expected = [np.float32, dtype, dtype, dtype, np.float32, np.float32, np.float32, dtype, np.float32]
    assert found == expected
    loss.backward()
    assert {p.grad.dtype for p in (*norm.parameters(), *linear.parameters())} == {np.dtype(np.float32)}
    assert linear(x).dtype == np.float32


@both
def test_output_dtypes_of_the_vocabulary_within_autocast(dtype, device):
    """As PyTorch's lists: products and convolutions in 16 bits; losses, norms and functions with exp in float32."""
    x = Tensor(normal(2, 3, 4, 4), device=device)
    with autocast(dtype):
        y = F.conv_transpose2d(x, Tensor(normal(3, 2, 2, 2), device=device))
        row = y.flatten(1).sigmoid()
        in_16_bits = [
            y,
            F.leaky_relu(y),
            y.max(1).values,
            y.sort().values,
            row.mm(row.T),
            row[:, 0].outer(row[0]),
            y % 1,
        ]
        in_float32 = [
            F.l1_loss(row, row), F.huber_loss(row, row), F.kl_div(row, row), F.binary_cross_entropy(row, row),
            F.binary_cross_entropy_with_logits(row, row), F.softplus(y), y.norm(), row.cumprod(1), row.rsqrt(),
            F.nll_loss(row, Tensor(np.array([0, 1]), device=device)), row.log1p(),
        ]  # fmt: skip
    assert [t.dtype for t in in_16_bits] == [dtype] * 7
    assert [t.dtype for t in in_float32] == [np.dtype(np.float32)] * 11


def test_float64_is_not_cast():
    with autocast("bfloat16"):
        assert (Tensor(np.ones((2, 2))) @ Tensor(np.ones((2, 2)))).dtype == np.float64


def test_parameter_is_cast_once_per_block(monkeypatch):
    layer, x = nn.Linear(3, 3), Tensor(normal(2, 3))
    casts = []
    monkeypatch.setattr("minigrad.autograd.autocast.cast", lambda x, dtype: casts.append(x) or cast(x, dtype))
    with autocast("bfloat16"):
        layer(layer(x))
        layer(x)
    assert sum(x is layer.weight.data for x in casts) == 1
    layer.weight.data[...] = 0
    with autocast("bfloat16"):
        assert (layer(x) - layer.bias).data.astype(np.float32).any() == 0


@both
def test_given_parameters_are_cast_at_the_start_of_the_block(dtype, device):
    """On a GPU, `parameters` are not cast at first use; outputs and gradients do not change."""
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3), nn.Linear(3, 3).to(dtype=np.float64))
    model.to(device)
    frozen = Tensor(normal(4, 4), device=device)
    x = Tensor(normal(2, 4), device=device)

    def outcome(given):
        with autocast(dtype, parameters=given) as block, minigrad.enable_grad():
            y = model[2](model[1](model[0](x @ frozen)))
            other = {id(copy) for copy in block.copies.values()}
        y.float().sum().backward()
        return y.float().numpy(), [p.grad.cpu().numpy() for p in model.parameters() if p.grad is not None], other

    expected, gradients, lazily = outcome(())
    model.zero_grad()
    found, ours, remaining = outcome(iter([*model.parameters(), frozen]))
    np.testing.assert_array_equal(found, expected)
    for a, b in zip(ours, gradients, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(lazily) == 4 and len(remaining) == (4 if device == "cpu" else 0)


def test_given_parameters_are_cast_in_one_launch(device):
    if device == "cpu":
        pytest.skip("on the CPU, parameters are cast at first use")
    if not HAS_COMPILER and not hasattr(sys.modules["cupy"], "__file__"):
        pytest.skip("needs kernels")
    model, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))).to(device), Tensor(normal(2, 8), device=device)
    for context in (minigrad.enable_grad(), minigrad.no_grad()):
        with context, use_device(recorder := Recorder(launch._device)):
            with autocast("bfloat16", parameters=model.parameters()):
                model(x)
            with autocast("bfloat16", enabled=False, parameters=model.parameters()):
                model(x)
        casts = [note for note in recorder.launches if note.kernel.file == "convert.cu"]
        assert [note.kernel.name for note in casts].count("convert_all") == 1
        addresses = {pointer(p.data) for p in model.parameters()}
        assert not [note for note in casts if note.kernel.name == "convert" and note.args[0] in addresses]


def test_cached_copies_are_freed_with_the_block():
    layer, x = nn.Linear(3, 3), Tensor(normal(2, 3))
    gc.disable()
    try:
        with autocast("bfloat16") as block:
            layer(x)
            copies = [weakref.ref(copy) for copy in block.copies.values()]
            assert len(copies) == 2 and all(copy().dtype == BFLOAT16 for copy in copies)
        del block
        assert [copy() for copy in copies] == [None, None]
    finally:
        gc.enable()


def test_nested_blocks_and_threads():
    a = Tensor(normal(2, 2))
    with autocast("bfloat16"):
        with autocast("float16"):
            assert (a @ a).dtype == np.float16
            with autocast("float16", enabled=False):
                assert (a @ a).dtype == np.float32
        assert (a @ a).dtype == BFLOAT16
        seen = []
        thread = threading.Thread(target=lambda: seen.append((a @ a).dtype))
        thread.start()
        thread.join()
        assert seen == [np.float32]
    assert (a @ a).dtype == np.float32


def test_checkpoint_recomputes_within_autocast():
    """Backward runs after the block, but recomputes forward in bfloat16."""

    def gradients(checkpointing):
        layer = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        for seed, p in enumerate(layer.parameters()):
            p.data[...] = normal(*p.shape, seed=seed)
        layer.checkpointing = checkpointing
        x = Tensor(normal(3, 4), requires_grad=True)
        with autocast("bfloat16"):
            y = layer(x)
        y.float().sum().backward()
        return y, [p.grad.numpy() for p in (x, *layer.parameters())]

    y, expected = gradients(False)
    checkpointed, found = gradients(True)
    assert y.dtype == checkpointed.dtype == BFLOAT16
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_block_ends_on_an_error():
    a = Tensor(normal(2, 2))
    with pytest.raises(ZeroDivisionError), autocast("bfloat16"):
        1 / 0  # noqa: B018
    assert (a @ a).dtype == np.float32 and minigrad.autograd.grad_mode.open_blocks == 0


def test_autocast_as_a_decorator():
    @autocast("bfloat16")
    def product(a):
        return a @ a

    @autocast("bfloat16")
    def power(a, n):
        return a if n == 1 else power(a, n - 1) @ a

    a = Tensor(normal(2, 2))
    assert product(a).dtype == power(a, 4).dtype == BFLOAT16
    assert (a @ a).dtype == np.float32  # every call opened and closed its own block


def test_float32_is_refused():
    with pytest.raises(ValueError, match=r"float16 or bfloat16, got float32"), autocast("float32"):
        pass
    assert minigrad.autograd.grad_mode.open_blocks == 0


@both
@pytest.mark.parametrize("name", SMALL)
def test_models_in_half_precision(name, dtype, device):
    """Errors relative to float32 are a few units of rounding: 2⁻⁸ in bfloat16, 2⁻¹¹ in float16."""

    def outcome(context):
        model = formula.fill(models.create_model(name, **SMALL[name])).to(dtype=np.float32).to(device)
        images = Tensor(formula.stream("cuda", 4, 3, *model.img_size).astype(np.float32), device=device)
        with context:
            logits = model(images)
            loss = F.cross_entropy(logits, Tensor(np.arange(4), device=device))
        (loss * 64).backward()
        return logits, loss.item(), {key: p.grad.cpu().numpy() / 64 for key, p in model.named_parameters()}

    _, exact, gradients = outcome(autocast(enabled=False))
    logits, loss, found = outcome(autocast(dtype))
    unit = 2**-8 if dtype == BFLOAT16 else 2**-11
    # Rounding changes the sign of inputs of ReLU near 0, in the hybrid and in the MLP of Swin V2's position bias.
    units = 128 if name.startswith("hybrid") else 64 if name.startswith("swinv2") else 16
    assert logits.dtype == dtype and abs(loss - exact) <= 4 * unit * abs(exact)
    for key, expected in gradients.items():
        assert found[key].dtype == np.float32
        size = np.linalg.norm(expected)
        assert np.linalg.norm(found[key] - expected) <= units * unit * size + 1e-4 * unit, key
