"""Products with epilogues, as far as they can be seen without a GPU.

cublasLt's functions are written here once more, in C. Like the library, they compute from pointers and descriptors
alone; unlike it, they doubt everything: what kind of thing a pointer is, the size of an attribute, leading dimensions,
types, what an algorithm was promised of alignment and workspace. And they count what is made, given back and asked.
"""

import ctypes
import gc
import importlib.util
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor, autocast, backend
from minigrad import functional as F
from minigrad.backend import cublas, cublas_lt, to_device
from minigrad.backend.cublas_lt import Lt, matmul_and_sums, matmul_with_bias
from minigrad.backend.dtypes import as_dtype
from minigrad.cuda_graph import direct_blas
from tests.backend.test_cublas import LAYOUTS, STREAM, built, laid_out
from tests.cupy_on_cpu import in_place_of_cupy, wrap

SOURCE = Path(__file__).with_name("cublas_lt.cpp")
SHARED = cublas_lt.shared  # another is in its place while a test works with the stand-in for CuPy


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return built(SOURCE, tmp_path_factory.mktemp("cublaslt"))


@pytest.fixture(scope="module")
def blas(library):
    blas = cublas.CtypesBlas(library, np.empty(cublas.WORKSPACE, np.uint8))
    blas.use_stream(STREAM)
    yield blas
    blas.close()


@pytest.fixture
def lt(library, blas, monkeypatch):
    """For one test; at its end nothing that was made may be left, and the library is as it was."""
    known = known_of(library)
    lt = Lt(library)
    monkeypatch.setattr(cublas_lt, "shared", lambda: lt)
    with cublas.use_blas(blas):
        yield lt
    lt.close()
    for name, value in {"lt_answer": 0, "lt_count": 1, "lt_state": 0, "lt_status": 0}.items():
        number(library, name).value = value
    assert alive(library) == known


def number(library, name):
    return ctypes.c_int.in_dll(library, name)


def alive(library):
    return list((ctypes.c_int * 4).in_dll(library, "lt_alive"))


known_of = alive


def counts(library):
    return Counter({name: number(library, name).value for name in ("lt_made", "lt_asked", "lt_products")})


DTYPES = st.sampled_from(["float16", "bfloat16", "float32"])


def drawn(seed, sizes, dtype, layouts):
    M, K, N = sizes
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((M, K)), rng.standard_normal((K, N))
    return (laid_out(x.astype(as_dtype(dtype)), layout) for x, layout in zip((a, b), layouts, strict=True))


def assert_rounded_once(found, exact, dtype, terms):
    """As near as the result's own dtype allows, after a sum of so many terms in float32."""
    u = {"float32": 0, "bfloat16": 2**-8, "float16": 2**-11}[dtype.name]
    assert found.dtype == dtype and found.shape == exact.shape
    assert (abs(found.astype(np.float64) - exact) <= u * abs(exact) + 1e-6 * terms).all()


SIZES = st.tuples(*[st.integers(1, 9)] * 3)


@given(st.integers(0, 99), SIZES, DTYPES, st.tuples(LAYOUTS, LAYOUTS), st.booleans(), st.booleans(), st.booleans())
def test_with_bias(library, blas, seed, sizes, dtype, layouts, wide, biased_wide, spread):
    a, b = drawn(seed, sizes, dtype, layouts)
    out = np.dtype(np.float32) if wide else a.dtype
    bias = np.random.default_rng(seed + 1).standard_normal(sizes[2]).astype(out if biased_wide else a.dtype)
    bias = np.repeat(bias, 2)[::2] if spread else bias
    lt = Lt(library)
    with cublas.use_blas(blas), patch.object(cublas_lt, "shared", lambda: lt):
        y = matmul_with_bias(a, b, bias, out)
    lt.close()
    assert_rounded_once(y, a.astype(np.float64) @ b.astype(np.float64) + bias.astype(np.float64), out, sizes[1])


