"""In-place operators and `x[i] = v`: shared memory, gradients, and errors if a saved array was overwritten."""

import gc
import operator
import pickle
import weakref

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor, nn, no_grad, optim
from minigrad.autograd import writes
from minigrad.backend.meta import MetaArray
from minigrad.nn import init

OPERATORS = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv, operator.imod: operator.mod,
    operator.ipow: operator.pow,
}  # fmt: skip


def leaf(*values):
    return Tensor(np.array(values, np.float32), requires_grad=True)


@pytest.mark.parametrize("in_place", OPERATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3,), ()])
def test_in_place_operators_write_into_the_array(in_place, dtype, shape):
    x = Tensor(np.full(shape, 3.0), dtype=dtype)
    memory, view, expected = x.data, x.detach(), OPERATORS[in_place](x, 2)
    same = in_place(x, 2)
    assert same is x and x.data is memory and x.dtype == expected.dtype
    np.testing.assert_array_equal(view.double().data, expected.double().data)


def test_in_place_operators_on_integers_and_booleans():
    x, flags = Tensor([6, 3]), Tensor([True, False])
    memory = x.data
    x += True
    x -= 1
    x *= 2
    x &= 6
    x |= 1
    x ^= 2
    flags &= Tensor([True, True])
    assert x.data is memory and x.tolist() == [7, 5] and flags.tolist() == [True, False]


def test_sgd_step_under_no_grad_updates_the_model():
    model = nn.Linear(2, 1)
    state, before = model.state_dict(), model.weight.numpy().copy()
    model(Tensor([[1.0, 2.0]])).sum().backward()
    with no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
    np.testing.assert_allclose(state["weight"].numpy(), before - 0.1 * np.array([[1, 2]]), rtol=1e-6)
    model.weight.grad *= 0.5
    assert model.weight.grad.tolist() == [[0.5, 1.0]] and isinstance(model.weight, nn.Parameter)


def test_views_share_in_place_writes():
    x = minigrad.zeros(2, 3)
    first, flat, (row, _) = x[0], x.reshape(6), x.unbind()
    x[0][1] = 5.0
    x.T[2] = 7.0
    one = flat[0]
    one += 1
    row *= 2
    assert x.tolist() == [[2, 10, 14], [0, 0, 7]]
    assert first.tolist() == row.tolist() == [2, 10, 14] and flat.tolist() == [2, 10, 14, 0, 0, 7]
    picked = x[[0, 1]]
    picked += 1
    flipped = x.flip(0)
    flipped += 1
    assert x.tolist() == [[2, 10, 14], [0, 0, 7]]


def test_overlapping_operands_are_read_before_the_write():
    x = minigrad.arange(4).float()
    x[1:] += x[:-1]
    assert x.tolist() == [0, 1, 3, 5]
    y = minigrad.arange(4).float().reshape(2, 2)
    y += y.T
    assert y.tolist() == [[0, 3], [3, 6]]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda: operator.iadd(Tensor([1, 2]), 0.5), "result type float32 can't be cast .* int64"),
        (lambda: operator.itruediv(Tensor([1, 2]), 2), "result type float32 can't be cast"),
        (lambda: operator.iadd(Tensor([True]), 1), "result type int64 can't be cast .* bool"),
        (lambda: operator.iadd(Tensor([1, 2]), leaf(1.0, 2.0)), "can't be cast"),
        (lambda: operator.iadd(Tensor([1.0]), Tensor([1.0, 2.0])), r"shape \[1\] doesn't match .* shape \[2\]"),
        (lambda: operator.iadd(Tensor([1.0]), leaf(1.0, 2.0)), "doesn't match the broadcast shape"),
        (lambda: operator.iadd(minigrad.zeros(1).expand(3), 1), "more than one element .* single memory location"),
        (lambda: minigrad.zeros(1).expand(3).__setitem__(0, 1), "more than one element"),
        (lambda: operator.iadd(Tensor(np.frombuffer(bytes(8), np.float32)), 1), "read-only"),
        (lambda: operator.iadd(leaf(1.0), 1), "^a leaf Variable that requires grad is being used in an in-place op"),
        (lambda: operator.iadd(leaf(1.0).detach().requires_grad_(), 1), "^a leaf Variable"),
        (lambda: operator.imul(leaf(1.0, 2.0)[0], 2), "^a view of a leaf Variable that requires grad"),
        (lambda: operator.imul(leaf(1.0, 2.0).reshape(2, 1).reshape(1, 2), 2), "^a view of a leaf Variable"),
        (lambda: operator.imul(leaf(1.0, 2.0).unbind()[0], 2), "^a view of a leaf Variable"),
        (lambda: operator.imul(leaf([1.0, 2.0]).diagonal(), 2), "^a view of a leaf Variable"),
    ],
)
def test_invalid_writes_are_refused(write, message):
    with pytest.raises(RuntimeError, match=message):
        write()


