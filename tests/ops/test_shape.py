"""Shape ops: views that share memory, 0-d tensors, and error messages."""

import ctypes

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from minigrad.backend.cublas import pointer
from minigrad.ops.shape import stacked_view

X = Tensor(np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.reshape(3, 2),
        lambda x: x.permute(1, 0),
        lambda x: x.expand(4, 2, 3),
        lambda x: x.flatten(),
        lambda x: x.unsqueeze(0),
        lambda x: x[:, 1:],
    ],
)
def test_views_share_memory(view):
    assert np.shares_memory(view(X).data, X.data)


def test_flip_copies():
    """flip copies as PyTorch's does: a write into x.flip(0) must not change x."""
    assert not np.shares_memory(X.flip(0).data, X.data)


def test_shapes_as_integers_or_as_one_sequence():
    for shape in ((3, 2), [3, 2]):
        assert X.reshape(shape).shape == X.reshape(*shape).shape == (3, 2)
    assert X.permute((1, 0)).shape == X.permute(1, 0).shape == X.T.shape == X.mT.shape == (3, 2)
    assert X.expand((4, -1, -1)).shape == X.expand(4, -1, -1).shape == (4, 2, 3)
    assert X.unflatten(1, (3, -1)).shape == (2, 3, 1)
    np.testing.assert_array_equal(X.flip([0, 1]).data, X.data[::-1, ::-1])


def test_shape_ops_of_a_0d_tensor():
    x = Tensor(np.array(3.0))
    for y in (
        x.roll(1),
        x.roll(1, 0),
        x.flip(),
        x.transpose(0, -1),
        x.permute(),
        x.squeeze(),
        x.expand(()),
        x.reshape(()),
    ):
        assert y.shape == ()
        assert y.item() == 3
    assert x.flatten().shape == x.unsqueeze(0).shape == (1,)


def test_cat_and_stack_invert_split_chunk_and_unbind():
    for chunks in (X.split(2, 1), X.split([1, 2], 1), X.chunk(2, 1)):
        np.testing.assert_array_equal(minigrad.cat(chunks, 1).data, X.data)
    assert [chunk.shape for chunk in X.chunk(2, 1)] == [(2, 2), (2, 1)]
    np.testing.assert_array_equal(minigrad.stack(X.unbind(1), 1).data, X.data)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: x.reshape(4, 2), ValueError, r"reshape: 6 elements of shape \(2, 3\) do not fit shape \(4, 2\)"),
        (lambda x: x.reshape(-1, 4), ValueError, "the product of the sizes must be"),
        (lambda x: x.reshape(-1, -1), ValueError, "at most one size may be -1"),
        (lambda x: x.reshape(-2, 3), ValueError, "reshape: 6 elements"),
        (lambda x: x.permute(0), ValueError, r"permute: dims must list all 2 axes of the input.*got \(0,\)"),
        (lambda x: x.permute(0, 0), ValueError, "name the same axis twice"),
        (lambda x: x.transpose(0, 2), IndexError, "transpose: axis 2 does not exist"),
        (lambda x: x.movedim((0, 1), 0), ValueError, "movedim: source and destination must have"),
        (lambda x: x.expand(4, 3), ValueError, r"expand: only axes of size 1 can be expanded, got \(2, 3\).*\(4, 3\)"),
        (lambda x: x.expand(3), ValueError, r"expand: shape \(3,\) must have at least the 2 axes"),
        (lambda x: x.expand(-1, 2, 3), ValueError, "only for axes of the input"),
        (lambda x: x.flatten(1, 0), ValueError, "flatten: start_dim must not be greater than end_dim"),
        (lambda x: x.squeeze(2), IndexError, "squeeze: axis 2 does not exist"),
        (lambda x: x.unsqueeze(4), IndexError, "unsqueeze: axis 4 does not exist"),
        (lambda x: x.flatten().mT, IndexError, "transpose: axis -2 does not exist"),
        (lambda x: x.flatten().T, ValueError, r"\.T is only for matrices"),
        (lambda x: minigrad.cat([]), ValueError, "cat: needs at least one tensor"),
        (lambda x: minigrad.cat([x, x.T]), ValueError, "cat: shapes must agree on every axis but 0"),
        (
            lambda x: minigrad.cat([x.sum(), x.sum()]),
            ValueError,
            "cat: 0-d tensors cannot be concatenated; use stack",
        ),
        (lambda x: minigrad.stack([x, x.T]), ValueError, "stack: all tensors must have the same shape"),
        (lambda x: x.split(0), ValueError, "split: split_size must be at least 1, got 0"),
        (lambda x: x.split([1, 3], 1), ValueError, "split: sizes must add up to the size 3 of axis 1"),
        (lambda x: x.split([-1, 4], 1), ValueError, "split: sizes must add up"),
        (lambda x: x.chunk(0), ValueError, "chunk: chunks must be at least 1, got 0"),
        (lambda x: x.roll((1, 2), 0), ValueError, "roll: needs one shift for each axis"),
        (lambda x: x.flip(0, 0), ValueError, "flip: axes .* name the same axis twice"),
        (lambda x: F.pad(x, (1,)), ValueError, "pad: needs widths"),
        (lambda x: F.pad(x, (1,) * 6), ValueError, "at most 2 axes"),
        (lambda x: F.pad(x, (-2, -2)), ValueError, "pad: widths .* give negative sizes"),
        (lambda x: F.pad(x, (3, 0), "reflect"), ValueError, "pad: in mode 'reflect' widths must be at most 2"),
        (lambda x: F.pad(x, (4, 0), "circular"), ValueError, "widths must be at most 3"),
        (lambda x: F.pad(x, (-2, -2), "replicate"), ValueError, "crop all of an axis of size 3 in mode .replicate"),
        (lambda x: F.pad(x, (1, 0), "mirror"), ValueError, "pad: mode must be"),
        (lambda x: F.pad(x, (1, 0), "reflect", 1.0), ValueError, "pad: value is only for mode .constant."),
    ],
)
def test_error_messages(call, error, message):
    with pytest.raises(error, match=message):
        call(X)


