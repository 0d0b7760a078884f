"""What the shape ops share with their input, and what they say when used wrongly."""

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor

X = Tensor(np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.reshape(3, 2),
        lambda x: x.permute(1, 0),
        lambda x: x.expand(4, 2, 3),
        lambda x: x.flip(0),
        lambda x: x.flatten(),
        lambda x: x.unsqueeze(0),
        lambda x: x[:, 1:],
    ],
)
def test_views_copy_nothing(view):
    assert np.shares_memory(view(X).data, X.data)


def test_shapes_may_be_given_as_numbers_or_as_one_sequence():
    for shape in ((3, 2), [3, 2]):
        assert X.reshape(shape).shape == X.reshape(*shape).shape == (3, 2)
    assert X.permute((1, 0)).shape == X.permute(1, 0).shape == X.T.shape == X.mT.shape == (3, 2)
    assert X.expand((4, -1, -1)).shape == X.expand(4, -1, -1).shape == (4, 2, 3)
    assert X.unflatten(1, (3, -1)).shape == (2, 3, 1)
    np.testing.assert_array_equal(X.flip([0, 1]).data, X.data[::-1, ::-1])


def test_a_tensor_without_axes_can_be_moved_too():
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


def test_split_pieces_join_again():
    for pieces in (X.split(2, 1), X.split([1, 2], 1), X.chunk(2, 1)):
        np.testing.assert_array_equal(minigrad.cat(pieces, 1).data, X.data)
    assert [piece.shape for piece in X.chunk(2, 1)] == [(2, 2), (2, 1)]
    np.testing.assert_array_equal(minigrad.stack(X.unbind(1), 1).data, X.data)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: x.reshape(4, 2), ValueError, r"reshape: 6 numbers of shape \(2, 3\) do not fit shape \(4, 2\)"),
        (lambda x: x.reshape(-1, 4), ValueError, "sizes must multiply to the same count"),
        (lambda x: x.reshape(-1, -1), ValueError, "at most one may be -1"),
        (lambda x: x.reshape(-2, 3), ValueError, "reshape: 6 numbers"),
        (lambda x: x.permute(0), ValueError, r"permute: must name all 2 axes of the input.*got \(0,\)"),
        (lambda x: x.permute(0, 0), ValueError, "name the same axis twice"),
        (lambda x: x.transpose(0, 2), IndexError, "transpose: axis 2 does not exist"),
        (lambda x: x.movedim((0, 1), 0), ValueError, "movedim: as many sources as destinations"),
        (lambda x: x.expand(4, 3), ValueError, r"expand: only axes of size 1 can grow: \(2, 3\).*\(4, 3\)"),
        (lambda x: x.expand(3), ValueError, r"expand: shape \(3,\) must have at least the 2 axes"),
        (lambda x: x.expand(-1, 2, 3), ValueError, "only for axes that exist"),
        (lambda x: x.flatten(1, 0), ValueError, "flatten: start_dim must not come behind end_dim"),
        (lambda x: x.squeeze(2), IndexError, "squeeze: axis 2 does not exist"),
        (lambda x: x.unsqueeze(4), IndexError, "unsqueeze: axis 4 does not exist"),
        (lambda x: x.flatten().mT, IndexError, "transpose: axis -2 does not exist"),
        (lambda x: x.flatten().T, ValueError, r"\.T is for matrices"),
        (lambda x: minigrad.cat([]), ValueError, "cat: needs at least one tensor"),
        (lambda x: minigrad.cat([x, x.T]), ValueError, "cat: shapes must agree on every axis but 0"),
        (
            lambda x: minigrad.cat([x.sum(), x.sum()]),
            ValueError,
            "cat: zero-dimensional tensors cannot be joined; use stack",
        ),
        (lambda x: minigrad.stack([x, x.T]), ValueError, "stack: all tensors must have one shape"),
        (lambda x: x.split(0), ValueError, "split: a piece must be at least 1 long, got 0"),
        (lambda x: x.split([1, 3], 1), ValueError, "split: sizes must add up to the length 3 of axis 1"),
        (lambda x: x.split([-1, 4], 1), ValueError, "split: sizes must add up"),
        (lambda x: x.chunk(0), ValueError, "chunk: needs at least one chunk, got 0"),
        (lambda x: x.roll((1, 2), 0), ValueError, "roll: needs one shift for each axis"),
        (lambda x: x.flip(0, 0), ValueError, "flip: axes .* name the same axis twice"),
        (lambda x: F.pad(x, (1,)), ValueError, "pad: needs a pair"),
        (lambda x: F.pad(x, (1,) * 6), ValueError, "at most 2 axes"),
        (lambda x: F.pad(x, (-2, -2)), ValueError, "pad: cropping .* negative sizes"),
        (lambda x: F.pad(x, (3, 0), "reflect"), ValueError, "pad: in mode 'reflect' widths must be from 0 to 2"),
        (lambda x: F.pad(x, (4, 0), "circular"), ValueError, "from 0 to 3"),
        (lambda x: F.pad(x, (-1, 0), "replicate"), ValueError, "pad: in mode 'replicate' widths must be from 0"),
        (lambda x: F.pad(x, (1, 0), "mirror"), ValueError, "pad: mode must be"),
        (lambda x: F.pad(x, (1, 0), "reflect", 1.0), ValueError, "pad: a value goes with mode='constant'"),
    ],
)
def test_errors_teach(call, error, message):
    with pytest.raises(error, match=message):
        call(X)