def test_diagonal_is_a_view_and_diag_a_copy():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    x.diagonal().zero_()
    x.T.diagonal(-1).add_(10)
    x[:, :2].diag().fill_(7)
    np.testing.assert_array_equal(x.data, [[0, 11, 2], [3, 0, 15]])


def test_reshape_that_copies_is_not_a_view():
    x = leaf(1.0, 2.0, 3.0, 4.0)
    y = x.detach().reshape(2, 2).requires_grad_()
    copied = y.T.reshape(4)
    copied *= 2
    copied.sum().backward()
    assert y.grad.tolist() == [[2, 2], [2, 2]] and y.tolist() == [[1, 2], [3, 4]]


def test_refused_write_changes_nothing():
    x = Tensor([1, 2])
    with pytest.raises(RuntimeError):
        x += 0.5
    assert x.tolist() == [1, 2] and x.dtype == np.int64


@pytest.mark.parametrize(
    "write",
    [
        lambda w: operator.isub(w, 1), lambda w: w.__setitem__(0, 9.0), lambda w: w.detach().__setitem__(0, 9.0),
        lambda w: operator.imul(w[1], 2), lambda w: operator.imul(w.detach().reshape(2, 1), 2), init.uniform_,
    ],
)  # fmt: skip
@pytest.mark.parametrize("retained", [False, True])
def test_backward_refuses_overwritten_saved_arrays(write, retained):
    w = leaf(1.0, 2.0)
    y = (w * w).sum()
    if retained:
        y.backward(retain_graph=True)
    with no_grad():
        write(w)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation: <Mul> saved .* \(2,\) float32"):
        y.backward()


def test_writes_to_arrays_that_are_not_saved_are_allowed():
    w, x = leaf(1.0, 2.0), Tensor([3.0, 4.0])
    y = (x + w).sum()
    z = (w * x).sum()  # saves x
    with no_grad():
        w -= 1
    (y + z).backward()
    assert w.grad.tolist() == [4, 5]
    y = (w * w).sum()  # recorded after the write
    y.backward()
    assert w.grad.tolist() == [4, 7]


def test_overwritten_arrays_of_an_inner_op_are_detected():
    """The op runs LayerNorm inside, which saves the weight."""
    x, weight = leaf(1.0, 2.0, 4.0).reshape(1, 3), leaf(1.0, 2.0, 3.0)
    _, y = F.residual_layer_norm(x, x, weight, weight)
    with no_grad():
        weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("write", ["weight", "y"])