@given(st.integers(0, 99), SIZES, DTYPES, st.tuples(LAYOUTS, LAYOUTS), st.booleans())
def test_and_sums(library, blas, seed, sizes, dtype, layouts, wide):
    a, b = drawn(seed, sizes, dtype, layouts)
    out = np.dtype(np.float32) if wide else a.dtype
    lt = Lt(library)
    with cublas.use_blas(blas), patch.object(cublas_lt, "shared", lambda: lt):
        y, sums = matmul_and_sums(a, b, out)
    lt.close()
    a, b = a.astype(np.float64), b.astype(np.float64)
    assert_rounded_once(y, a @ b, out, sizes[1])
    assert_rounded_once(sums, a.sum(axis=1), out, sizes[1])


def ones(*shape, dtype=np.float32, aligned=256):
    """An array that begins at a multiple of so many bytes, and of no more."""
    memory = np.zeros(np.prod(shape) * np.dtype(dtype).itemsize + 1024, np.uint8)
    start = -memory.ctypes.data % 512 + aligned
    x = memory[start : start + np.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
    x[...] = 1
    return x


def test_the_library_is_asked_once(library, lt):
    """For each shape, type, layout, alignment and epilogue; what comes again makes nothing, and only multiplies."""
    a, b, bias = ones(4, 8), ones(8, 6), ones(6)
    y = ones(4, 6)

    def make(a=a, b=b, bias=bias, dtype=a.dtype):
        with patch.object(np, "empty", lambda *_: y.astype(dtype, copy=False)):
            before = counts(library)
            assert matmul_with_bias(a, b, bias, dtype) is not None
            return counts(library) - before

    first = make()
    assert first == {"lt_made": 5, "lt_asked": 1, "lt_products": 1}  # an operation, three layouts, a preference
    assert make() == make(ones(4, 8), ones(8, 6), ones(6)) == {"lt_products": 1}
    twos = [ones(*shape) for shape in ((4, 8), (8, 6), (6,))]
    for x in twos:
        x *= 2
    assert make(*twos) == {"lt_products": 1}
    np.testing.assert_array_equal(y, np.full((4, 6), 4 * 8 + 2))  # of the numbers that are meant now
    others = [
        {"a": ones(4, 8, aligned=4)}, {"b": ones(8, 6, aligned=8)}, {"bias": ones(6, aligned=4)},
        {"a": ones(4, 10)[:, :8]}, {"a": ones(8, 4).T}, {"b": ones(6, 8).T},
    ]  # fmt: skip
    for other in others:
        assert make(**other) == first and make(**other) == {"lt_products": 1}
    cublas.allow_tf32(True)
    assert make() == first
    before = counts(library)
    cublas.allow_tf32(False)
    assert matmul_and_sums(a, b, a.dtype) is not None
    assert counts(library) - before == first
    assert len(lt.plans) == len(others) + 3


def test_what_is_made_is_given_back(library, blas):
    before = alive(library)
    held = [Lt(library)]
    with cublas.use_blas(blas), patch.object(cublas_lt, "shared", lambda: held[0]):
        for n in (3, 4):
            assert matmul_with_bias(ones(2, 8), ones(8, n), ones(n), np.dtype(np.float32)) is not None
    assert np.subtract(alive(library), before).tolist() == [1, 2, 6, 0]
    held.clear()
    gc.collect()
    assert alive(library) == before


def test_sizes_without_end_are_not_kept(library, lt, monkeypatch):
    monkeypatch.setattr(cublas_lt, "MAX_PLANS", 3)
    before = alive(library)
    for n in (*range(1, 9), *range(1, 9)):
        y = matmul_with_bias(ones(2, 8), ones(8, n), ones(n), np.dtype(np.float32))
        np.testing.assert_array_equal(y, np.full((2, n), 9))
        operations = len(lt.plans)
        assert operations <= 3 and np.subtract(alive(library), before).tolist() == [0, operations, 3 * operations, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("name", "value"),
    [("lt_count", 0), ("lt_answer", 15), ("lt_answer", 8), ("lt_state", 15), ("lt_status", 15), ("lt_status", 8)],
)
def test_what_it_cannot_do_is_done_one_by_one(library, lt, blas, name, value, dtype):
    number(library, name).value = value
    before, there = counts(library), alive(library)
    with in_place_of_cupy(), cublas.use_blas(blas), patch.object(cublas_lt, "shared", lambda: lt):
        a, b, bias = (to_device(np.ones(shape, dtype), "cuda") for shape in ((4, 8), (8, 6), (6,)))
        for _ in range(2):
            y = backend.gemm(a, b, bias=bias)
            assert y.dtype == dtype
            np.testing.assert_array_equal(y.get(), np.full((4, 6), 9))
            y, sums = backend.gemm_and_sums(a, b, dtype=np.dtype(np.float32))
            assert sums is None and y.dtype == np.float32
            np.testing.assert_array_equal(y.get(), np.full((4, 6), 8))
    made = counts(library) - before
    assert made["lt_asked"] == 2 and made["lt_products"] == 0  # once for each epilogue: an answer is remembered
    assert list(lt.plans.values()) == [None, None]
    if name != "lt_status":
        assert alive(library) == there


def test_other_failures_are_errors(library, lt):
    a, b, bias = ones(4, 8), ones(8, 6), ones(6)
    there = alive(library)
    number(library, "lt_answer").value = 7
    with pytest.raises(RuntimeError, match=r"cublasLtMatmulAlgoGetHeuristic failed: invalid value \(status 7\)"):
        matmul_with_bias(a, b, bias, a.dtype)
    assert alive(library) == there and not lt.plans
    number(library, "lt_answer").value = 0
    number(library, "lt_status").value = 13
    with pytest.raises(RuntimeError, match=r"cublasLtMatmul failed: the kernel failed \(status 13\)"):
        matmul_with_bias(a, b, bias, a.dtype)


def test_where_products_are_made(library, lt, blas, monkeypatch):
    """Directly: on the stream that is captured, in the workspace that is there. Through CuPy: on its stream, in memory
    of its pool, as much as the algorithm needs."""
    stream, workspace = (ctypes.c_void_p.in_dll(library, f"lt_{name}") for name in ("stream", "workspace"))
    a, b, bias = ones(4, 8), ones(8, 6), ones(6)
    assert matmul_with_bias(a, b, bias, a.dtype) is not None
    assert (stream.value, workspace.value) == (STREAM, blas.workspace.ctypes.data)
    taken = []

    def empty(shape, dtype):
        taken.append(np.empty(shape, dtype))
        return taken[-1]

    cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=STREAM + 16))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, empty=empty))
    with cublas.use_blas(cublas.CupyBlas()):
        assert matmul_with_bias(a, b, bias, a.dtype) is not None
    (memory,) = taken
    assert (stream.value, workspace.value) == (STREAM + 16, memory.ctypes.data)
    assert memory.dtype == np.uint8 and memory.size == next(iter(lt.plans.values())).workspace


