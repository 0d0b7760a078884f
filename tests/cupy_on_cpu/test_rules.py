"""The stand-in has the dtypes, memory order, views and errors of CuPy 14.2.

`RULES` is a table of expressions and their results in CuPy. A result is a new array, a view of the memory of an
operand, or an operand itself, with dtype, shape and memory order (C, F, or strides in elements); another Python type;
or an error. CuPy cannot compile cumsum for bfloat16 (CompileException): the stand-in raises NotImplementedError.
"""

import ml_dtypes
import numpy as np
import pytest

from tests.cupy_on_cpu import module
from tests.cupy_on_cpu.array import ndarray

RULES = """
# Memory order: new arrays have C order, except where a function has an order
F + f                                             new float32 (3, 4) C
F + F                                             new float32 (3, 4) C
-F                                                new float32 (3, 4) C
abs(F)                                            new float32 (3, 4) C
F * 2.5                                           new float32 (3, 4) C
F > 0                                             new bool (3, 4) C
cupy.exp(F)                                       new float32 (3, 4) C
cupy.where(m, F, F)                               new float32 (3, 4) C
cupy.concatenate([F, F])                          new float32 (6, 4) C
cupy.stack([F, F])                                new float32 (2, 3, 4) C
F.sum(axis=1, keepdims=True)                      new float32 (3, 1) C
F.cumsum(axis=0)                                  new float32 (3, 4) C
F.round()                                         new float32 (3, 4) C
F.clip(0, 1)                                      new float32 (3, 4) C
cupy.take(F, k, axis=0)                           new float32 (2, 4) C
F.repeat(2, axis=0)                               new float32 (6, 4) C
F.astype(np.float64)                              new float64 (3, 4) F
F.copy()                                          new float32 (3, 4) C
f.copy("F")                                       new float32 (3, 4) F
F.copy("K")                                       new float32 (3, 4) F
cupy.zeros_like(F)                                new float32 (3, 4) F
cupy.empty_like(F)                                new float32 (3, 4) F
cupy.full_like(F, 1)                              new float32 (3, 4) F
cupy.zeros((3, 4), np.float32, order="F")         new float32 (3, 4) F
cupy.pad(F, 1)                                    new float32 (5, 6) F
cupy.roll(F, 1, 0)                                new float32 (3, 4) F
cupy.asarray(np.asfortranarray(np.ones((3, 4))))  new float64 (3, 4) F
cupy.asarray(np.ones((3, 8))[:, ::2])             new float64 (3, 4) C

# Views, copies, and the same object
f[0]                                      view float32 (4,)
f[0, 0]                                   view float32 ()
z[()]                                     view float32 ()
f[:, ::2]                                 view float32 (3, 2) (4, 2)
f[k]                                      new float32 (2, 4) C
f[:, k]                                   new float32 (3, 2) C
f[k, None]                                new float32 (2, 1, 4) C
f[[0, 1]]                                 new float32 (2, 4) C
f.T                                       view float32 (4, 3) F
f.reshape(-1)                             view float32 (12,)
F.reshape(-1)                             new float32 (12,)
F.ravel()                                 new float32 (12,)
f.flatten()                               new float32 (12,)
f.squeeze()                               itself float32 (3, 4) C
f[None].squeeze()                         view float32 (3, 4) C
f.astype(np.float32)                      new float32 (3, 4) C
f.astype(np.float32, copy=False)          itself float32 (3, 4) C
cupy.ascontiguousarray(f)                 itself float32 (3, 4) C
cupy.ascontiguousarray(F)                 new float32 (3, 4) C
cupy.asarray(f)                           itself float32 (3, 4) C
cupy.asarray(f, np.float64)               new float64 (3, 4) C
cupy.expand_dims(f, 0)                    view float32 (1, 3, 4) C
cupy.moveaxis(f, 0, 1)                    view float32 (4, 3) F
cupy.flip(f, 0)                           view float32 (3, 4) (-4, 1)
cupy.broadcast_to(f, (2, 3, 4))           view float32 (2, 3, 4) (0, 4, 1)
cupy.broadcast_to(f[:1], (2, 1, 4))       view float32 (2, 1, 4) (0, 4, 1)
cupy.concatenate([f])                     new float32 (3, 4) C

# bfloat16: functions without a loop use another one, or raise
b + 2                                     new bfloat16 (3, 4) C
b + 2.5                                   new float32 (3, 4) C
b * h                                     new float32 (3, 4) C
b + f                                     new float32 (3, 4) C
b / 2                                     new bfloat16 (3, 4) C
b ** 2                                    new bfloat16 (3, 4) C
b + np.float32(1)                         new float32 (3, 4) C
b + np.float64(1)                         new float64 (3, 4) C
f + np.float64(1)                         new float64 (3, 4) C
f + 2.5                                   new float32 (3, 4) C
h + 2.5                                   new float16 (3, 4) C
b.sum()                                   new bfloat16 ()
b.mean()                                  new bfloat16 ()
b.max()                                   new bfloat16 ()
b.std()                                   new float64 ()
b.var(axis=0)                             new float64 (4,)
b.round()                                 new float32 (3, 4) C
b.clip(0, 1)                              new float32 (3, 4) C
b.clip(0, None)                           TypeError
f.clip(0, None)                           new float32 (3, 4) C
m.clip(0, None)                           TypeError
cupy.where(m, b, b)                       new float32 (3, 4) C
cupy.where(m, b, 2.5)                     new float32 (3, 4) C
cupy.where(b, f, f)                       new float32 (3, 4) C
cupy.argsort(b)                           NotImplementedError
b.cumsum()                                NotImplementedError
b[:1] @ b[:1].T                           new bfloat16 (1, 1) C

# Integers and booleans
i + 2.5                                   new float64 (3, 4) C
i / 2                                     new float64 (3, 4) C
i + u                                     new int32 (3, 4) C
u == 300                                  new bool (3, 4) C
u == -1                                   new bool (3, 4) C
u + 300                                   OverflowError
cupy.where(m, u, 300)                     OverflowError
cupy.full(2, 300, np.uint8)               OverflowError
m + m                                     new bool (3, 4) C
m.sum()                                   new int64 ()
u.sum()                                   new uint64 ()
u.mean()                                  new float64 ()
i.sum(dtype=np.int32)                     new int32 ()
cupy.arange(3)                            new int64 (3,)
cupy.arange(3.0)                          new float64 (3,)
cupy.argmax(f)                            new int64 ()

# Results that NumPy returns as Python objects are arrays
cupy.allclose(f, f)                       new bool ()
cupy.array_equal(f, f)                    new bool ()
f.any()                                   new bool ()
f.argmax()                                new int64 ()
len(f)                                    int
bool(z)                                   bool
float(z)                                  float
z.item()                                  float
f.tolist()                                list of list of float
f.get()                                   ndarray
list(f)                                   list of view float32 (4,)

# Errors
f + np.ones((3, 4), np.float32)                   TypeError
f + [1, 2, 3, 4]                                  TypeError
f == "a"                                          TypeError
np.asarray(f)                                     TypeError
[1, 2][z]                                         TypeError
bool(f)                                           ValueError
hash(f)                                           TypeError
f.flags.writeable                                 AttributeError
f.astype(np.float64, casting="safe")              TypeError
z.sum(axis=0)                                     AxisError
z.max(axis=-1)                                    AxisError
put(f, slice(None), [1, 2, 3, 4])                 ValueError
put(f, slice(None), np.ones((3, 4), np.float32))  ValueError
put(u, 0, 300)                                    OverflowError
put(cupy.broadcast_to(f, (2, 3, 4)), 0, 1.0)      NoneType
put(b, slice(None), f)                            NoneType
cupy.add.at(f[:, 0], k, f[:2, 0])                 NoneType
cupy.add.at(f[:, 0], k, 1.0)                      NoneType
cupy.add.at(i[:, 0], k, 2**40)                    OverflowError
cupy.add.at(b[:, 0], k, b[:2, 0])                 TypeError
cupy.add.at(u[:, 0], k, u[:2, 0])                 TypeError
cupy.add.at(m[:, 0], k, m[:2, 0])                 TypeError
F.view(np.float16)                                ValueError
f.view(np.float16)                                view float16 (3, 8) C

# During the capture of a graph
capture(lambda: f + np.float32(1))                   new float32 (3, 4) C
capture(lambda: f + 2.5)                             new float32 (3, 4) C
capture(lambda: cupy.zeros(3))                       new float64 (3,)
capture(lambda: cupy.arange(3))                      new int64 (3,)
capture(lambda: cupy.asarray(2.5))                   new float64 ()
capture(lambda: cupy.asarray([1, 2]))                RuntimeError: H2D transfers
capture(lambda: cupy.asarray(np.ones(3)))            RuntimeError: H2D transfers
capture(lambda: f.set(np.ones((3, 4), np.float32)))  RuntimeError: H2D transfers
capture(lambda: put(f, slice(None), 2.5))            NoneType
capture(lambda: f[k])                                new float32 (2, 4) C
capture(lambda: f[[0, 1]])                           RuntimeError: H2D transfers
capture(lambda: f[m])                                RuntimeError: D2H transfers
capture(lambda: put(f, m, 1))                        RuntimeError: D2H transfers
capture(lambda: f.nonzero())                         RuntimeError: D2H transfers
capture(lambda: f.get())                             RuntimeError: D2H transfers
capture(lambda: z.item())                            RuntimeError: D2H transfers
capture(lambda: float(z))                            RuntimeError: D2H transfers
capture(lambda: bool(z))                             RuntimeError: D2H transfers
capture(lambda: repr(f))                             RuntimeError: D2H transfers
capture(lambda: f @ f.T)                             NotImplementedError: cuBLAS API
capture(lambda: f.dot(f.T))                          NotImplementedError: cuBLAS API
capture(lambda: f.sum())                             new float32 ()
capture(lambda: cupy.add.at(f, k, f[:2]))            NoneType
"""


