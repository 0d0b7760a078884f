"""Residual connections: one op gives the values of the plain lines, and modules with hooks are called."""

from contextlib import nullcontext

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.nn.residual import norm_relu, residual_add, residual_add_norm
from minigrad.testing import graph

N, L, C = 6, 5, 8


def drawn(dtype, *shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype), requires_grad=True)


def inputs(dtype=np.float32):
    return drawn(dtype, N, L, C), drawn(dtype, N, L, C, seed=1)


def layer_norm(dtype=np.float32):
    norm = nn.LayerNorm(C, eps=1e-6).to(dtype=dtype)
    for seed, parameter in enumerate(norm.parameters()):
        parameter.data[...] = drawn(dtype, C, seed=2 + seed).data
    return norm


def add_then_norm(x, branch, drop_path, norm):
    x = x + drop_path(branch)
    return x, norm(x)


def scaled_add(x, branch, drop_path, gamma):
    return (x + drop_path(gamma * branch),)


def outcome(function, x, branch, drop_path, last, parameters):
    """The outputs, the gradients, and the names of the ops, from the same state of the generator in each call."""
    minigrad.manual_seed(0)
    leaves = [x, branch, *parameters]
    for leaf in leaves:
        leaf.grad = None
    outputs = function(x, branch, drop_path, last)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((y * drawn(y.dtype, *y.shape, seed=9 + i).detach()).sum() for i, y in enumerate(outputs))
    ops = sorted(node.op_name for node in graph(loss) if hasattr(node, "op_name"))
    loss.backward()
    return [*(y.numpy() for y in outputs), *(leaf.grad.numpy().copy() for leaf in leaves)], ops


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.4, True), (1.0, True), (0.4, False)])
def test_add_norm_equals_the_two_lines_bit_for_bit(dtype, p, training):
    norm, drop_path = layer_norm(dtype), nn.DropPath(p).train(training)
    arguments = (*inputs(dtype), drop_path, norm, list(norm.parameters()))
    found, ops = outcome(residual_add_norm, *arguments)
    expected, plain_ops = outcome(add_then_norm, *arguments)
    assert_equal(found, expected)
    assert "ResidualLayerNorm" in ops and "LayerNorm" not in ops
    assert "LayerNorm" in plain_ops and ("Dropout" in plain_ops) == (p > 0 and training)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, True), (1.0, True), (0.4, False)])
def test_add_with_layer_scale_equals_its_formula_bit_for_bit(dtype, p, training):
    """With p = 0.5 the factor 1 / (1 - p) = 2 is exact, so the order of the factors of ∂branch makes no difference."""
    gamma, drop_path = drawn(dtype, C, seed=2), nn.DropPath(p).train(training)
    arguments = (*inputs(dtype), drop_path, gamma, [gamma])
    found, ops = outcome(residual_add, *arguments)
    expected, plain_ops = outcome(scaled_add, *arguments)
    assert_equal(found, expected)
    assert "Residual" in ops and "Residual" not in plain_ops


def test_evaluation_mode_is_that_of_drop_path():
    (x, branch), norm, drop_path = inputs(), layer_norm().eval(), nn.DropPath(1.0)
    np.testing.assert_array_equal(residual_add(x, branch, drop_path).numpy(), x.numpy())
    np.testing.assert_array_equal(residual_add_norm(x, branch, drop_path, norm)[0].numpy(), x.numpy())
    drop_path.eval()
    norm.train()
    np.testing.assert_array_equal(residual_add(x, branch, drop_path).numpy(), (x + branch).numpy())
    np.testing.assert_array_equal(residual_add_norm(x, branch, drop_path, norm)[0].numpy(), (x + branch).numpy())


def test_forward_hooks_see_inputs_and_outputs():
    norm, drop_path, seen = layer_norm(), nn.DropPath(0.4), []
    arguments = (*inputs(), drop_path, norm, list(norm.parameters()))
    unhooked, _ = outcome(residual_add_norm, *arguments)
    for hooked in ([norm], [drop_path], [norm, drop_path]):
        seen.clear()
        removals = [
            m.register_forward_hook(lambda m, inputs, output: seen.append((m, *inputs, output))) for m in hooked
        ]
        found, ops = outcome(residual_add_norm, *arguments)
        for remove in removals:
            remove()
        assert_equal(found, unhooked)
        assert "ResidualLayerNorm" not in ops and {id(m) for m, *_ in seen} == {id(m) for m in hooked}
        for module, x, y in seen:
            if module is norm:
                assert_equal([x.numpy(), y.numpy()], unhooked[:2])
            else:
                assert x is arguments[1]
    assert outcome(residual_add_norm, *arguments)[1].count("ResidualLayerNorm") == 1  # no hook is left