def test_the_library_itself_knows_these_attributes():
    """Descriptors need no GPU: what is set is read again, at the size that the library keeps it in."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [path for folder in folders for path in sorted(Path(folder).glob("*/lib/libcublasLt.so.*"))]
    if not found:
        pytest.skip("no cublasLt: pip install nvidia-cublas")
    lt = SimpleNamespace(library=ctypes.CDLL(str(found[-1])))
    layout = [14, *map(ctypes.c_uint64, (5, 7)), ctypes.c_int64(8)]
    attributes = {
        "MatmulDesc": [cublas_lt.TRANSPOSE_A, cublas_lt.TRANSPOSE_B, cublas_lt.EPILOGUE, cublas_lt.VECTOR],
        "MatmulPreference": [cublas_lt.MAX_WORKSPACE, cublas_lt.REDUCTIONS, *cublas_lt.ALIGNMENTS],
        "MatrixLayout": [],
    }
    with ExitStack() as made:
        for kind, arguments in (("MatmulDesc", [68, 0]), ("MatrixLayout", layout), ("MatmulPreference", [])):
            descriptor = Lt._make(lt, made, kind, *arguments)
            for attribute, ctype in attributes[kind]:
                value, size = ctype(), ctypes.c_size_t()
                Lt._set(lt, kind, descriptor, (attribute, ctype), 1)
                read = getattr(lt.library, f"cublasLt{kind}GetAttribute")
                assert not read(descriptor, attribute, ctypes.byref(value), ctypes.sizeof(value), ctypes.byref(size))
                assert value.value == 1 and size.value == ctypes.sizeof(ctype)


def test_in_a_capture_it_only_multiplies(library, lt):
    """What a step before has planned is used: nothing is made or asked, and no memory is taken but for the results."""
    taken = []

    def empty(shape, dtype):
        taken.append(shape)
        return wrap(ones(*shape, dtype=dtype))  # at 256 bytes, as CuPy's memory is

    with in_place_of_cupy(), patch.object(cublas_lt, "shared", lambda: lt):
        cupy = sys.modules["cupy"]
        a, b, bias = (wrap(ones(*shape)) for shape in ((4, 8), (8, 6), (6,)))
        direct = cublas.CtypesBlas(library, cupy.empty((cublas.WORKSPACE,), np.uint8))
        cupy.empty = empty
        stream = cupy.cuda.Stream()
        direct.use_stream(stream.ptr)

        def step():
            return backend.gemm(a, b, bias=bias), *backend.gemm_and_sums(a, b)

        with cublas.use_blas(cublas.CupyBlas()):
            eager = step()
        results, before, taken[:] = [shape for shape in taken if len(shape) > 1 or shape == (4,)], counts(library), []
        with cublas.use_blas(direct):
            stream.begin_capture()
            captured = step()
            stream.end_capture()
        assert taken == results == [(4, 6), (4, 6), (4,)]
        assert counts(library) - before == {"lt_products": 2}
        assert ctypes.c_void_p.in_dll(library, "lt_workspace").value == direct.workspace.data.ptr
        for x, y in zip(eager, captured, strict=True):
            assert x.shape == y.shape and x.dtype == y.dtype
        direct.close()


def test_the_stream_of_a_graph(library, monkeypatch):
    """What `GraphedStep` makes its products with."""
    monkeypatch.setattr(cublas, "load_library", lambda: library)
    direct = direct_blas("cpu", STREAM + 32)
    stream, workspace = direct.stream_and_workspace(10)
    assert stream == STREAM + 32 and workspace is direct.workspace and workspace.nbytes == cublas.WORKSPACE
    direct.close()


def test_what_is_not_for_it(lt):
    f32, f64 = np.dtype(np.float32), np.dtype(np.float64)
    half = np.dtype(np.float16)
    a, b, bias = ones(4, 8), ones(8, 6), ones(6)
    for unfit in (
        (a.astype(f64), b.astype(f64), bias.astype(f64), f64),
        (a, b.astype(half), bias, f32),
        (a, b, bias, half),
        (a[None], b, bias, f32),
        (a, b[:7], bias, f32),
        (a[:0], b, bias, f32),
        (a[:, :0], b[:0], bias, f32),
        (a, b[:, :0], bias[:0], f32),
        (a.astype(int), b.astype(int), bias.astype(int), np.dtype(int)),
        (a, b, bias[:1], f32),
        (a.astype(half), b.astype(half), bias, half),  # the bias would be rounded first
    ):
        assert matmul_with_bias(*unfit) is None
        assert unfit[2].shape == (1,) or unfit[3] == half or matmul_and_sums(*unfit[:2], unfit[3]) is None
    assert not lt.plans
    cublas.allow_tf32(True)
    assert matmul_and_sums(a, b, f32) is None
    assert matmul_and_sums(a.astype(half), b.astype(half), f32) is not None
    assert matmul_with_bias(a, b, bias, f32) is not None
    assert [problem.types for problem in lt.plans] == [(2, 0, 68), (0, 0, cublas.COMPUTE_32F_FAST_TF32)]


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(RuntimeError, match="found no libcublasLt"):
        cublas.load_library("cublasLt")
    assert SHARED.__wrapped__() is None
    monkeypatch.setattr(cublas_lt, "shared", lambda: None)
    assert matmul_with_bias(ones(4, 8), ones(8, 6), ones(6), np.dtype(np.float32)) is None


def test_there_is_one_for_all(library, monkeypatch):
    names = []
    monkeypatch.setattr(cublas_lt, "load_library", lambda name: names.append(name) or library)
    SHARED.cache_clear()
    lt = SHARED()
    assert lt is SHARED() and names == ["cublasLt"]
    SHARED.cache_clear()
    lt.close()


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_a_linear_layer(device, monkeypatch, dtype):
    """Forward one product with the bias in it, backward one with ∂bias beside ∂W; the numbers are the CPU's."""
    rng = np.random.default_rng(0)
    numbers = [rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 8), (6, 8), (6,), (2, 3, 6))]

    def run(where, enabled):
        x, weight, bias = (Tensor(n, requires_grad=True, device=where) for n in numbers[:3])
        with autocast(dtype or "float16", enabled):
            y = F.linear(x, weight, bias)
        y.backward(Tensor(numbers[3], device=where).to(dtype=y.dtype))
        return [t.detach().cpu().numpy() for t in (y, x.grad, weight.grad, bias.grad)]

    asked = []
    lt = cublas_lt.shared() if device != "cpu" else None

    class Watched:
        def matmul(self, epilogue, *arguments):
            asked.append(epilogue)
            return lt.matmul(epilogue, *arguments)

    monkeypatch.setattr(cublas_lt, "shared", Watched)
    found, exact = run(device, dtype is not None), run("cpu", False)
    assert asked == ([] if device == "cpu" else [cublas_lt.BIAS, cublas_lt.BGRADB])
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=0, atol=1e-5 if dtype is None else 0.1)
    assert [x.dtype for x in found[2:]] == [np.float32] * 2