def test_overwritten_arrays_of_a_norm_with_relu_are_detected(write):
    """GroupNorm and ReLU, which run inside the op, save the weight and y."""
    x, weight = leaf(1.0, 2.0, 4.0, 8.0).reshape(1, 2, 2), leaf(1.0, 2.0)
    y = F.group_norm_relu(x, 1, weight, weight)
    loss = y.sum()
    with no_grad():
        {"weight": weight, "y": y}[write].detach()[0] = 9.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_writes_to_the_base_of_a_saved_view_are_detected():
    model = nn.Conv2d(1, 2, 3)
    x = minigrad.zeros(1, 1, 5, 5)
    y = model(x).sum()
    x[0, 0, 0, 0] = 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    index, mask = np.array([0, 1]), Tensor([True, False])
    w = leaf(1.0, 2.0)
    y, z = w.masked_fill(mask, 0.0).sum(), w[index].sum()
    index[:] = 1  # the op saved a copy
    z.backward()
    mask[0] = False
    with pytest.raises(RuntimeError, match="<MaskedFill> saved"):
        y.backward()


def _adamw(model):
    optimizer = optim.AdamW(model.parameters())
    optimizer.step()


@pytest.mark.parametrize(
    "update",
    [
        _adamw,
        lambda m: optim.SGD(m.parameters(), 0.1).step(),
        lambda m: optim.Muon([{"params": m.parameters(), "muon": True}]).step(),
        lambda m: m.load_state_dict(m.state_dict()),
    ],
)
def test_update_between_forward_and_backward_is_refused(update):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    x = Tensor([[1.0, 2.0]])
    model(x).sum().backward()
    y = model(x).sum()
    update(model)
    with pytest.raises(RuntimeError, match=r"<Linear> saved .* optimizer step"):
        y.backward()
    model(x).sum().backward()


def test_checkpoint_refuses_updated_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model.checkpointing = True
    y = model(leaf(1.0, 2.0)[None]).sum()
    with no_grad():
        for p in model.parameters():
            p *= 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation: <Checkpoint>"):
        y.backward()


