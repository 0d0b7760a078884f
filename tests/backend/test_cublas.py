"""cuBLAS products, tested without a GPU.

cublas.cpp implements `cublasGemmStridedBatchedEx` on the CPU, from pointers, sizes and strides only. The ctypes
binding of the real library calls this implementation.
"""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import backend
from minigrad.backend import cublas
from minigrad.backend.dtypes import as_dtype

SOURCE = Path(__file__).with_name("cublas.cpp")
STREAM = 1 << 40  # a pointer that does not fit into 32 bits


def compiled(source, folder):
    """Compile a C++ library, and load it with ctypes."""
    if not shutil.which("g++"):
        pytest.skip(f"no g++ to compile {source.name}")
    library = folder / "libcublas.so"
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compiled(SOURCE, tmp_path_factory.mktemp("cublas"))


@pytest.fixture(scope="module")
def blas(library):
    blas = cublas.CtypesBlas(library, np.empty(1024, np.uint8))
    blas.use_stream(STREAM)
    yield blas
    blas.close()


class Recorder:
    """Stores the operands of every call, and forwards the call."""

    def __init__(self, blas):
        self.blas, self.calls = blas, []

    def gemm(self, m, n, k, A, B, C, batch, data, compute):
        self.calls.append(SimpleNamespace(A=A, B=B, C=C, batch=batch, data=data, compute=compute))
        self.blas.gemm(m, n, k, A, B, C, batch, data, compute)


def with_layout(x, layout):
    """The same values in another memory layout."""
    if layout == "columns":
        return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    if layout == "gaps":
        return np.repeat(np.repeat(x, 2, axis=-1), 2, axis=-2)[..., ::2, ::2]
    if layout == "wide":
        return np.concatenate([x, x], axis=-1)[..., : x.shape[-1]]
    if layout == "reversed":
        return np.ascontiguousarray(x[..., ::-1, :])[..., ::-1, :]
    if layout == "heads" and x.ndim > 2:  # (..., rows, heads, columns) in memory
        return np.ascontiguousarray(x.swapaxes(-2, -3)).swapaxes(-2, -3)
    return x


LAYOUTS = st.sampled_from(["rows", "columns", "gaps", "wide", "reversed", "heads"])


@given(st.data(), st.integers(0, 99))
def test_products_of_any_shape_and_layout(blas, data, seed):
    lead = data.draw(st.lists(st.integers(0, 3), max_size=3))
    M, K, N = data.draw(st.tuples(*[st.integers(0, 5)] * 3))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(seed)

    def operand(rows, columns):
        axes = lead[data.draw(st.integers(0, len(lead))) :]
        axes = [1 if data.draw(st.booleans()) else size for size in axes]
        return with_layout(rng.standard_normal((*axes, rows, columns)).astype(dtype), data.draw(LAYOUTS))

    a, b = operand(M, K), operand(K, N)
    with cublas.use_blas(blas):
        y = cublas.matmul(a, b)
    expected = a @ b
    assert y.shape == expected.shape and y.dtype == expected.dtype
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b"), [((4,), (4,)), ((4,), (4, 3)), ((2, 4), (4,)), ((5, 2, 4), (4,)), ((4,), (5, 4, 3))]
)
def test_vectors_are_rows_or_columns(blas, a, b):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(a), rng.standard_normal(b)
    with cublas.use_blas(blas):
        np.testing.assert_allclose(cublas.matmul(a, b), a @ b)


