"""Arrays from users: ndarray subclasses, masked arrays, uint8 indices, several Ellipses; memory layouts of sums."""

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor, nn, optim, serialize
from minigrad.backend import to_device

X = Tensor(np.arange(24.0).reshape(2, 3, 4))
SQUARE = Tensor(np.arange(4.0).reshape(2, 2))
MASKED = np.ma.array([[1.0, 2.0], [3.0, 1e9]], mask=[[0, 0], [0, 1]])


@pytest.fixture(params=["matrix", "memmap", "recarray", "subclass"])
def wrapped(request, tmp_path):
    """SQUARE + 1 as an instance of a subclass of np.ndarray."""
    values = SQUARE.numpy() + 1
    if request.param == "matrix":
        return values.view(np.matrix)
    if request.param == "recarray":
        return values.view(np.recarray)
    if request.param == "memmap":
        values.tofile(tmp_path / "values")
        return np.memmap(tmp_path / "values", values.dtype, "r+", shape=values.shape)
    return values.view(type("Own", (np.ndarray,), {}))


def test_ndarray_subclasses_are_converted(wrapped):
    plain = np.array(wrapped)
    for result, expected in (
        (Tensor(wrapped), plain),
        (Tensor(wrapped) * Tensor(wrapped), plain * plain),
        (SQUARE * wrapped, SQUARE.numpy() * plain),
        (wrapped * SQUARE, SQUARE.numpy() * plain),
        (F.linear(SQUARE, wrapped), SQUARE.numpy() @ plain.T),
        (Tensor(wrapped).sum(0), plain.sum(0)),
        (wrapped == SQUARE, SQUARE.numpy() == plain),
        (minigrad.where(wrapped > 2, SQUARE, wrapped), np.where(plain > 2, SQUARE.numpy(), plain)),
        (SQUARE[wrapped > 2], SQUARE.numpy()[plain > 2]),
        (SQUARE.masked_fill(wrapped > 2, 0.0), np.where(plain > 2, 0, SQUARE.numpy())),
        (SQUARE.gather(0, wrapped.astype(int) % 2), np.take_along_axis(SQUARE.numpy(), plain.astype(int) % 2, 0)),
    ):
        assert type(result.data) is np.ndarray
        np.testing.assert_array_equal(result.numpy(), expected)
    x = minigrad.zeros(2, 2)
    x[:] = wrapped
    x += wrapped
    assert x.tolist() == (2 * plain).tolist()
    layer = nn.Linear(2, 2, bias=False)
    layer.load_state_dict({"weight": wrapped})
    assert type(layer.weight.data) is np.ndarray and layer.weight.tolist() == plain.tolist()
    assert type(nn.Parameter(wrapped).data) is np.ndarray


def _backward_with_masked():
    y = Tensor(np.ones((2, 2)), requires_grad=True) * 2
    y.backward(MASKED)


