"""Meta arrays: shapes and dtypes of real arrays, no allocation, errors if values are needed."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minigrad
import models
from minigrad import Tensor, nn, serialize
from minigrad.backend import array_module
from minigrad.backend.meta import MetaArray
from minigrad.nn import init
from tests.cases import ALL_CASES

# Each expression is evaluated on real arrays and on meta arrays of the same shapes and dtypes.
EXPRESSIONS = {
    "exp": lambda xp, a, b, v: xp.exp(a),
    "add, broadcast": lambda xp, a, b, v: a + v,
    "Python numbers": lambda xp, a, b, v: 2 * a - 1.5,
    "integers and a float": lambda xp, a, b, v: (a > 0) * 2.5,
    "integers divided": lambda xp, a, b, v: (a > 0) / (a > -1),
    "mask": lambda xp, a, b, v: (a > 0) & ~xp.isnan(a),
    "matmul": lambda xp, a, b, v: a @ b,
    "matmul, a vector left": lambda xp, a, b, v: v @ b,
    "matmul, a vector right": lambda xp, a, b, v: a @ v,
    "matmul, two vectors": lambda xp, a, b, v: v @ v,
    "matmul, batches broadcast": lambda xp, a, b, v: a[:1] @ b[0],
    "sum": lambda xp, a, b, v: a.sum(),
    "sum, an axis": lambda xp, a, b, v: a.sum(axis=-1),
    "sum, axes kept": lambda xp, a, b, v: a.sum(axis=(0, 2), keepdims=True),
    "sum of booleans": lambda xp, a, b, v: (a > 0).sum(axis=1),
    "sum, with a dtype": lambda xp, a, b, v: a.sum(axis=0, dtype=np.float64),
    "mean": lambda xp, a, b, v: a.mean(axis=(1, 2)),
    "max": lambda xp, a, b, v: a.max(axis=0, keepdims=True),
    "any": lambda xp, a, b, v: (a > 0).any(axis=0),
    "reshape": lambda xp, a, b, v: a.reshape(-1, a.shape[-1]),
    "reshape of a transposed view": lambda xp, a, b, v: a.transpose(2, 0, 1)[::-1].reshape(-1),
    "slices": lambda xp, a, b, v: a[:, None, ::-2, ...],
    "one entry": lambda xp, a, b, v: a[0, 0, 0],
    "an index array": lambda xp, a, b, v: a[:, np.array([0, 0, 0])],
    "a boolean index": lambda xp, a, b, v: a[:, np.arange(a.shape[1]) < 1],
    "astype": lambda xp, a, b, v: a.astype(np.float16),
    "copy": lambda xp, a, b, v: a.copy(),
    "where": lambda xp, a, b, v: xp.where(a > 0, v, 0.0),
    "concatenate": lambda xp, a, b, v: xp.concatenate([a, a.astype(np.float64)], axis=-2),
    "stack": lambda xp, a, b, v: xp.stack([a, a], axis=-1),
    "roll": lambda xp, a, b, v: xp.roll(a, (1, -2), (0, 1)),
    "flip": lambda xp, a, b, v: xp.flip(a, (1,)),
    "moveaxis": lambda xp, a, b, v: xp.moveaxis(a, 0, -1),
    "expand_dims": lambda xp, a, b, v: xp.expand_dims(a, (0, 2)),
    "broadcast_to": lambda xp, a, b, v: xp.broadcast_to(a, (3, *a.shape)),
    "windows": lambda xp, a, b, v: xp.lib.stride_tricks.sliding_window_view(a, 1, axis=1),
    "split": lambda xp, a, b, v: xp.split(a, [1], axis=1)[1],
    "empty": lambda xp, a, b, v: xp.empty(a.shape, a.dtype),
    "zeros, of the default dtype": lambda xp, a, b, v: xp.zeros(5),
    "full": lambda xp, a, b, v: xp.full((2, 3), 7),
    "ones_like": lambda xp, a, b, v: xp.ones_like(a, dtype=np.int32),
    "asarray": lambda xp, a, b, v: xp.asarray(a, np.float64),
    "ascontiguousarray": lambda xp, a, b, v: xp.ascontiguousarray(a.T),
    "isneginf": lambda xp, a, b, v: xp.isneginf(a),
    "out=": lambda xp, a, b, v: xp.multiply(a, v, out=xp.empty_like(a)),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
@given(data=st.data())
def test_shapes_and_dtypes_are_those_of_real_arrays(name, data):
    B, L, D, E = (data.draw(st.integers(1, 4)) for _ in range(4))
    dtype = data.draw(st.sampled_from([np.float16, np.float32, np.float64]))
    shapes = (B, L, D), (B, D, E), (D,)
    real = EXPRESSIONS[name](np, *(np.ones(shape, dtype) for shape in shapes))
    found = EXPRESSIONS[name](array_module(MetaArray(())), *(MetaArray(shape, dtype) for shape in shapes))
    assert isinstance(found, MetaArray) and (found.shape, found.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("case", ALL_CASES, ids=[case.name for case in ALL_CASES])
@given(data=st.data())
def test_ops_on_meta_arrays(case, data):
    call = data.draw(case.calls)
    assume(any(is_float(x) for x in call.inputs))
    real = case.run(*(None if x is None else Tensor(x) for x in call.inputs), **call.options)
    inputs = [MetaArray(x.shape, x.dtype) if is_float(x) else x for x in call.inputs]  # indices and masks stay real
    found = case.run(*(None if x is None else Tensor(x) for x in inputs), **call.options)
    assert isinstance(found.data, MetaArray) and (found.shape, found.dtype) == (real.shape, real.dtype)


def test_power_of_0d_arrays():
    y = Tensor(MetaArray((), np.float32)) ** Tensor(MetaArray((), np.float32))
    assert isinstance(y.data, MetaArray) and (y.shape, y.dtype) == ((), np.float32)


def is_float(x) -> bool:
    return x is not None and x.dtype.kind == "f"


def test_meta_init_ends_with_its_block():
    with init.meta_init():
        assert isinstance(nn.Linear(2, 3).weight.data, MetaArray)
    assert type(nn.Linear(2, 3).weight.data) is np.ndarray


def test_model_runs_forward_without_memory():
    tracemalloc.start()
    with init.meta_init(), minigrad.no_grad():
        model = models.create_model("vit_huge_patch14_224")
        logits = model(Tensor(MetaArray((8, 3, 224, 224), np.float32)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert logits.shape == (8, 1000) and logits.dtype == np.float32
    assert peak < 40 * 2**20, f"{peak / 2**20:.0f} MiB, where the weights would be 2400 and one hidden layer 40"


def test_arrays_created_by_ops_are_meta_arrays():
    x = MetaArray((2, 3), np.float32)
    xp = array_module(x)
    assert xp.float32 is np.float32 and array_module(np.ones(2)) is np
    scratch = xp.zeros((2, 3), np.float32)
    scratch[0] = np.arange(3)
    scratch += 1
    assert isinstance(scratch, MetaArray) and repr(scratch) == "MetaArray((2, 3), float32)"
    assert repr(Tensor(x)) == "Tensor(MetaArray((2, 3), float32))"
    assert type(xp.asarray([1.0, 2.0])) is np.ndarray


@pytest.mark.parametrize(
    "use", [bool, int, float, np.ndarray.item, np.ndarray.tolist, np.ndarray.nonzero, range, lambda x: [1, 2][x]]
)
def test_functions_that_need_values_are_refused(use):
    if use in (np.ndarray.item, np.ndarray.tolist, np.ndarray.nonzero):
        use = getattr(MetaArray, use.__name__)
    with pytest.raises(TypeError, match="no values"):
        use(MetaArray((), np.int64))


def test_unsupported_functions_are_refused():
    x, real = MetaArray((3,), np.float32), np.ones(3, np.float32)
    with pytest.raises(TypeError, match="no values"):
        x[x > 0]
    with pytest.raises(TypeError, match="no values to write"):
        real += x
    with pytest.raises(TypeError, match=r"do not support np\.unique"):
        np.unique(x)
    with pytest.raises(TypeError, match=r"do not support np\.add\.outer"):
        np.add.outer(x, x)
    with pytest.raises(TypeError, match=r"do not support np\.divmod"):
        divmod(x, x)
    with pytest.raises(ValueError, match=r"the result has shape \(2, 3\), but out has shape \(3,\)"):
        x += MetaArray((2, 3))
    with pytest.raises(ValueError, match=r"matmul: .* got shapes \(3,\) and \(2,\)"):
        x @ MetaArray((2,))
    with pytest.raises(ValueError, match="broadcast"):
        x + MetaArray((2,))


def test_meta_arrays_are_not_saved_or_loaded(tmp_path):
    with nn.init.meta_init():
        meta = nn.Linear(2, 3)
    real = nn.Linear(2, 3)
    before = real.weight.numpy().copy()
    for target, source in ((meta, real), (real, meta)):
        with pytest.raises(ValueError, match="has meta arrays, without values"):
            target.load_state_dict(source.state_dict())
    np.testing.assert_array_equal(real.weight.numpy(), before)
    with pytest.raises(TypeError, match="cannot save 'weight': a meta array"):
        serialize.save(tmp_path / "meta.npz", meta.state_dict())
