"""Muon: orthogonalize, the updates of both kinds of groups, and state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor, nn, optim
from minigrad.backend import to_device
from minigrad.nn import Parameter


@given(A=st.integers(1, 12), B=st.integers(1, 12), steps=st.integers(0, 6), seed=st.integers(0, 2**32))
def test_orthogonalize_maps_singular_values_by_a_polynomial(A, B, steps, seed):
    """`orthogonalize` keeps the singular vectors: G = U S Vᵀ becomes U p(p(... S / ‖G‖)) Vᵀ."""
    G = np.random.default_rng(seed).standard_normal((A, B))
    U, s, V = np.linalg.svd(G, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    np.testing.assert_allclose(optim.orthogonalize(G, steps), (U * s) @ V, rtol=1e-9, atol=1e-12)


@given(A=st.integers(1, 64), B=st.integers(1, 64), seed=st.integers(0, 2**32), scale=st.sampled_from([1e-4, 1, 1e4]))
def test_orthogonalize_is_about_orthogonal(A, B, seed, scale):
    """The matrices are float32, their singular values differ by a factor of up to 100."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((n, min(A, B))))[0] for n in (A, B))
    s = np.geomspace(1, 0.01, min(A, B))
    result = optim.orthogonalize((scale * (U * s) @ V.T).astype(np.float32))
    assert result.dtype == np.float32 and result.shape == (A, B)
    found = np.linalg.svd(result, compute_uv=False)
    assert found.min() > 0.6 and found.max() < 1.25
    assert np.trace(U.T @ result @ V) > 0.6 * min(A, B)  # in the directions of G


def test_orthogonalize_maps_0_to_0():
    np.testing.assert_array_equal(optim.orthogonalize(np.zeros((3, 5), np.float32)), 0)


@pytest.mark.parametrize(
    ("dtype", "scale"), [("float16", 1e-4), ("float16", 3e4), ("bfloat16", 1e-5), ("bfloat16", 1e30), ("float32", 1e30)]
)
def test_orthogonalize_if_squares_overflow_or_underflow(dtype, scale):
    G = np.random.default_rng(0).uniform(0.5, 1, (3, 4))
    half = Tensor(np.float32(scale * G)).to(dtype=dtype).data
    found = optim.orthogonalize(half)
    assert found.dtype == half.dtype
    expected = optim.orthogonalize(half.astype(np.float64))
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0.02, atol=2**-8)


def test_muon_follows_its_formula_and_adamw(device):
    rng = np.random.default_rng(0)
    shapes = (6, 4), (5, 2, 3, 3), (4,), (3, 5), (4, 1, 3, 3), (1, 3, 4)
    # A matrix, filters; by AdamW: a bias, a head, depthwise filters, a position embedding.
    start = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    ours, theirs = ([Parameter(to_device(x.copy(), device)) for x in start] for _ in range(2))
    settings = {"lr": 0.1, "weight_decay": 0.5, "betas": (0.8, 0.9)}
    groups = optim.matrices_apart([{"params": ours}], others=[ours[3]])
    assert [group["muon"] for group in groups] == [True, False] and groups[0]["params"] == ours[:2]
    muon, adamw = optim.Muon(groups, momentum=0.7, **settings), optim.AdamW(theirs, **settings)
    matrices = [(x.reshape(len(x), -1).astype(np.float64), np.zeros((len(x), x[0].size))) for x in start[:2]]
    for _ in range(4):
        grads = [rng.standard_normal(x.shape).astype(np.float32) for x in start]
        for parameters in (ours, theirs):
            for p, g in zip(parameters, grads, strict=True):
                p.grad = Tensor(to_device(g.copy(), device))
        before = grads[0].copy()
        muon.step()
        adamw.step()
        np.testing.assert_array_equal(ours[0].grad.numpy(), before)
        for (W, m), g in zip(matrices, grads, strict=False):
            g = g.reshape(m.shape)  # filters (O, I, H, W) -> (O, I·H·W)
            m[...] = 0.7 * m + 0.3 * g
            W[...] = W * (1 - 0.1 * 0.5) - 0.1 * 0.2 * max(W.shape) ** 0.5 * optim.orthogonalize(0.7 * m + 0.3 * g)
    for (W, _), p in zip(matrices, ours, strict=False):
        np.testing.assert_allclose(p.numpy(), W.reshape(p.shape), rtol=1e-4, atol=1e-5)
    for p, q in zip(ours[2:], theirs[2:], strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_restored_muon_continues_bit_for_bit():
    def made():
        model = nn.Linear(3, 4)
        return model, optim.Muon(optim.matrices_apart([{"params": model.parameters()}]))

    def run(model, optimizer, seed):
        rng = np.random.default_rng(seed)
        for _ in range(3):
            for p in model.parameters():
                p.grad = Tensor(rng.standard_normal(p.shape).astype(np.float32))
            optimizer.step()

    (one, first), (two, second) = made(), made()
    run(one, first, 0)
    two.load_state_dict(one.state_dict())
    second.load_state_dict({name: np.copy(value) for name, value in first.flat_state_dict().items()})
    run(one, first, 1)
    run(two, second, 1)
    for name, value in one.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), two.state_dict()[name].numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "0.0.v": state["0.0.m"]}, r"'0\.0\.v' does not fit .* a parameter of group 0 is m$"),
        (lambda state: {k: v for k, v in state.items() if k != "1.0.v"}, r"parameters: v is missing"),
        (lambda state: {k: v for k, v in state.items() if k not in {"1.0.v", "1.0.m"}}, r"parameters: m, v is missing"),
    ],
)
def test_state_names_differ_between_groups(change, message):
    """A matrix has m only, other parameters have the state of AdamW. A state with other names is refused."""
    model = nn.Linear(3, 4)
    optimizer = optim.Muon(optim.matrices_apart([{"params": model.parameters()}]))
    assert [optimizer.state_names(group) for group in optimizer.param_groups] == [("m",), ("step", "m", "v")]
    for p in model.parameters():
        p.grad = Tensor(np.ones(p.shape, np.float32))
    optimizer.step()
    state, before = optimizer.flat_state_dict(), optimizer.state
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(change(state))
    assert optimizer.state is before


def test_invalid_options_raise():
    with pytest.raises(
        ValueError, match=r"a group with muon=True is for matrices and filters, got a parameter of shape \(3,\)"
    ):
        optim.Muon([{"params": [Parameter(np.ones(3))], "muon": True}])
    for options, message in (({"momentum": 1}, "momentum"), ({"betas": (1, 0)}, "betas"), ({"lr": -1}, "lr")):
        with pytest.raises(ValueError, match=f"Muon: {message}"):
            optim.Muon([Parameter(np.ones((3, 3)))], **options)
