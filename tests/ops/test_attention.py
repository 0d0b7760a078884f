"""Attention: fully masked queries, dropout, masks that broadcast, and error messages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from minigrad.testing import gradcheck
from tests.cases.attention import attention as naive_attention
from tests.compare import randn

attention = F.scaled_dot_product_attention


@pytest.mark.parametrize(
    "mask", [np.array([[True, False], [False, False]]), np.array([[0.0, -np.inf], [-np.inf, -np.inf]])]
)
def test_fully_masked_query_gives_zeros_and_no_gradient(mask):
    q, k, v = (Tensor(randn(1, 2, 3), requires_grad=True) for _ in range(3))
    y = attention(q, k, v, Tensor(mask))
    np.testing.assert_allclose(y.data, [[v.data[0, 0], np.zeros(3)]])
    y.sum().backward()
    np.testing.assert_array_equal(q.grad.data[0, 1], np.zeros(3))
    np.testing.assert_array_equal(k.grad.data[0, 1], np.zeros(3))
    np.testing.assert_array_equal(v.grad.data, [[np.ones(3), np.zeros(3)]])


@pytest.mark.parametrize(("L", "S"), [(3, 3), (2, 4), (4, 2)])
def test_causal_query_i_attends_to_keys_0_to_i(L, S):
    """With all scores 0, output i is the mean of values 0 to i."""
    v = np.arange(1.0, S + 1)[:, None]
    y = attention(Tensor(np.zeros((L, 1))), Tensor(np.zeros((S, 1))), Tensor(v), is_causal=True)
    np.testing.assert_allclose(y.numpy(), [v[: i + 1].mean(0) for i in range(L)])


def test_large_scores_do_not_overflow():
    q = Tensor(np.array([[1000.0]]))
    np.testing.assert_allclose(
        attention(q, Tensor(np.array([[1.0], [2.0]])), Tensor(np.array([[3.0], [4.0]]))).data, [[4]]
    )


def test_gradient_of_a_mask_that_broadcasts_over_windows():
    """Swin adds a bias (heads, L, S) to scores (windows, heads, L, S): its gradient is a sum over the windows."""
    q, k, v, bias = randn(3, 2, 4, 5), randn(3, 2, 4, 5), randn(3, 2, 4, 5), randn(2, 4, 4)
    gradcheck(attention, q, k, v, bias)


def test_empty_batch_and_no_keys():
    assert attention(*(Tensor(np.empty((0, 2, 4, 5))) for _ in range(3))).shape == (0, 2, 4, 5)
    y = attention(Tensor(randn(2, 3)), Tensor(np.empty((0, 3))), Tensor(np.empty((0, 4))))
    np.testing.assert_array_equal(y.data, np.zeros((2, 4)))


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_dropout_uses_the_same_mask_in_forward_and_backward(p):
    def attention_with_dropout(*tensors):
        minigrad.manual_seed(3)
        return attention(*tensors, dropout_p=p)

    gradcheck(attention_with_dropout, randn(2, 3, 4), randn(2, 5, 4), randn(2, 5, 4), randn(3, 5))


def test_dropout_preserves_the_mean():
    q, k, v = Tensor(np.zeros((4000, 1, 1))), Tensor(np.zeros((4000, 8, 1))), Tensor(np.ones((4000, 8, 1)))
    y = attention(q, k, v, dropout_p=0.25).data  # means of 8 values that are 0 or 4/3
    assert abs(y.mean() - 1) < 0.02
    assert abs(y.var() - 0.25 / 0.75 / 8) < 0.01


@given(
    st.lists(st.sampled_from([1, 2, 3]), min_size=0, max_size=2),
    st.lists(st.sampled_from([1, 2, 3]), min_size=0, max_size=3),
    st.sampled_from([(4, 4), (1, 4), (4, 1), (1, 1), (4, 5), (5, 4)]),
    st.sampled_from([bool, np.float32, np.float64]),
)
def test_masks_broadcast_to_the_scores_or_are_refused(lead, mask_lead, mask_shape, dtype):
    """Float64 and boolean masks run the reference implementation, float32 runs the fast path."""
    input_dtype = np.float32 if dtype is np.float32 else np.float64
    q, k, v = (randn(*lead, 4, 3).astype(input_dtype) for _ in range(3))
    mask = (randn(*mask_lead, *mask_shape) + (dtype is bool)).astype(dtype)
    call = lambda: attention(*map(Tensor, (q, k, v, mask))).numpy()  # noqa: E731
    try:
        np.broadcast_to(mask, (*lead, 4, 4))
    except ValueError:
        with pytest.raises(ValueError, match=r"attention: the mask must broadcast to \(\.\.\., L, S\), here \("):
            call()
    else:
        np.testing.assert_allclose(call(), naive_attention(q, k, v, mask), atol=1e-5)


def test_a_mask_for_a_larger_batch_is_refused():
    """The fast path processes small scores as one chunk, large scores as one chunk per image."""
    for images, masks, heads, tokens in ((1, 8, 12, 50), (2, 3, 1, 600)):
        q = Tensor(np.zeros((images, heads, tokens, 8), np.float32))
        with pytest.raises(ValueError, match="the mask must broadcast to"):
            attention(q, q, q, Tensor(np.zeros((masks, 1, tokens, tokens), np.float32)))


Q = Tensor(randn(2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: attention(Q, Tensor(randn(2, 4)), Q),
            ValueError,
            r"attention: needs queries.*\(2, 3\), \(2, 4\) and",
        ),
        (lambda: attention(Q, Q, Tensor(randn(3, 3))), ValueError, "attention: needs queries"),
        (lambda: attention(Q[0], Q, Q), ValueError, "attention: needs queries"),
        (lambda: attention(Q, Q, Q, Q[:, :2] > 0, is_causal=True), ValueError, "a mask or is_causal=True, not both"),
        (lambda: attention(Q, Q, Q, dropout_p=1.5), ValueError, "a probability must be from 0 to 1, got 1.5"),
        (lambda: attention(Q > 0, Q, Q), TypeError, "needs floating-point numbers"),
    ],
)
def test_error_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()
