"""The CPU fast paths of the models' blocks equal the reference implementations, and run in plain inference alone."""

import tracemalloc
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
import models
from minigrad import Tensor, inference_mode, nn, no_grad
from minigrad import functional as F
from minigrad.autograd.anomaly import detect_anomaly
from minigrad.backend import fast_paths
from minigrad.backend.fast_paths import fast_paths_of
from models import convnext, convnextv2, cpu, deit, swin, swinv2, vit
from models.cpu import inference

KINDS = ["convnext", "convnextv2", "vit", "deit3", "swin", "swin shifted", "swinv2", "swinv2 shifted"]


def randn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make(kind, dim=12, ratio=4.0, drop=0.0, window=4):
    """A block with random parameters, in evaluation mode."""
    if kind == "convnext":
        block = convnext.Block(dim, 7, ratio, drop, 1.0)
    elif kind == "convnextv2":
        block = convnextv2.Block(dim, 7, ratio, drop, None)
    elif kind == "vit":
        block = vit.Block(dim, 3, ratio, True, drop, drop, drop)
    elif kind == "deit3":
        block = deit.Block(dim, 3, ratio, True, drop, drop, drop, init_values=1.0)
    else:
        family = swinv2 if kind.startswith("swinv2") else swin
        block = family.SwinTransformerBlock(dim, 3, window, kind.endswith("shifted"), ratio, True, drop, drop, drop)
    for i, parameter in enumerate(block.parameters()):
        parameter.data[...] = randn(i, *parameter.shape) * (0.3 if parameter.ndim > 1 else 1)
    return block.eval()


def inputs(kind, N=3, H=8, W=8, dim=12, seed=0):
    images, tokens = (N, dim, H, W), (N, H * W + 1, dim)
    shapes = {"convnext": images, "convnextv2": images, "vit": tokens, "deit3": tokens}
    shape = shapes.get(kind, (N, H, W, dim))
    return Tensor(randn(seed, *shape))


@pytest.fixture
def calls(monkeypatch):
    """The names of the fast paths that ran."""
    names = []
    for reference in (
        convnext.Block.forward,
        convnext.LayerNorm2d.forward,
        vit.Block.forward,
        deit.Block.forward,
        swin.SwinTransformerBlock.forward,
        swinv2.SwinTransformerBlock.forward,
    ):
        (implementation,) = fast_paths_of(reference)

        def counted(*arguments, implementation=implementation, **options):
            names.append(implementation.__name__)
            return implementation(*arguments, **options)

        counted.supports = implementation.supports
        for table in (fast_paths.FAST_PATHS, fast_paths._registered):
            monkeypatch.setitem(table, reference, (counted,))
    return names


def reference(block, x):
    with no_grad(), minigrad.without_fast_paths():
        return block(x).numpy().astype(np.float64)


def assert_equals_reference(block, x, tolerance=1e-5):
    with no_grad():
        y = block(x)
    expected = reference(block, x)
    assert y.shape == expected.shape and y.dtype == np.float32
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=tolerance * max(1, abs(expected).max()))
    return y


@given(
    st.sampled_from(KINDS), st.sampled_from([1, 3, 17]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3),
    st.sampled_from([0.5, 4.0]), st.sampled_from([1, 30, 1 << 20]), st.integers(0, 99),
)  # fmt: skip
def test_blocks_equal_reference(kind, N, rows, columns, heads_width, ratio, chunk, seed):
    """Chunks are one token, several, or the whole batch; maps are square or not, of even or odd sizes."""
    step = 4 if kind.startswith("swin") else 3
    dim = 3 * heads_width + 3
    block, x = make(kind, dim, ratio), inputs(kind, N, step * rows, step * columns, dim, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "CHUNK", chunk)
        patch.setattr(inference, "MIN_TOKENS", 1)
        assert_equals_reference(block, x)


@pytest.mark.parametrize("kind", KINDS)
def test_fast_path_runs_in_inference(kind, calls):
    block, x = make(kind), inputs(kind)
    for mode in (no_grad, inference_mode):
        with mode():
            block(x)
    assert len(calls) == 2
    block.train()  # without dropout, training changes nothing
    assert_equals_reference(block, x)
    block.requires_grad_(False)
    assert_equals_reference(block, x)
    assert len(calls) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_input_is_not_overwritten_and_any_memory_order_works(kind):
    block, x = make(kind), inputs(kind)
    before = x.numpy().copy()
    expected = assert_equals_reference(block, x).numpy()
    np.testing.assert_array_equal(x.numpy(), before)
    for array in (np.asfortranarray(before), before[::-1].copy()[::-1], np.repeat(before, 2, axis=-1)[..., ::2]):
        with no_grad():
            np.testing.assert_allclose(block(Tensor(array)).numpy(), expected, atol=1e-5 * abs(expected).max())


