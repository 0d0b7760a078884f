"""Products with epilogues, tested without a GPU.

cublas_lt.cpp implements cublasLt's functions on the CPU. Like the library, they compute from pointers and descriptors
only. Unlike the library, they check every argument: the kind of object that a pointer refers to, sizes of attributes,
leading dimensions, data types, and the alignment and workspace that an algorithm requires. They count the descriptors
created and destroyed, and the heuristic queries.
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
from tests.backend.test_cublas import LAYOUTS, STREAM, compiled, with_layout
from tests.cupy_on_cpu import in_place_of_cupy, wrap

SOURCE = Path(__file__).with_name("cublas_lt.cpp")
SHARED = cublas_lt.shared  # the stand-in for CuPy replaces cublas_lt.shared


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compiled(SOURCE, tmp_path_factory.mktemp("cublaslt"))


@pytest.fixture(scope="module")
def blas(library):
    blas = cublas.CtypesBlas(library, np.empty(cublas.WORKSPACE, np.uint8))
    blas.use_stream(STREAM)
    yield blas
    blas.close()


@pytest.fixture
def lt(library, blas, monkeypatch):
    """An Lt on the library. After the test, all its descriptors must be destroyed."""
    before = alive(library)
    lt = Lt(library)
    monkeypatch.setattr(cublas_lt, "shared", lambda: lt)
    with cublas.use_blas(blas):
        yield lt
    lt.close()
    for name, value in {"lt_query_status": 0, "lt_query_count": 1, "lt_query_state": 0, "lt_product_status": 0}.items():
        number(library, name).value = value
    assert alive(library) == before


def number(library, name):
    return ctypes.c_int.in_dll(library, name)


def alive(library):
    return list((ctypes.c_int * 4).in_dll(library, "lt_alive"))


def counts(library):
    return Counter({name: number(library, name).value for name in ("lt_created", "lt_queries", "lt_products")})


DTYPES = st.sampled_from(["float16", "bfloat16", "float32"])


def drawn(seed, sizes, dtype, layouts):
    M, K, N = sizes
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((M, K)), rng.standard_normal((K, N))
    return (with_layout(x.astype(as_dtype(dtype)), layout) for x, layout in zip((a, b), layouts, strict=True))


def assert_rounded_once(found, exact, dtype, terms):
    """Accurate up to one rounding to `dtype`, and the rounding of `terms` additions in float32."""
    u = {"float32": 0, "bfloat16": 2**-8, "float16": 2**-11}[dtype.name]
    assert found.dtype == dtype and found.shape == exact.shape
    assert (abs(found.astype(np.float64) - exact) <= u * abs(exact) + 1e-6 * terms).all()


SIZES = st.tuples(*[st.integers(1, 9)] * 3)


@given(st.integers(0, 99), SIZES, DTYPES, st.tuples(LAYOUTS, LAYOUTS), st.booleans(), st.booleans(), st.booleans())
def test_product_with_bias_equals_numpy(library, blas, seed, sizes, dtype, layouts, wide, biased_wide, spread):
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
def test_product_and_sums_equal_numpy(library, blas, seed, sizes, dtype, layouts, wide):
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
    """An array of ones whose address is a multiple of `aligned` bytes, but not of 2 · `aligned`."""
    memory = np.zeros(np.prod(shape) * np.dtype(dtype).itemsize + 1024, np.uint8)
    start = -memory.ctypes.data % 512 + aligned
    x = memory[start : start + np.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
    x[...] = 1
    return x


def test_algorithms_are_selected_once(library, lt):
    """One heuristic query per shape, dtype, layout, alignment and epilogue; repeated products create no descriptors."""
    a, b, bias = ones(4, 8), ones(8, 6), ones(6)
    y = ones(4, 6)

    def multiply(a=a, b=b, bias=bias, dtype=a.dtype):
        with patch.object(np, "empty", lambda *_: y.astype(dtype, copy=False)):
            before = counts(library)
            assert matmul_with_bias(a, b, bias, dtype) is not None
            return counts(library) - before

    first = multiply()
    assert first == {"lt_created": 5, "lt_queries": 1, "lt_products": 1}  # operation, three layouts, preference
    assert multiply() == multiply(ones(4, 8), ones(8, 6), ones(6)) == {"lt_products": 1}
    twos = [ones(*shape) for shape in ((4, 8), (8, 6), (6,))]
    for x in twos:
        x *= 2
    assert multiply(*twos) == {"lt_products": 1}
    np.testing.assert_array_equal(y, np.full((4, 6), 4 * 8 + 2))  # the new values are used
    others = [
        {"a": ones(4, 8, aligned=4)}, {"b": ones(8, 6, aligned=8)}, {"bias": ones(6, aligned=4)},
        {"a": ones(4, 10)[:, :8]}, {"a": ones(8, 4).T}, {"b": ones(6, 8).T},
    ]  # fmt: skip
    for other in others:
        assert multiply(**other) == first and multiply(**other) == {"lt_products": 1}
    cublas.allow_tf32(True)
    assert multiply() == first
    before = counts(library)
    cublas.allow_tf32(False)
    assert matmul_and_sums(a, b, a.dtype) is not None
    assert counts(library) - before == first
    assert len(lt.plans) == len(others) + 3


def test_descriptors_are_destroyed(library, blas):
    before = alive(library)
    instances = [Lt(library)]
    with cublas.use_blas(blas), patch.object(cublas_lt, "shared", lambda: instances[0]):
        for n in (3, 4):
            assert matmul_with_bias(ones(2, 8), ones(8, n), ones(n), np.dtype(np.float32)) is not None
    assert np.subtract(alive(library), before).tolist() == [1, 2, 6, 0]
    instances.clear()
    gc.collect()
    assert alive(library) == before


def test_the_number_of_cached_plans_is_bounded(library, lt, monkeypatch):
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
    [
        ("lt_query_count", 0), ("lt_query_status", 15), ("lt_query_status", 8), ("lt_query_state", 15),
        ("lt_product_status", 15), ("lt_product_status", 8),
    ],
)  # fmt: skip
def test_without_an_algorithm_bias_and_sums_are_separate(library, lt, blas, name, value, dtype):
    number(library, name).value = value
    before, descriptors = counts(library), alive(library)
    with in_place_of_cupy(), cublas.use_blas(blas), patch.object(cublas_lt, "shared", lambda: lt):
        a, b, bias = (to_device(np.ones(shape, dtype), "cuda") for shape in ((4, 8), (8, 6), (6,)))
        for _ in range(2):
            y = backend.gemm(a, b, bias=bias)
            assert y.dtype == dtype
            np.testing.assert_array_equal(y.get(), np.full((4, 6), 9))
            y, sums = backend.gemm_and_sums(a, b, dtype=np.dtype(np.float32))
            assert sums is None and y.dtype == np.float32
            np.testing.assert_array_equal(y.get(), np.full((4, 6), 8))
    calls = counts(library) - before
    assert calls["lt_queries"] == 2 and calls["lt_products"] == 0  # one query per epilogue: failures are cached
    assert list(lt.plans.values()) == [None, None]
    if name != "lt_product_status":
        assert alive(library) == descriptors


def test_other_statuses_raise_errors(library, lt):
    a, b, bias = ones(4, 8), ones(8, 6), ones(6)
    descriptors = alive(library)
    number(library, "lt_query_status").value = 7
    with pytest.raises(RuntimeError, match=r"cublasLtMatmulAlgoGetHeuristic failed: invalid value \(status 7\)"):
        matmul_with_bias(a, b, bias, a.dtype)
    assert alive(library) == descriptors and not lt.plans
    number(library, "lt_query_status").value = 0
    number(library, "lt_product_status").value = 13
    with pytest.raises(RuntimeError, match=r"cublasLtMatmul failed: the kernel failed \(status 13\)"):
        matmul_with_bias(a, b, bias, a.dtype)


def test_stream_and_workspace_of_products(library, lt, blas, monkeypatch):
    """CtypesBlas: the captured stream and the fixed workspace. CupyBlas: CuPy's current stream, and memory from CuPy's
    pool of the size that the algorithm requires."""
    stream, workspace = (ctypes.c_void_p.in_dll(library, f"lt_{name}") for name in ("stream", "workspace"))
    a, b, bias = ones(4, 8), ones(8, 6), ones(6)
    assert matmul_with_bias(a, b, bias, a.dtype) is not None
    assert (stream.value, workspace.value) == (STREAM, blas.workspace.ctypes.data)
    allocated = []

    def empty(shape, dtype):
        allocated.append(np.empty(shape, dtype))
        return allocated[-1]

    cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=STREAM + 16))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, empty=empty))
    with cublas.use_blas(cublas.CupyBlas()):
        assert matmul_with_bias(a, b, bias, a.dtype) is not None
    (memory,) = allocated
    assert (stream.value, workspace.value) == (STREAM + 16, memory.ctypes.data)
    assert memory.dtype == np.uint8 and memory.size == next(iter(lt.plans.values())).workspace


def test_attributes_match_the_real_library():
    """Descriptors need no GPU: attributes set in the real cublasLt are read back with the same value and size."""
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
    with ExitStack() as stack:
        for kind, arguments in (("MatmulDesc", [68, 0]), ("MatrixLayout", layout), ("MatmulPreference", [])):
            descriptor = Lt._create(lt, stack, kind, *arguments)
            for attribute, ctype in attributes[kind]:
                value, size = ctype(), ctypes.c_size_t()
                Lt._set(lt, kind, descriptor, (attribute, ctype), 1)
                read = getattr(lt.library, f"cublasLt{kind}GetAttribute")
                assert not read(descriptor, attribute, ctypes.byref(value), ctypes.sizeof(value), ctypes.byref(size))
                assert value.value == 1 and size.value == ctypes.sizeof(ctype)


def test_capture_only_launches_products(library, lt):
    """Captured products use plans of an earlier step: no descriptors, no queries, no memory except for results."""
    allocated = []

    def empty(shape, dtype):
        allocated.append(shape)
        return wrap(ones(*shape, dtype=dtype))  # aligned to 256 bytes, as CuPy's memory

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
        results = [shape for shape in allocated if len(shape) > 1 or shape == (4,)]
        before, allocated[:] = counts(library), []
        with cublas.use_blas(direct):
            stream.begin_capture()
            captured = step()
            stream.end_capture()
        assert allocated == results == [(4, 6), (4, 6), (4,)]
        assert counts(library) - before == {"lt_products": 2}
        assert ctypes.c_void_p.in_dll(library, "lt_workspace").value == direct.workspace.data.ptr
        for x, y in zip(eager, captured, strict=True):
            assert x.shape == y.shape and x.dtype == y.dtype
        direct.close()


def test_direct_blas_uses_the_graph_stream(library, monkeypatch):
    """`GraphedStep` computes products with `direct_blas`."""
    monkeypatch.setattr(cublas, "load_library", lambda: library)
    direct = direct_blas("cpu", STREAM + 32)
    stream, workspace = direct.stream_and_workspace(10)
    assert stream == STREAM + 32 and workspace is direct.workspace and workspace.nbytes == cublas.WORKSPACE
    direct.close()


def test_unsupported_arguments_return_none(lt):
    f32, f64 = np.dtype(np.float32), np.dtype(np.float64)
    half = np.dtype(np.float16)
    a, b, bias = ones(4, 8), ones(8, 6), ones(6)
    for arguments in (
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
        (a.astype(half), b.astype(half), bias, half),  # the bias would be cast to float16 before the addition
    ):
        assert matmul_with_bias(*arguments) is None
        a_, b_, bias_, dtype = arguments
        assert bias_.shape == (1,) or dtype == half or matmul_and_sums(a_, b_, dtype) is None
    assert not lt.plans
    cublas.allow_tf32(True)
    assert matmul_and_sums(a, b, f32) is None
    assert matmul_and_sums(a.astype(half), b.astype(half), f32) is not None
    assert matmul_with_bias(a, b, bias, f32) is not None
    assert [problem.types for problem in lt.plans] == [(2, 0, 68), (0, 0, cublas.COMPUTE_32F_FAST_TF32)]


def test_missing_cublas_lt_gives_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(RuntimeError, match="found no libcublasLt"):
        cublas.load_library("cublasLt")
    assert SHARED.__wrapped__() is None
    monkeypatch.setattr(cublas_lt, "shared", lambda: None)
    assert matmul_with_bias(ones(4, 8), ones(8, 6), ones(6), np.dtype(np.float32)) is None


def test_the_shared_instance_is_created_once(library, monkeypatch):
    names = []
    monkeypatch.setattr(cublas_lt, "load_library", lambda name: names.append(name) or library)
    SHARED.cache_clear()
    lt = SHARED()
    assert lt is SHARED() and names == ["cublasLt"]
    SHARED.cache_clear()
    lt.close()


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_linear_uses_both_epilogues(device, monkeypatch, dtype):
    """Forward adds the bias in the product, backward computes ∂bias with ∂W; results match the CPU."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 8), (6, 8), (6,), (2, 3, 6))]

    def run(where, enabled):
        x, weight, bias = (Tensor(x, requires_grad=True, device=where) for x in arrays[:3])
        with autocast(dtype or "float16", enabled):
            y = F.linear(x, weight, bias)
        y.backward(Tensor(arrays[3], device=where).to(dtype=y.dtype))
        return [t.detach().cpu().numpy() for t in (y, x.grad, weight.grad, bias.grad)]

    epilogues = []
    lt = cublas_lt.shared() if device != "cpu" else None

    class Recorder:
        def matmul(self, epilogue, *arguments):
            epilogues.append(epilogue)
            return lt.matmul(epilogue, *arguments)

    monkeypatch.setattr(cublas_lt, "shared", Recorder)
    found, exact = run(device, dtype is not None), run("cpu", False)
    assert epilogues == ([] if device == "cpu" else [cublas_lt.BIAS, cublas_lt.BGRADB])
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=0, atol=1e-5 if dtype is None else 0.1)
    assert [x.dtype for x in found[2:]] == [np.float32] * 2