def test_the_gates(device):
    """Narrow products stay in float32 where that is asked for, and sums with them; on the CPU these are not made."""
    a = np.array([[1, 2048, 0], [1, 2, 3]], np.float16)
    b, bias = np.array([[1], [1], [0.5]], np.float16), np.ones(1, np.float16)
    a, b, bias = (to_device(x, device) for x in (a, b, bias))
    wide = np.dtype(np.float32)
    for dtype, exact in ((None, [[2048], [4.5]]), (wide, [[2049], [4.5]])):
        y, sums = backend.gemm_and_sums(a, b, dtype=dtype)
        assert y.dtype == (dtype or np.float16)
        np.testing.assert_array_equal(to_device(y, "cpu"), exact)
        if device == "cpu":
            assert sums is None
        else:
            assert sums.dtype == y.dtype
            np.testing.assert_array_equal(to_device(sums, "cpu"), [exact[0][0], 6])
        y = backend.gemm(a, b, bias=bias, dtype=dtype)
        assert y.dtype == (dtype or np.float16)
        np.testing.assert_array_equal(to_device(y, "cpu"), [[2050], [5.5]])  # rounded with the bias in it


def test_gradients_of_different_types(device):
    """Sums come in the dtype of the product: where ∂bias has another, they are a product of their own."""
    x, weight = (np.ones(shape, np.float16) for shape in ((2049, 8), (6, 8)))
    tensors = [Tensor(n, requires_grad=True, device=device) for n in (x, weight)]
    bias = Tensor(np.ones(6, np.float32), requires_grad=True, device=device)
    F.linear(*tensors, bias).sum().backward()
    assert tensors[1].grad.dtype == np.float16 and bias.grad.dtype == np.float32
    np.testing.assert_array_equal(bias.grad.cpu().numpy(), 2049)  # no number of float16


def test_sums_nobody_asked_for(device, monkeypatch):
    def unwanted(*_, **__):
        raise AssertionError("sums for a bias that is not trained")

    monkeypatch.setattr("minigrad.ops.matmul.sum_of_rows", unwanted)
    monkeypatch.setattr("minigrad.ops.matmul.gemm_and_sums", unwanted)
    x, weight = (Tensor(np.ones((4, 4)), requires_grad=True, device=device) for _ in range(2))
    F.linear(x, weight, Tensor(np.ones(4), device=device)).sum().backward()
    np.testing.assert_array_equal(weight.grad.cpu().numpy(), 4)