UNSUPPORTED = {
    # Two strides between matrices, matrices shared by a part of the batch, rows that share elements, ...
    "heads": with_layout(np.random.default_rng(0).standard_normal((2, 3, 4, 5)), "heads"),
    "some shared": np.random.default_rng(1).standard_normal((2, 1, 4, 5)),
    "overlapping": np.lib.stride_tricks.sliding_window_view(np.arange(8.0), 5),
    "gaps": with_layout(np.random.default_rng(2).standard_normal((3, 4, 5)), "gaps"),
    "backwards": np.random.default_rng(4).standard_normal((3, 4, 5))[::-1],
    "upside down": np.random.default_rng(3).standard_normal((3, 4, 5))[::-1, ::-1],
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_strides_are_copied(blas, name):
    a, b = UNSUPPORTED[name], np.random.default_rng(9).standard_normal((1, 3, 5, 2))
    with cublas.use_blas(blas):
        np.testing.assert_allclose(cublas.matmul(a, b), a @ b, rtol=1e-12)
        np.testing.assert_allclose(
            cublas.matmul(b.swapaxes(-1, -2), a.swapaxes(-1, -2)), b.swapaxes(-1, -2) @ a.swapaxes(-1, -2), rtol=1e-12
        )


def test_supported_strides_are_not_copied(blas):
    """A transposed matrix, a slice of columns, a batch, one matrix for a whole batch on either side."""
    x, w = np.ones((6, 4), np.float32), np.ones((5, 4), np.float32)
    batch = np.ones((2, 3, 6, 4), np.float32)
    recorder = Recorder(blas)
    with cublas.use_blas(recorder):
        cublas.matmul(x, w.T)
        cublas.matmul(x[:, 1:3], w.T[1:3])
        cublas.matmul(batch, batch.swapaxes(-1, -2))
        cublas.matmul(np.broadcast_to(x, (2, 3, 6, 4)), batch.swapaxes(-1, -2))
        cublas.matmul(batch, w.T)
    first, columns, pairs, shared, rows = recorder.calls
    assert first.A.op == cublas.OP_T and first.B.op == cublas.OP_N
    assert columns.B.leading == 4 and columns.A.leading == 4
    assert pairs.batch == 6 and pairs.A.stride == pairs.B.stride == 24
    assert shared.B.stride == 0 and shared.batch == 6
    assert rows.batch == 1 and rows.C.leading == 5
    for call, ours, other in zip(recorder.calls, (x, x, batch, x, batch), (w, w, batch, batch, w), strict=True):
        assert np.shares_memory(call.B.array, ours) and np.shares_memory(call.A.array, other)


def test_compute_type_is_fp32_tf32_or_fp64(blas):
    recorder = Recorder(blas)
    x32, x64 = np.ones((2, 2), np.float32), np.ones((2, 2))
    with cublas.use_blas(recorder):
        cublas.matmul(x32, x32)
        cublas.matmul(x64, x64)
        cublas.allow_tf32(True)
        try:
            cublas.matmul(x32, x32)
            cublas.matmul(x64, x64)
        finally:
            cublas.allow_tf32(False)
        cublas.matmul(x32, x32)
    found = [(call.data, call.compute) for call in recorder.calls]
    f32, f64 = (0, cublas.COMPUTE_32F), (1, cublas.COMPUTE_64F)
    assert found == [f32, f64, (0, cublas.COMPUTE_32F_FAST_TF32), f64, f32]


def test_half_precision_accumulates_in_float32():
    calls = []
    recorder = SimpleNamespace(gemm=lambda *arguments: calls.append(arguments[-2:]))
    with cublas.use_blas(recorder):
        cublas.matmul(np.ones((2, 3, 4), np.float16), np.ones((2, 4, 3), np.float16))
    assert calls == [(2, cublas.COMPUTE_32F)]


def test_arguments_of_cupys_binding(monkeypatch, blas):
    """CuPy's binding takes the same arguments, with pointers as integers."""
    calls, modes = [], []
    module = SimpleNamespace(
        gemmStridedBatchedEx=lambda *arguments: calls.append(arguments),
        setMathMode=lambda handle, mode: modes.append((handle, mode, len(calls))),
    )
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", SimpleNamespace(cublas=module))
    monkeypatch.setitem(sys.modules, "cupy.cuda.device", SimpleNamespace(get_cublas_handle=lambda: 77))
    a, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    cublas._cupy_blas.cache_clear()
    with cublas.use_blas(cublas.CupyBlas()):
        y = cublas.matmul(a, b)
    (arguments,) = calls
    assert arguments[:6] == (77, cublas.OP_N, cublas.OP_N, 4, 2, 3)
    assert arguments[7:15] == (b.ctypes.data, 0, 4, 0, a.ctypes.data, 0, 3, 0)
    assert arguments[16:] == (y.ctypes.data, 0, 4, 8, 1, cublas.COMPUTE_32F, -1)
    half = np.ones((2, 2), np.float16)
    with cublas.use_blas(cublas.CupyBlas()):
        cublas.matmul(half, half, np.float32)
        assert not modes
        cublas.matmul(half, half)
    assert modes == [(77, cublas.REDUCE_IN_COMPUTE_TYPE, 2)]  # before the third product
    cublas._cupy_blas.cache_clear()
    assert [calls[1][i] for i in (8, 12, 17)] == [2, 2, 0]  # the types of A, B and C
    assert (
        ctypes.c_float.from_address(arguments[6]).value == 1 and ctypes.c_float.from_address(arguments[15]).value == 0
    )


@given(
    st.integers(0, 3), st.tuples(*[st.integers(1, 5)] * 3), LAYOUTS, LAYOUTS,
    st.sampled_from(["float16", "bfloat16"]), st.booleans(), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_half_precision_products_are_rounded_once(blas, batch, sizes, layout_a, layout_b, dtype, wide, biased, seed):
    """Products are rounded after the addition of the bias, or not at all if float32 is returned."""
    M, K, N = sizes
    rng = np.random.default_rng(seed)
    a = with_layout(rng.standard_normal((batch, M, K)).astype(as_dtype(dtype)), layout_a)
    b = with_layout(rng.standard_normal((batch, K, N)).astype(a.dtype), layout_b)
    bias = rng.standard_normal(N).astype(a.dtype) if biased else None
    with cublas.use_blas(blas), patch.object(sys.modules["minigrad.backend.gemm"], "_product", cublas.matmul):
        y = backend.gemm(a, b, bias=bias, dtype=np.dtype(np.float32) if wide else None)
    exact = a.astype(np.float64) @ b.astype(np.float64) + (0 if bias is None else bias.astype(np.float64))
    u = 1e-6 if wide else 2**-8 if dtype == "bfloat16" else 2**-11
    assert y.dtype == (np.float32 if wide else a.dtype)
    assert (abs(y.astype(np.float64) - exact) <= u * abs(exact) + 1e-5).all()


def test_error_messages(blas, monkeypatch):
    x = np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match="got float32 and float64"):
        cublas.matmul(x, x.T.astype(np.float64))
    with pytest.raises(TypeError, match="int64"):
        cublas.matmul(x.astype(int), x.T.astype(int))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 3\)"):
        cublas.matmul(x, x)
    with pytest.raises(TypeError, match=r"cuBLAS: the product of float32 .* got float16"):
        cublas.matmul(x, x.T, np.float16)
    half = x.astype(np.float16)
    monkeypatch.setattr(cublas, "COMPUTE_32F", cublas.COMPUTE_64F)
    with cublas.use_blas(blas), pytest.raises(RuntimeError, match="cublasGemmStridedBatchedEx failed: not supported"):
        cublas.matmul(half, half.T)


def test_use_stream_sets_the_workspace_again(library):
    """cublasSetStream resets the workspace."""
    memory = np.empty(4096, np.uint8)
    blas = cublas.CtypesBlas(library, memory)
    for stream in (STREAM, STREAM + 8):
        blas.use_stream(stream)
        handle = ctypes.cast(blas.handle, ctypes.POINTER(ctypes.c_void_p * 3)).contents
        assert list(handle) == [stream, memory.ctypes.data, 4096]
    blas.close()


def test_missing_cublas_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(RuntimeError, match="found no libcublas"):
        cublas.load_library()