def test_running_statistics_and_clipping_are_recorded():
    norm, w = nn.BatchNorm2d(2), leaf(1.0, 2.0)
    y = (w * norm.running_mean).sum()
    z = norm(minigrad.randn(2, 2, 3, 3) * w.reshape(2, 1, 1)).sum()
    z.backward()  # the ops saved no overwritten array
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    y = (w * w.grad).sum()
    optim.clip_grad_norm_(w, 1e-3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_update_in_a_hook_is_refused():
    w = leaf(1.0, 2.0)
    y = w * w
    z = y * 3
    z.register_hook(lambda grad: w.detach().__setitem__(0, 5.0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_recorded_operator_updates_the_same_tensor():
    total, x = Tensor(0.0), leaf(3.0)
    same = total
    for _ in range(2):
        total += (x * x).sum()
    assert same is total and total.requires_grad and not total.is_leaf and total.item() == 18
    total.backward()
    assert x.grad.item() == 12


@pytest.mark.parametrize("in_place", OPERATORS, ids=lambda f: f.__name__)
def test_gradients_of_recorded_operators(in_place):
    grads = []
    for function in (in_place, OPERATORS[in_place]):
        x, y = Tensor([2.0, 3.0], requires_grad=True, dtype=np.float64), leaf(1.5, 0.5)
        z = x.exp()  # saves its output, which must not be overwritten
        w = function(z, y)
        assert (w is z) == (function is in_place)
        (w * w).sum().backward()
        grads.append((x.grad.tolist(), y.grad.tolist()))
    assert grads[0] == grads[1]


def test_in_place_operators_keep_the_dtype_within_autocast():
    x, y = minigrad.zeros(2, 2), leaf(1.0, 2.0)
    with minigrad.autocast("bfloat16"):
        x += F.linear(Tensor(np.eye(2, dtype=np.float32)), y[None])
        assert x.dtype == np.float32 and x.requires_grad
        with no_grad():
            p = Tensor([1.0])
            p += Tensor([2**-12], dtype="bfloat16")
    assert p.item() == 1 + 2**-12
    half = Tensor([1.0], dtype=np.float16)
    half += leaf(1e-3)
    half.sum().backward()
    assert half.dtype == np.float16


def test_retained_gradient_refers_to_the_new_values():
    x = leaf(2.0)
    y = x * 1
    y.retain_grad()
    y *= 3
    (y * 5).sum().backward()
    assert y.grad.tolist() == [5] and x.grad.tolist() == [15]


def test_records_of_writes_are_freed_with_the_memory():
    gc.collect()
    before = len(writes._numbers)
    x = minigrad.zeros(3)
    array = weakref.ref(x.data)
    for _ in range(3):
        x += 1
        x[1:][0] = 2.0
    records = len(writes._numbers), len(writes._owners)
    del x  # before the first assert: pytest's explanations keep local variables alive
    assert records == (before + 1, before + 1)
    assert array() is None and len(writes._numbers) == len(writes._owners) == before


def test_arrays_on_one_buffer_share_records_of_writes():
    memory = bytearray(8)
    x, y = (Tensor(np.frombuffer(memory, np.float32)) for _ in range(2))
    w = leaf(1.0, 2.0)
    z = (w * x).sum()
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()
    strided = Tensor(np.lib.stride_tricks.as_strided(x.data, (2,), (4,)))
    z = (w * x).sum()
    strided += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


def test_unpickled_node_ignores_earlier_writes():
    w = leaf(1.0, 2.0)
    y = (w * w).sum()
    w, y = pickle.loads(pickle.dumps((w, y)))
    y.backward()
    assert w.grad.tolist() == [2, 4]


def test_writes_to_meta_arrays_do_nothing():
    x = Tensor(MetaArray((2, 3), np.float32))
    y = (Tensor(MetaArray((2, 3), np.float32)) * leaf(1.0, 2.0, 3.0)).sum()
    x += 1
    x[0] = 2.0
    assert isinstance(x.data, MetaArray)
    y.backward()


def test_in_place_writes_on_a_device(device):
    """Writes reach the array, also through views, and backward refuses an overwritten saved array."""
    w = Tensor([1.0, 2.0], device=device).requires_grad_()
    y, memory = (w * w).sum(), w.data
    with no_grad():
        w -= 1.0
        w[0] = 5.0
    assert w.data is memory and w.cpu().tolist() == [5, 1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    x = minigrad.zeros(2, 3, device=device)
    y = (x[0, :2] * w).sum()
    row = x[1]
    row += 1.0
    assert x.cpu().tolist() == [[0, 0, 0], [1, 1, 1]]
    x[0][1] = 2.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_index_put_accumulates_and_random_draws_on_a_device(device):
    w, at = minigrad.zeros(3, device=device).requires_grad_(), Tensor([0, 0, 2], device=device)
    y = w * 2
    y.index_put_((at,), Tensor([1.0, 2.0, 4.0], device=device), accumulate=True)
    y.index_put_((Tensor([True, False, False], device=device),), Tensor(1.0, device=device), accumulate=True)
    (y * y).sum().backward()
    assert y.tolist() == [4, 0, 4] and w.grad.tolist() == [16, 0, 16]
    assert set(minigrad.zeros(99, device=device).random_(2, 4).tolist()) == {2, 3}
    assert minigrad.block_diag(at.float(), y.detach()).tolist() == [[0, 0, 2, 0, 0, 0], [0, 0, 0, 4, 0, 4]]


def test_setitem_indexes_like_getitem():
    x = minigrad.zeros(2, 3, 4)
    x[0, :, [0, 1]] = Tensor([[1.0, 2.0]] * 3)
    assert x[0, :, [0, 1]].tolist() == [[1, 2]] * 3 and x.sum().item() == 9
    with pytest.raises(RuntimeError, match="gradient would be lost"):
        x[0, 0, 0] = leaf(1.0)[0]
    y = Tensor([1.0, 2.0], requires_grad=True)
    y[(0, 0),].sum().backward()
    assert y.grad.tolist() == [2, 0]


def test_later_changes_of_an_index_array_have_no_effect():
    x, index = Tensor([1.0, 2.0, 3.0], requires_grad=True), np.array([0, 0])
    y = x[index]
    index[:] = 2
    y.sum().backward()
    assert x.grad.tolist() == [2, 0, 0]
