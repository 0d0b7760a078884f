"""Where the tokens of a window are, what its mask parts, and what window attention says when used wrongly."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from minigrad.ops.window_attention import map_places, shift_mask, window_places
from minigrad.testing import gradcheck

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.booleans(), st.booleans())


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def drawn_map(sizes):
    rows, columns, M, down, right = sizes
    return rows * M, columns * M, M, (M // 2 if down and rows > 1 else 0, M // 2 if right and columns > 1 else 0)


@given(SIZES)
@example((3, 2, 4, True, True))
@example((2, 3, 3, True, True))
@example((3, 2, 2, True, False))
@example((3, 2, 2, False, True))
def test_the_mask_parts_what_was_not_close_before_the_roll(sizes):
    """Two tokens of one shifted window belong together if, in the map, they are less than a window apart."""
    H, W, M, shift = drawn_map(sizes)
    mask = shift_mask(H, W, M, shift)
    assert mask.shape == (H * W // M**2, 1, M * M, M * M) and mask.dtype == np.float32
    h, w = np.divmod(window_places(H, W, M, shift), W)
    close = (abs(h[:, :, None] - h[:, None]) < M) & (abs(w[:, :, None] - w[:, None]) < M)
    np.testing.assert_array_equal(mask[:, 0], np.where(close, 0.0, -100.0))


@given(SIZES)
def test_tokens_go_back_where_they_came_from(sizes):
    H, W, M, shift = drawn_map(sizes)
    places = window_places(H, W, M, shift)
    np.testing.assert_array_equal(places.reshape(-1)[map_places(H, W, M, shift)], np.arange(H * W))
    if shift == (0, 0):
        corner = np.arange(H * W).reshape(H, W)[-M:, -M:]
        np.testing.assert_array_equal(places[-1].reshape(M, M), corner)


def test_a_shifted_window_begins_half_a_window_further():
    places = window_places(8, 8, 4, (2, 2))
    assert places[0, 0] == 2 * 8 + 2 and places[3, -1] == 1 * 8 + 1


def test_windows_that_cover_the_map_are_attention():
    """One window: the same as attention of all tokens, with the bias as its mask."""
    qkv, bias = draw(2, 3, 3, 3 * 2 * 4), draw(2, 9, 9)
    y = F.window_attention(Tensor(qkv), Tensor(bias), num_heads=2, window_size=3)
    q, k, v = qkv.reshape(2, 9, 3, 2, 4).transpose(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(*map(Tensor, (q, k, v)), Tensor(bias)).numpy()
    np.testing.assert_allclose(y.numpy(), expected.transpose(0, 2, 1, 3).reshape(2, 3, 3, 8), rtol=1e-12)


def test_dropout_uses_one_mask_forward_and_back():
    def dropped(*tensors):
        minigrad.manual_seed(3)
        return F.window_attention(*tensors, num_heads=2, window_size=2, shift=1, dropout_p=0.5)

    gradcheck(dropped, draw(1, 4, 4, 12), draw(2, 4, 4))


def test_an_empty_batch():
    y = F.window_attention(Tensor(draw(0, 4, 4, 12)), None, num_heads=2, window_size=2, shift=1)
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
def test_what_does_not_fit_is_explained(shape, bias, options, message):
    with pytest.raises(ValueError, match=message):
        F.window_attention(
            Tensor(draw(*shape)),
            None if bias is None else Tensor(draw(*bias)),
            **{"num_heads": 2, "window_size": 2, **options},
        )


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        F.window_attention(Tensor(np.zeros((1, 4, 4, 12), int)), None, num_heads=2, window_size=2)