def capture(call):
    """The result of a call while a stream is capturing."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            return call()
        finally:
            stream.end_capture()


def put(x, index, value):
    x[index] = value


cupy = module()


def operands():
    """f and F (C and F order), z (0-d): float32; b: bfloat16, h: float16, i: int32, u: uint8, m: bool; k: indices."""
    dtypes = {"b": ml_dtypes.bfloat16, "h": np.float16, "i": np.int32, "u": np.uint8, "m": np.bool_, "f": np.float32}
    arrays = {name: cupy.asarray(np.ones((3, 4), dtype)) for name, dtype in dtypes.items()}
    arrays["F"] = cupy.asarray(np.ones((4, 3), np.float32)).T
    return arrays | {"z": cupy.asarray(np.ones((), np.float32)), "k": cupy.asarray(np.array([0, 1]))}


def described(x, arrays):
    if isinstance(x, list):
        return f"list of {described(x[0], arrays)}"
    if not isinstance(x, ndarray):
        return type(x).__name__
    order = "C" if x.flags.c_contiguous else "F" if x.flags.f_contiguous else tuple(s // x.itemsize for s in x.strides)
    shared = any(np.may_share_memory(x._host, y._host) for y in arrays)
    kind = "itself" if any(x is y for y in arrays) else "view" if shared else "new"
    return f"{kind} {x.dtype} {x.shape} {order if x.ndim > 1 else ''}".strip()


@pytest.mark.parametrize("line", [line for line in RULES.splitlines() if line and not line.startswith("#")])
@pytest.mark.filterwarnings("ignore")
def test_results_are_those_of_cupy(line):
    expression, expected = (part.strip() for part in line.split("  ", 1))
    arrays = operands()
    try:
        found = described(
            eval(expression, {"cupy": cupy, "np": np, "put": put, "capture": capture} | arrays), arrays.values()
        )
    except Exception as error:
        name, _, message = expected.partition(": ")
        assert type(error).__name__ == name and message in str(error), f"{type(error).__name__}: {error}"
    else:
        assert found == expected


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sums_of_16_bit_arrays_accumulate_in_float32(dtype):
    """A sum of ones in 16 bits would stop at 2048 in float16, and at 256 in bfloat16."""
    ones = cupy.asarray(np.ones((4096, 2), dtype))
    assert (ones.sum(axis=0)._host == 4096).all() and (ones.mean(axis=0)._host == 1).all()