UNSUPPORTED = {
    "gradients": lambda block, x: None,
    "hook inside": lambda block, x: block.norm_.register_forward_hook(lambda module, args, output: output * 2),
    "pre-hook inside": lambda block, x: block.linear_.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "forward of an instance": lambda block, x: vars(block.norm_).update(forward=lambda x: x * 3),
    "subclass inside": lambda block, x: setattr(block.linear_, "__class__", type("Twice", (nn.Linear,), {
        "forward": lambda self, x: F.linear(x, self.weight, self.bias) * 2})),
    "half parameters": lambda block, x: block.linear_.to(dtype=np.float16),
    "double input": lambda block, x: setattr(x, "data", x.data.astype(np.float64)),
    "dropout": lambda block, x: [block.train(), setattr(block.drop_path, "p", 1.0)],
    "no bias": lambda block, x: block.linear_.register_parameter("bias", None),
    "anomaly mode": lambda block, x: None,
    "autocast": lambda block, x: None,
}  # fmt: skip


@pytest.mark.parametrize("change", UNSUPPORTED)
@pytest.mark.parametrize("kind", KINDS)
def test_reference_runs_otherwise(kind, change, calls):
    block, x = make(kind, drop=0.0), inputs(kind)
    object.__setattr__(block, "norm_", block.norm if "convnext" in kind else block.norm2)
    object.__setattr__(block, "linear_", block.pwconv2 if "convnext" in kind else block.mlp.fc2)
    UNSUPPORTED[change](block, x)
    modes = {
        "gradients": minigrad.enable_grad,
        "anomaly mode": detect_anomaly,
        "autocast": lambda: minigrad.autocast("float16"),
    }
    with no_grad(), modes.get(change, no_grad)():
        y = block(x).numpy()
        with minigrad.without_fast_paths():
            expected = block(x).numpy()
    np.testing.assert_allclose(y.astype(np.float64), expected.astype(np.float64), atol=1e-2 * abs(expected).max())
    assert calls == []


def test_a_replaced_forward_of_a_class_runs(calls, monkeypatch):
    monkeypatch.setattr(vit.Mlp, "forward", lambda self, x: x * 0)
    block, x = make("vit"), inputs("vit")
    assert_equals_reference(block, x)
    assert calls == []


def test_a_subclass_with_another_forward_runs(calls):
    class Twice(vit.Block):
        def forward(self, x):
            return super().forward(x) * 2

    block, x = make("vit"), inputs("vit")
    once = reference(block, x)
    block.__class__ = Twice
    with no_grad():
        np.testing.assert_allclose(block(x).numpy(), 2 * once, atol=1e-5 * abs(once).max())
    assert calls == []


@pytest.mark.parametrize("kind", ["vit", "deit3"])
@pytest.mark.parametrize("tokens", [1, 2, 65])
def test_first_tokens_equal_reference(kind, tokens, calls):
    block, x = make(kind), inputs(kind)
    with no_grad():
        y, all_tokens = block(x, tokens).numpy(), block(x).numpy()
        with minigrad.without_fast_paths():
            expected = block(x, tokens).numpy()
    np.testing.assert_allclose(y, expected, atol=1e-5 * abs(expected).max())
    np.testing.assert_allclose(y, all_tokens[:, :tokens], atol=1e-5 * abs(expected).max())
    assert calls == ["vit_block"] * 2


@pytest.mark.parametrize("kind", ["vit", "deit3"])
@pytest.mark.parametrize("tokens", [0, 66, -1])
def test_other_numbers_of_tokens_run_the_reference(kind, tokens, calls):
    block, x = make(kind), inputs(kind)
    with no_grad():
        y = block(x, tokens).numpy()
    assert y.shape == x.numpy()[:, :tokens].shape and calls == []


def test_hook_on_response_norm_runs(calls):
    block, x = make("convnextv2"), inputs("convnextv2")
    block.grn.register_forward_hook(lambda module, args, output: output * 2)
    assert_equals_reference(block, x)
    assert calls == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [("convnext", "gamma"), ("convnextv2", "grn.beta"), ("deit3", "ls2.gamma"), ("swinv2", "attn.logit_scale")],
)
def test_a_double_parameter_runs_the_reference(kind, name, calls):
    block, x = make(kind), inputs(kind)
    parameter = dict(block.named_parameters())[name]
    parameter.data = parameter.data.astype(np.float64)
    with no_grad():
        assert block(x).dtype == np.float64 and calls == []


@pytest.mark.parametrize("kind", ["swin shifted", "swinv2 shifted"])
def test_padded_windows_run_the_reference(kind, calls):
    block, x = make(kind), inputs(kind, H=7, W=6)
    assert_equals_reference(block, x)
    assert calls == []