def test_gemm_in_half_precision(device):
    """With dtype=float32, products and sums of float16 are not cast back. On the CPU, gemm_and_sums returns no sums."""
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
        np.testing.assert_array_equal(to_device(y, "cpu"), [[2050], [5.5]])  # rounded after the bias is added


def test_bias_gradient_of_another_dtype(device):
    """The epilogue computes sums in the dtype of the product; a ∂bias of another dtype is computed separately."""
    x, weight = (np.ones(shape, np.float16) for shape in ((2049, 8), (6, 8)))
    tensors = [Tensor(n, requires_grad=True, device=device) for n in (x, weight)]
    bias = Tensor(np.ones(6, np.float32), requires_grad=True, device=device)
    F.linear(*tensors, bias).sum().backward()
    assert tensors[1].grad.dtype == np.float16 and bias.grad.dtype == np.float32
    np.testing.assert_array_equal(bias.grad.cpu().numpy(), 2049)  # not representable in float16


def test_no_sums_for_a_bias_without_gradient(device, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("computed sums for a bias that does not require a gradient")

    monkeypatch.setattr("minigrad.ops.matmul.sum_of_rows", fail)
    monkeypatch.setattr("minigrad.ops.matmul.gemm_and_sums", fail)
    x, weight = (Tensor(np.ones((4, 4)), requires_grad=True, device=device) for _ in range(2))
    F.linear(x, weight, Tensor(np.ones(4), device=device)).sum().backward()
    np.testing.assert_array_equal(weight.grad.cpu().numpy(), 4)
