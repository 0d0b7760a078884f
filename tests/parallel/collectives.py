"""A program for the ranks of test_mpi.py: each operation on drawn arrays, against NumPy on the arrays of all ranks."""

import sys

import numpy as np
from ml_dtypes import bfloat16

from minigrad.parallel import world

w = world()
DTYPES = [np.float32, np.float64, np.float16, bfloat16, np.int8, np.uint8, np.int32, np.int64, np.uint64, bool]
FLOATS = [np.float32, np.float64, np.float16, bfloat16]
SHAPES = [(), (0,), (1,), (7,), (3, 4), (2, 3, 5), (20_000,), (130, 150)]  # the last two are larger than SMALL
LAYOUTS = [
    np.asarray,
    np.asfortranarray,
    lambda x: np.repeat(x, 2, -1)[..., ::2] if x.ndim else x,
    lambda x: x[::-1].copy()[::-1],
]


def draw(shared, own, shape, dtype):
    """Arrays of all ranks: each rank draws all of them, by a generator in the same state."""
    values = shared.standard_normal((w.size, *shape)) * 10
    with np.errstate(invalid="ignore"):
        every = [x > 0 if dtype is bool else x.astype(dtype) for x in values]
    layout = LAYOUTS[own.integers(len(LAYOUTS)) if shape else 0]  # ranks differ in layout
    return every, layout(np.array(every[w.rank]))


def expected(every, op):
    x = np.stack([x.astype(np.float32) if x.dtype.itemsize == 2 else x for x in every])
    if op == "max" or op == "min":
        return getattr(x, op)(0).astype(every[0].dtype)
    if x.dtype == bool:
        return x.any(0)
    total = x.astype(np.float64).sum(0) if x.dtype.kind == "f" else x.sum(0, x.dtype)
    return total / w.size if op == "mean" else total


def tolerance(dtype):
    return {"float64": 1e-14, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}.get(np.dtype(dtype).name, 0)


def check(x, right, what):
    assert x.shape == right.shape, what
    scale = np.abs(right.astype(np.float64)).max(initial=1)
    np.testing.assert_allclose(
        x.astype(np.float64), right.astype(np.float64), rtol=0, atol=tolerance(x.dtype) * scale, err_msg=str(what)
    )
    return x.tobytes()


seed = int(sys.argv[1])
shared, own = np.random.default_rng(seed), np.random.default_rng([seed, w.rank])
results = b""
for _ in range(int(sys.argv[2])):
    for op in ("sum", "mean", "max", "min"):
        count = int(shared.integers(1, 5))
        dtypes = [(FLOATS if op == "mean" else DTYPES)[i] for i in shared.integers(0, 4 if op == "mean" else 10, count)]
        cases = [draw(shared, own, SHAPES[shared.integers(len(SHAPES))], d) for d in dtypes]
        strides = [x.strides for _, x in cases]
        w.all_reduce(*(x for _, x in cases), op=op)
        for (every, x), dtype, before in zip(cases, dtypes, strides, strict=True):
            assert (x.dtype, x.strides) == (dtype, before)
            results += check(x, expected(every, op), (op, dtype))

    # Several operations are under way, and other operations in between; waited for in any order.
    drawn = [(SHAPES[shared.integers(len(SHAPES))], DTYPES[shared.integers(len(DTYPES))]) for _ in range(6)]
    cases = [draw(shared, own, shape, dtype) for shape, dtype in drawn]
    works = [w.start_all_reduce(x, y) for (_, x), (_, y) in zip(cases[::2], cases[1::2], strict=True)]
    every, x = draw(shared, own, (5,), np.float32)
    w.all_reduce(x)
    results += check(x, expected(every, "sum"), "between")
    for i in own.permutation(3):
        works[i].wait()
        works[i].wait()
    for every, x in cases:
        results += check(x, expected(every, "sum"), "start_all_reduce")

    root = int(shared.integers(w.size))
    cases = [draw(shared, own, shape, DTYPES[shared.integers(len(DTYPES))]) for shape in SHAPES]
    w.broadcast(*(x for _, x in cases), root=root)
    for every, x in cases:
        np.testing.assert_array_equal(x, every[root])

    for dtype in DTYPES:
        every, x = draw(shared, own, SHAPES[shared.integers(len(SHAPES))], dtype)
        found = w.all_gather(x)
        assert len(found) == w.size
        for y, right in zip(found, every, strict=True):
            assert type(y) is np.ndarray and y.dtype == dtype
            np.testing.assert_array_equal(y, right)
        n = int(shared.integers(0, 9))
        every, x = draw(shared, own, (w.size * n,), dtype)
        before = x.copy()
        y = w.reduce_scatter(x)
        assert y.dtype == dtype
        check(y, expected(every, "sum")[w.rank * n : (w.rank + 1) * n], "reduce_scatter")
        np.testing.assert_array_equal(x, before)
        every, x = draw(shared, own, (n,), dtype)
        out = np.zeros(2 * w.size * n, dtype)[::2] if own.integers(2) else np.zeros(w.size * n, dtype)
        w.all_gather_into(x, out)
        np.testing.assert_array_equal(out, np.concatenate(every))

    value = [{"rank": w.rank, "text": "é" * w.rank}, None, 1.5, True, []]
    assert w.all_gather_objects(value) == [[{"rank": r, "text": "é" * r}, *value[1:]] for r in range(w.size)]
    assert w.broadcast_object(value if w.rank == root else {1, 2}, root)[0]["rank"] == root
    w.barrier()

x = np.array([np.nan if w.rank == 0 else 1.0, w.rank, -0.0 if w.rank else 0.0])
w.all_reduce(x, op="max")
np.testing.assert_array_equal(x, [np.nan, w.size - 1, 0])
assert len({y.tobytes() for y in w.all_gather(x)}) == 1
assert len(set(w.all_gather_objects(results.hex()))) == 1, "results differ between ranks"
print("done")