CHANGES = {
    "in place by NumPy": lambda p: p.data.__imul__(1.5),
    "an element": lambda p: p.data.reshape(-1).__setitem__(0, 9.0),
    "data": lambda p: setattr(p, "data", p.data * 1.5),
    "in-place operator": lambda p: p.mul_(1.5),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_changed_parameters_are_noticed(kind, change):
    """Every parameter, one after the other, between two calls."""
    block, x = make(kind), inputs(kind)
    y = assert_equals_reference(block, x).numpy()
    for name, parameter in block.named_parameters():
        with no_grad():
            CHANGES[change](parameter)
        changed = assert_equals_reference(block, x).numpy()
        assert abs(changed - y).max() > 0 or name.endswith("qkv.bias"), name
        y = changed


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_trained_and_replaced_parameters_are_noticed(kind):
    block, x = make(kind), inputs(kind)
    assert_equals_reference(block, x)
    block.load_state_dict({name: value * 0.5 for name, value in block.state_dict().items()})
    assert_equals_reference(block, x)
    block(x).sum().backward()
    minigrad.optim.SGD(block.parameters(), lr=1e-3).step()
    assert_equals_reference(block, x)
    block.norm1 = block.norm2 = block.norm = nn.LayerNorm(12)
    assert_equals_reference(block, x)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_fortran_order(kind, calls):
    block, x = make(kind), inputs(kind)
    y = assert_equals_reference(block, x).numpy()
    for module in block.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = np.asfortranarray(module.weight.data)
    np.testing.assert_allclose(assert_equals_reference(block, x).numpy(), y, atol=1e-5 * abs(y).max())
    assert len(calls) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_registered_and_removed_between_calls(kind, calls):
    block, x = make(kind), inputs(kind)
    y = assert_equals_reference(block, x).numpy()
    seen = []
    handle = (block.norm if "convnext" in kind else block.norm1).register_forward_hook(lambda *_: seen.append(1))
    assert_equals_reference(block, x)
    assert len(seen) == 2 and len(calls) == 1
    handle.remove()
    np.testing.assert_array_equal(assert_equals_reference(block, x).numpy(), y)
    assert len(calls) == 2
    block.register_forward_hook(lambda module, args, output: seen.append(output))  # around the block
    assert_equals_reference(block, x)
    assert len(seen) == 4 and len(calls) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, 1e30, 300.0])
def test_nan_and_large_values_stay_in_their_image(kind, value):
    block, x = make(kind), inputs(kind)
    x.data[1].reshape(-1)[5] = value
    with no_grad(), np.errstate(all="ignore"):
        y = block(x).numpy()
        with minigrad.without_fast_paths():
            expected = block(x).numpy()
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    for actual, image in zip(y[[0, 2]], expected[[0, 2]], strict=True):
        np.testing.assert_allclose(actual, image, atol=1e-5 * abs(image).max())


@pytest.mark.parametrize("mean", [0, 10, 1e4])
def test_normalization_of_tokens_with_a_large_mean(mean):
    """If |μ| exceeds a few σ, the rounding error of μ is subtracted too."""
    norm, x = nn.LayerNorm(300, eps=1e-6), randn(0, 7, 300) + np.float32(mean)
    norm.weight.data[...], norm.bias.data[...] = randn(1, 300), randn(2, 300)
    with no_grad(), minigrad.without_fast_paths():
        expected = F.layer_norm(Tensor(x.astype(np.float64)), 300, eps=1e-6).numpy() * randn(1, 300) + randn(2, 300)
    columns = x.T.copy()
    inference.normalize_columns(columns, norm, np.empty_like(columns))
    for y in (columns.T, inference.normalize_rows(x, norm)):
        np.testing.assert_allclose(y, expected, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_a_block(kind):
    block = make(kind)
    xs = [inputs(kind, seed=seed) for seed in range(4)]
    expected, results = [reference(block, x) for x in xs], {}

    def run(i):
        with no_grad():
            results[i] = [block(xs[i]).numpy() for _ in range(5)]

    threads = [Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, y in enumerate(expected):
        for result in results[i]:
            np.testing.assert_allclose(result, y, atol=1e-5 * abs(y).max())


@pytest.mark.parametrize("name", [
    "convnext_atto_cifar", "convnextv2_atto_cifar", "vit_nano_cifar", "swin_nano_cifar", "swinv2_nano_cifar",
    "hybrid_nano_cifar",
])  # fmt: skip
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_models_equal_reference(name, batch, calls):
    """After random changes of all parameters: new models have γ = 0.000001, and heads of zeros."""
    if name not in models.list_models():
        pytest.skip("no such model")
    model = models.create_model(name).eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.data += randn(i, *parameter.shape) * 0.05
    assert_equals_reference(model, Tensor(randn(0, batch, 3, 32, 32)))
    assert calls


@pytest.mark.parametrize(
    "name", ["convnext_atto_cifar", "convnextv2_atto_cifar", "vit_nano_cifar", "swin_nano_cifar", "swinv2_nano_cifar"]
)
def test_peak_memory_does_not_grow(name):
    model, x = models.create_model(name).eval(), Tensor(randn(0, 32, 3, 32, 32))
    peaks = []
    for enabled in (True, False):
        original = dict(fast_paths.FAST_PATHS)
        if not enabled:
            for reference in list(original):
                if getattr(reference, "__module__", "").startswith("models."):
                    del fast_paths.FAST_PATHS[reference]
        with no_grad():
            model(x)
            tracemalloc.start()
            model(x)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        fast_paths.FAST_PATHS.update(original)
    assert peaks[0] <= peaks[1], peaks


def test_package_holds_its_files():
    assert set(cpu.__all__) == {"convnext", "transformer"}