def test_a_forward_hook_may_replace_the_norm():
    (x, branch), norm = inputs(), layer_norm()
    norm.register_forward_hook(lambda module, inputs, output: output * 2)
    s, y = residual_add_norm(x, branch, nn.DropPath(), norm)
    np.testing.assert_array_equal(y.numpy(), layer_norm()(s).numpy() * 2)


class HalfNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) / 2


def patched():
    norm = layer_norm()
    norm.forward = lambda x: nn.LayerNorm.forward(norm, x) * 2
    return norm


def checkpointed():
    norm = layer_norm()
    norm.checkpointing = True
    return norm


@pytest.mark.parametrize(
    "norm",
    [
        nn.Identity(), nn.GroupNorm(1, L), HalfNorm(C), nn.LayerNorm((L, C)),
        nn.LayerNorm(C, elementwise_affine=False), patched(), checkpointed(),
    ],
    ids=["identity", "group_norm", "subclass", "two_axes", "not_affine", "patched", "checkpointed"],
)  # fmt: skip
def test_any_norm_is_called(norm):
    arguments = (*inputs(), nn.DropPath(0.4), norm, list(norm.parameters()))
    found, ops = outcome(residual_add_norm, *arguments)
    expected, _ = outcome(add_then_norm, *arguments)
    assert_equal(found, expected)
    assert "ResidualLayerNorm" not in ops


@pytest.mark.parametrize("drop_path", [nn.Identity(), nn.Dropout(0.3)], ids=["identity", "dropout"])
def test_any_module_may_stand_for_drop_path(drop_path):
    norm, gamma = layer_norm(), drawn(np.float32, C, seed=2)
    arguments = (*inputs(), drop_path, norm, list(norm.parameters()))
    assert_equal(outcome(residual_add_norm, *arguments)[0], outcome(add_then_norm, *arguments)[0])
    arguments = (*inputs(), drop_path, gamma, [gamma])
    assert_equal(outcome(residual_add, *arguments)[0], outcome(scaled_add, *arguments)[0])


# GroupNorm and ReLU ---------------------------------------------------------------------------------------------------


def feature_maps(dtype=np.float32):
    """x and shortcut."""
    return drawn(dtype, 2, C, 3, 3), drawn(dtype, 2, C, 3, 3, seed=1)


def group_norm(dtype=np.float32):
    norm = nn.GroupNorm(2, C).to(dtype=dtype)
    for seed, parameter in enumerate(norm.parameters()):
        parameter.data[...] = drawn(dtype, C, seed=2 + seed).data
    return norm


def fused(x, shortcut, _, norm):
    return norm_relu(x, norm), norm_relu(x, norm, shortcut)


def separate(x, shortcut, _, norm):
    return F.relu(norm(x)), F.relu(norm(x) + shortcut)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fast_paths", [True, False])
def test_norm_relu_equals_the_separate_ops_bit_for_bit(dtype, fast_paths):
    norm = group_norm(dtype)
    arguments = (*feature_maps(dtype), None, norm, list(norm.parameters()))
    with nullcontext() if fast_paths else minigrad.without_fast_paths():
        found, ops = outcome(fused, *arguments)
        expected, separate_ops = outcome(separate, *arguments)
    assert_equal(found, expected)
    assert ops.count("GroupNormReLU") == 2 and not {"GroupNorm", "ReLU"} & {*ops}
    assert separate_ops.count("GroupNorm") == separate_ops.count("ReLU") == 2


def test_norm_relu_calls_any_norm_and_its_hooks():
    hooked, replaced, seen = group_norm(), group_norm(), []
    hooked.register_forward_hook(lambda module, inputs, output: seen.append(output.numpy()))
    replaced.forward = lambda x: nn.GroupNorm.forward(replaced, x) * 2
    for norm in (hooked, replaced, nn.Identity(), nn.BatchNorm2d(C), nn.LayerNorm(3)):
        arguments = (*feature_maps(), None, norm, list(norm.parameters()))
        found, ops = outcome(fused, *arguments)
        assert_equal(found, outcome(separate, *arguments)[0])
        assert "GroupNormReLU" not in ops
    np.testing.assert_array_equal(np.maximum(seen[0], 0), outcome(fused, *feature_maps(), None, hooked, [])[0][0])


def test_norm_relu_detects_writes_in_place():
    """To the weight, which the norm saved, and to y, which ReLU saved."""
    for fast_paths in (True, False):
        with nullcontext() if fast_paths else minigrad.without_fast_paths():
            for saved in ("weight", "y"):
                norm, (x, shortcut) = group_norm(), feature_maps()
                y = norm_relu(x, norm, shortcut)
                with minigrad.no_grad():
                    target = norm.weight if saved == "weight" else y
                    target += 1
                with pytest.raises(RuntimeError, match="GroupNormReLU> saved an array"):
                    y.sum().backward()
