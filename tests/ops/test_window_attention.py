"""Window attention: the tokens of each window, the mask of shifted windows, and error messages."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from minigrad.ops.window_attention import map_places, shift_mask, window_places
from minigrad.testing import gradcheck
from tests.compare import randn

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.booleans(), st.booleans())


def map_of_windows(sizes):
    rows, columns, M, down, right = sizes
    return rows * M, columns * M, M, (M // 2 if down and rows > 1 else 0, M // 2 if right and columns > 1 else 0)


@given(SIZES)
@example((3, 2, 4, True, True))
@example((2, 3, 3, True, True))
@example((3, 2, 2, True, False))
@example((3, 2, 2, False, True))
def test_shift_mask_separates_tokens_not_adjacent_in_the_map(sizes):
    """Tokens of a shifted window attend to each other only if less than M rows and M columns apart in the map."""
    H, W, M, shift = map_of_windows(sizes)
    mask = shift_mask(H, W, M, shift)
    assert mask.shape == (H * W // M**2, 1, M * M, M * M) and mask.dtype == np.float32
    h, w = np.divmod(window_places(H, W, M, shift), W)
    neighbours = (abs(h[:, :, None] - h[:, None]) < M) & (abs(w[:, :, None] - w[:, None]) < M)
    np.testing.assert_array_equal(mask[:, 0], np.where(neighbours, 0.0, -100.0))


@given(SIZES)
def test_map_places_inverts_window_places(sizes):
    H, W, M, shift = map_of_windows(sizes)
    places = window_places(H, W, M, shift)
    np.testing.assert_array_equal(places.reshape(-1)[map_places(H, W, M, shift)], np.arange(H * W))
    if shift == (0, 0):
        corner = np.arange(H * W).reshape(H, W)[-M:, -M:]
        np.testing.assert_array_equal(places[-1].reshape(M, M), corner)


def test_shifted_windows_start_at_the_shift():
    places = window_places(8, 8, 4, (2, 2))
    assert places[0, 0] == 2 * 8 + 2 and places[3, -1] == 1 * 8 + 1


def test_one_window_equals_global_attention():
    """A single window is attention over all tokens, with the bias as the mask."""
    qkv, bias = randn(2, 3, 3, 3 * 2 * 4), randn(2, 9, 9)
    y = F.window_attention(Tensor(qkv), Tensor(bias), num_heads=2, window_size=3)
    q, k, v = qkv.reshape(2, 9, 3, 2, 4).transpose(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(*map(Tensor, (q, k, v)), Tensor(bias)).numpy()
    np.testing.assert_allclose(y.numpy(), expected.transpose(0, 2, 1, 3).reshape(2, 3, 3, 8), rtol=1e-12)


def test_dropout_uses_the_same_mask_in_forward_and_backward():
    def attention_with_dropout(*tensors):
        minigrad.manual_seed(3)
        return F.window_attention(*tensors, num_heads=2, window_size=2, shift=1, dropout_p=0.5)

    gradcheck(attention_with_dropout, randn(1, 4, 4, 12), randn(2, 4, 4))


def test_an_empty_batch():
    y = F.window_attention(Tensor(randn(0, 4, 4, 12)), None, num_heads=2, window_size=2, shift=1)
    assert y.shape == (0, 4, 4, 4)


@pytest.mark.parametrize(
    ("shape", "bias", "options", "message"),
    [
        ((4, 4, 12), None, {}, r"must be \(B, H, W, 3C\), 4-D"),
        ((1, 5, 4, 12), None, {}, "windows of 2 x 2 do not cover a map of 5 x 4: pad it first"),
        ((1, 4, 4, 12), None, {"window_size": 0}, "do not cover"),
        ((1, 4, 4, 10), None, {}, "must be a multiple of 3 x 2 .* got 10"),
        ((1, 4, 4, 12), None, {"num_heads": 0}, "for 0 heads"),
        ((1, 4, 4, 12), None, {"shift": 2}, "from 0 to below the window's size 2, got"),
        ((1, 4, 4, 12), (2, 4, 5), {}, r"\(2, 4, 4\), got \(2, 4, 5\)"),
        ((1, 4, 4, 12), None, {"dropout_p": 1.5}, "window_attention"),
    ],
)
def test_error_messages(shape, bias, options, message):
    with pytest.raises(ValueError, match=message):
        F.window_attention(
            Tensor(randn(*shape)),
            None if bias is None else Tensor(randn(*bias)),
            **{"num_heads": 2, "window_size": 2, **options},
        )


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        F.window_attention(Tensor(np.zeros((1, 4, 4, 12), int)), None, num_heads=2, window_size=2)