@pytest.mark.parametrize(
    "use",
    [
        lambda: Tensor(MASKED), lambda: Tensor([MASKED[0], MASKED[1]]), lambda: Tensor([[1.0, np.ma.masked]]),
        lambda: SQUARE + MASKED, lambda: SQUARE @ MASKED, lambda: F.linear(SQUARE, MASKED),
        lambda: SQUARE == MASKED, lambda: SQUARE[MASKED > 1], lambda: SQUARE[[np.ma.array([0, 1], mask=[0, 1])]],
        lambda: SQUARE.index_select(0, np.ma.array([0, 1], mask=[0, 1])),
        lambda: SQUARE.masked_fill(MASKED > 1, 0.0), lambda: minigrad.zeros(2, 2).__setitem__(0, MASKED[0]),
        lambda: minigrad.zeros(2, 2).__iadd__(MASKED), lambda: F.one_hot(np.ma.array([0, 1], mask=[0, 1]), 2),
        lambda: nn.Linear(2, 2, bias=False).load_state_dict({"weight": MASKED}),
        lambda: optim.EMA(nn.Linear(2, 2, bias=False)).load_state_dict({"weight": MASKED, "updates": np.asarray(1)}),
        lambda: serialize.save("masked.npz", {"x": MASKED}), lambda: minigrad.from_dlpack(MASKED),
        lambda: minigrad.full((2,), np.ma.masked), lambda: F.cross_entropy(SQUARE, np.ma.array([0, 1], mask=[0, 1])),
        _backward_with_masked,
    ],
)  # fmt: skip
def test_masked_arrays_are_refused(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # serialize.save must not write a file here
    with pytest.raises(TypeError, match=r"masked array would lose its mask.* x\.filled\(0\)"):
        use()


@pytest.mark.parametrize("dims", [(2,), ()])
def test_uint8_indices_are_refused(dims):
    """PyTorch treats uint8 as a mask in x[index], and refuses uint8 in gather and index_select."""
    index = np.ones(dims, np.uint8)
    x = minigrad.zeros(2, 2)
    uses = [
        lambda: x[index], lambda: x[Tensor(index)], lambda: x[0, index], lambda: x.__setitem__(index, 1.0),
        lambda: x.__setitem__((0, Tensor(index)), 1.0),
    ]  # fmt: skip
    if dims:
        uses += [lambda: x[[index, index]], lambda: x.index_select(0, index), lambda: x.gather(0, index[None])]
    for use in uses:
        with pytest.raises(TypeError, match=r"uint8 index is ambiguous, a mask or positions.*astype\(bool\)"):
            use()
    assert not x.numpy().any()


def test_numpy_integers_are_indices():
    assert X[np.uint8(1)].shape == (3, 4) and X[[np.uint8(0), np.uint8(1)]].shape == (2, 3, 4)
    assert X[np.array([1, 0], np.int8)].shape == X[np.array([1, 0], np.uint16)].shape == (2, 3, 4)
    assert X[np.array([1, 0], np.uint8).astype(bool)].shape == (1, 3, 4)


@pytest.mark.parametrize(
    ("index", "shape"),
    [
        ((..., ...), (2, 3, 4)), ((0, ..., ...), (3, 4)), ((..., 0, ...), (2, 3)), ((..., [1], ...), (2, 3, 1)),
        ((0, 0, ..., 0, ...), ()), ((0, 0, ..., ..., 0), ()), ((0, ..., 1, ...), (3,)),
        ((None, ..., ...), (1, 2, 3, 4)),
        ((..., np.ones((3, 4), bool), ...), (2, 12)),
    ],
)  # fmt: skip
def test_only_the_first_ellipsis_expands(index, shape):
    assert X[index].shape == shape
    x = minigrad.zeros(2, 3, 4)
    x[index] = 1.0
    assert x.sum().item() == np.prod(shape)


@pytest.mark.parametrize("index", [(..., ..., 0), (..., ..., slice(1, None)), (..., ..., [1]), (..., ..., None)])
def test_index_after_two_ellipses_is_refused(index):
    with pytest.raises(IndexError, match="the first Ellipsis covers all"):
        X[index]


def test_sums_keep_the_channels_last_layout(device):
    """Sums of outputs and of gradients. CuPy's own addition returns C-contiguous arrays."""
    x = Tensor(to_device(np.ones((2, 4, 5, 3), np.float32), device).transpose(0, 3, 1, 2), requires_grad=True)
    y = x + x
    grads = []
    y.register_hook(lambda grad: grads.append(grad.data.strides))
    z = F.relu(y) + F.relu(y)
    z.backward(Tensor(to_device(np.ones((2, 4, 5, 3), np.float32), device).transpose(0, 3, 1, 2)))
    assert y.data.strides == z.data.strides == grads[0] == x.data.strides
    np.testing.assert_array_equal(x.grad.cpu().numpy(), np.full(x.shape, 4))