def test_stacked_view_joins_only_parts_of_one_array():
    """Parts at equal distances in one array are joined as a view of the array; all other parts give None."""
    array = np.arange(24.0).reshape(2, 3, 4)
    for axis in range(3):
        parts = list(np.moveaxis(array, axis, 0))
        joined = stacked_view(parts)
        np.testing.assert_array_equal(joined, parts)
        assert np.shares_memory(joined, array)
    first, second, third = np.moveaxis(array, 1, 0)
    np.testing.assert_array_equal(stacked_view([third, second, first]), [third, second, first])
    for parts in ([first, third, second], [first, second.copy()], [first, None, third], [first], [first, second[:1]]):
        assert stacked_view(parts) is None
    # Two arrays that an allocator placed next to each other are not parts of one array.
    memory = (ctypes.c_double * 8)()
    neighbours = [
        np.frombuffer((ctypes.c_double * 4).from_address(ctypes.addressof(memory) + 32 * i)) for i in range(2)
    ]
    assert pointer(neighbours[1]) - pointer(neighbours[0]) == 32 and stacked_view(neighbours) is None


def test_unbind_if_the_parts_get_the_same_gradient_array():
    """The backward of a + b + c passes the same array to all three."""
    x = Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True)
    a, b, c = x.unbind(0)
    ((a + b + c) * Tensor(np.array([1.0, 2.0]))).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[1, 2]] * 3)


def test_gradient_in_memory_of_a_bytearray():
    """A gradient from another library may have a base that is not an array: `stacked_view` must accept the gradient."""
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    gradient = np.asarray(memoryview(bytearray(np.arange(6.0).tobytes())).cast("d", (2, 3)))
    minigrad.stack(list(x.unbind(0))).backward(Tensor(gradient))
    np.testing.assert_array_equal(x.grad.numpy(), np.arange(6.0).reshape(2, 3))
