"""The emulator of tests/cuda/runner.py computes what a GPU would, and detects each kind of error that it documents."""

import math
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend.fast_paths import FAST_PATHS, fast_paths_of
from minigrad.kernels.cuda import norm
from minigrad.kernels.cuda.launch import Kernel, use_device
from minigrad.ops.norm import LayerNorm
from tests.cuda.runner import ORDERS, CpuDevice, KernelError, barriers, emulated, guarded, needs_compiler, poisoned

pytestmark = needs_compiler

SOURCE = r"""
#define STORED BFloat16
#include "stored.cuh"

extern "C" __global__ void indices(int* out) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    int where = 10000 * blockIdx.z + 1000 * blockIdx.y + 100 * blockIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
        1000 * where + 100 * threadIdx.z + 10 * threadIdx.y + threadIdx.x;
}

extern "C" __global__ void order_of(int* turn, int* counter) {  // the position of each thread in the order, twice
    turn[threadIdx.x] = atomicAdd(counter, 1);
    __syncwarp();
    turn[blockDim.x + threadIdx.x] = atomicAdd(counter, 1);
}

extern "C" __global__ void reversed(const float* x, float* y) {  // the elements of each block in reverse, twice
    __shared__ float all[256];
    float sum = 0;
    for (int turn = 0; turn < 2; ++turn) {
        all[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x] + turn;
        __syncthreads();
        sum += all[blockDim.x - 1 - threadIdx.x];
        __syncthreads();
    }
    y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

extern "C" __global__ void neighbours(const float* x, float* y) {  // exchange through shared memory within a warp
    __shared__ float all[32];
    all[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = all[threadIdx.x ^ 1];
}

extern "C" __global__ void shuffles(const int* x, int* y, int argument, int width) {
    int value = x[threadIdx.x], *out = y + 4 * threadIdx.x;
    out[0] = __shfl_sync(~0u, value, argument, width);
    out[1] = __shfl_xor_sync(~0u, value, argument, width);
    out[2] = __shfl_down_sync(~0u, value, argument, width);
    out[3] = __shfl_up_sync(~0u, value, argument, width);
}

extern "C" __global__ void halves(float* y) {  // shuffles within each half of a warp
    float value = threadIdx.x;
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0x0000ffff, value, 1);
    else y[threadIdx.x] = __shfl_sync(0xffff0000, value, 3);
}

extern "C" __global__ void without_me(float* y) { y[threadIdx.x] = __shfl_sync(0xfffffffe, 1.0f, 1); }

extern "C" __global__ void two_barriers(int n) {
    if (threadIdx.x < n) __syncthreads();
    else
        __syncthreads();
}

extern "C" __global__ void warp_and_block(int n) {
    if (threadIdx.x < n) __syncwarp();
    else __syncthreads();
}

extern "C" __global__ void early(int n) {
    if (threadIdx.x >= n) return;
    __syncthreads();
}

extern "C" __global__ void left_behind(float* y) {  // block 0 writes, block 1 reads
    __shared__ float fixed;
    DYNAMIC_SHARED(float, dynamic);
    if (blockIdx.x == 0) fixed = dynamic[0] = 1;
    y[2 * blockIdx.x] = fixed;
    y[2 * blockIdx.x + 1] = dynamic[0];
}

extern "C" __global__ void into_dynamic(float* y, int index) {
    DYNAMIC_SHARED(float, dynamic);
    dynamic[index] = 1;
    y[0] = dynamic[index];
}

extern "C" __global__ void at(const float* x, float* y, int from, int to) { y[to] = x[from]; }
extern "C" __global__ void fixed_index(float* y, int index) {
    float local[4] = {1, 2, 3, 4};
    y[0] = local[index];
}
extern "C" __global__ void four(const float* x, float* y) {
    float4 v = *reinterpret_cast<const float4*>(x);
    *y = v.x + v.w;
}
extern "C" __global__ void divided(int* y, int by) { *y /= by; }

extern "C" __global__ void counted(int* count, float* sum) {
    atomicAdd(count, 1);
    atomicAdd(sum, 0.5f);
}

extern "C" __global__ void functions(const float* x, float* y, bool twice) {
    float v = __ldg(x);
    float2 two = make_float2(rsqrtf(v), erff(v));
    int4 ints = make_int4(max(1, 2), min(1, 2), __float_as_int(v), warpSize);
    y[0] = two.x, y[1] = two.y, y[2] = __expf(v), y[3] = ints.x, y[4] = ints.y, y[5] = __int_as_float(ints.z);
    y[6] = ints.w, y[7] = twice ? 2 : 1, y[8] = __logf(v), y[9] = __fdividef(v, 4);
}

extern "C" __global__ void denormals(const float* x, float* y, double* exact) {
    y[0] = x[0];             // a copy
    y[1] = x[0] + x[1];      // a denormal operand
    y[2] = x[2] * x[2];      // a denormal result
    y[3] = x[0] > 0;
    y[4] = 1 / (x[0] + 2);
    exact[0] = (double)x[2] * x[2];
    exact[1] = x[0];
}

extern "C" __global__ void casts(const float* x, BFloat16* b, Half* h, float* from_b, float* from_h) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    b[i] = x[i];
    h[i] = x[i];
    from_b[i] = b[i];
    from_h[i] = h[i];
}

extern "C" __global__ void product(const Stored* A, const Stored* B, float* C, bool transposed) {
    // A (16, 16) by rows, B (16, 8) by rows, or transposed by columns, C (16, 8) by rows: one warp
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    const unsigned* rows = reinterpret_cast<const unsigned*>(A);
    unsigned a[4] = {rows[g * 8 + t], rows[(g + 8) * 8 + t], rows[g * 8 + t + 4], rows[(g + 8) * 8 + t + 4]}, b[4];
    float c[4] = {C[g * 8 + 2 * t], C[g * 8 + 2 * t + 1], C[(g + 8) * 8 + 2 * t], C[(g + 8) * 8 + 2 * t + 1]};
    if (transposed) load_tiles<false>(b, B + threadIdx.x % 8 * 16 + threadIdx.x / 8 % 2 * 8);
    else load_tiles<true>(b, B + threadIdx.x % 16 * 8);
    multiply(c, a, b[0], b[1], Stored());
    C[g * 8 + 2 * t] = c[0], C[g * 8 + 2 * t + 1] = c[1];
    C[(g + 8) * 8 + 2 * t] = c[2], C[(g + 8) * 8 + 2 * t + 1] = c[3];
}

extern "C" __global__ void misaligned_tile() {
    __shared__ __align__(16) Stored shared[64];
    unsigned b[4];
    load_tiles<false>(b, shared + 1);
}

extern "C" __global__ void copied(const int4* x, int4* y, int count, bool waits, int shift) {  // then zeros
    __shared__ __align__(16) int4 shared[32];
    copy_async((char*)(shared + threadIdx.x) + shift, x + threadIdx.x, threadIdx.x >= count);
    if (waits) wait_for_copies();
    y[threadIdx.x] = shared[threadIdx.x];
}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda") / "mistakes.cu"
    path.write_text(SOURCE)
    return str(path)


@pytest.fixture(scope="module", params=["stack switch", "ucontext"])
def run(request, source):
    """Launch one of the kernels above, with either implementation of the stack switch."""
    macros = ["-DCUDA_ON_CPU_UCONTEXT"] if request.param == "ucontext" else []

    def launch(name, grid, block, *args, order=ORDERS[0], barrier=None, shared=0):
        with use_device(CpuDevice(order, barrier=barrier, macros=macros)):
            Kernel(source, name)(grid, block, *args, shared=shared)

    return launch


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="denormals are flushed on x86 CPUs")
def test_denormal_float32_values_are_flushed(run):
    """Only within a kernel: the flag is reset afterwards, also after an error."""
    x, y, exact = np.float32([1e-40, 0, 1e-20]), poisoned(5), poisoned(2, np.float64)
    run("denormals", 1, 1, x, y, exact)
    np.testing.assert_array_equal(y, np.float32([1e-40, 0, 0, 0, 0.5]))
    np.testing.assert_array_equal(exact, [float(x[2]) ** 2, 0])
    assert (x + x)[0] > 0
    with pytest.raises(KernelError, match="deadlock"):
        run("two_barriers", 1, 64, np.int32(5))
    with pytest.raises(KernelError, match="out of bounds"):
        run("at", 1, 1, x, guarded(1), np.int32(0), np.int32(1))
    assert (x + x)[0] > 0


@pytest.mark.parametrize("order", ORDERS)
def test_every_thread_of_every_block_runs_once(run, order):
    out = poisoned(2 * 3 * 2 * 5 * 7 * 2, np.int32)
    run("indices", (2, 3, 2), (5, 7, 2), out, order=order)
    z, y, x = np.indices((2, 3, 2)).reshape(3, 12, 1)
    w, v, u = np.indices((2, 7, 5)).reshape(3, 1, 70)
    np.testing.assert_array_equal(out.reshape(12, 70), 1000 * (10000 * z + 1000 * y + 100 * x) + 100 * w + 10 * v + u)


def test_threads_run_in_the_given_order(run):
    def order_of(order):
        turn = poisoned((2, 2, 32), np.int32)
        run("order_of", 1, 64, turn, np.zeros(1, np.int32), order=order)
        assert sorted(turn.ravel()) == list(range(128))
        return turn

    in_turn, first, last, shuffled = map(order_of, ORDERS)
    np.testing.assert_array_equal(in_turn.ravel(), np.arange(128))
    np.testing.assert_array_equal(first.swapaxes(0, 1).ravel(), np.arange(128))
    np.testing.assert_array_equal(last[:, ::-1, ::-1].swapaxes(0, 1).ravel(), np.arange(128))
    assert (np.diff(shuffled.ravel()) < 0).sum() > 20 and (shuffled[0].min(), shuffled[1].max()) == (0, 127)


@pytest.mark.parametrize("order", ORDERS)
def test_barriers_wait_for_all_threads(run, order):
    x, y = drawn(3, 256), poisoned((3, 256))
    run("reversed", 3, 256, x, y, order=order)
    np.testing.assert_array_equal(y, x[:, ::-1] + (x[:, ::-1] + np.float32(1)))
    run("neighbours", 1, 32, x, y, order=order)
    np.testing.assert_array_equal(y[0, :32], x[0, :32].reshape(16, 2)[:, ::-1].ravel())


def test_missing_barrier_changes_the_result_in_some_order(run, source):
    found = barriers(source)
    lines = SOURCE.splitlines()
    assert len(found) == 9 and all("__sync" in lines[int(place.rsplit(":", 1)[1]) - 1] for place in found)
    x = drawn(3, 256)
    for k, (name, block) in enumerate([("reversed", 256), ("reversed", 256), ("neighbours", 32)], 1):
        outcomes = []
        for order in ORDERS:
            y = poisoned((3, 256))
            run(name, 3 if block == 256 else 1, block, x, y, order=order, barrier=found[k])
            outcomes.append(y.tobytes())
        assert len(set(outcomes)) > 1, f"the same in all orders without {found[k]}"


@given(st.integers(0, 31), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_shuffles_exchange_lanes_as_documented(run, argument, width):
    x, y = np.arange(100, 132, dtype=np.int32), poisoned((32, 4), np.int32)
    run("shuffles", 1, 32, x, y, np.int32(argument), np.int32(width))
    for lane in range(32):
        group = lane - lane % width
        other = lane ^ argument
        expected = [
            group + argument % width,
            other if other < group + width else lane,
            lane + argument if lane + argument < group + width else lane,
            lane - argument if lane - argument >= group else lane,
        ]
        np.testing.assert_array_equal(y[lane], x[expected])


def test_part_of_a_warp_shuffles(run):
    y = poisoned(32)
    run("halves", 1, 32, y)
    np.testing.assert_array_equal(y[:16], np.arange(16).reshape(8, 2)[:, ::-1].ravel())
    assert np.isnan(y[16:]).all()  # lane 3 is not in the mask
    with pytest.raises(KernelError, match="mask 0xfffffffe, in which its own lane, 0, is not"):
        run("without_me", 1, 32, y)


def test_deadlock_is_reported(run):
    with pytest.raises(
        KernelError,
        match=r"block \(0, 0, 0\): deadlock: 40 of 64 threads wait in __syncthreads at .*mistakes.cu:\d+, "
        r"24 of 64 threads wait in __syncthreads",
    ):
        run("two_barriers", 2, 64, np.int32(40))
    with pytest.raises(KernelError, match=r"32 returned, 8 of 64 threads wait in __syncwarp at .*, 24 of 64"):
        run("warp_and_block", 1, 64, np.int32(40))
    run("early", 1, 64, np.int32(40))  # a barrier does not wait for threads that have returned


def test_shared_memory_begins_as_nan_in_every_block(run):
    y = np.zeros((2, 2), np.float32)
    run("left_behind", 2, 1, y, shared=4)
    np.testing.assert_array_equal(y, [[1, 1], [np.nan, np.nan]])


def test_dynamic_shared_memory_has_the_requested_size(run):
    y = poisoned(1)
    run("into_dynamic", 1, 1, y, np.int32(4), shared=20)
    with pytest.raises(KernelError, match="wrote past the end of its 20 bytes of dynamic shared memory"):
        run("into_dynamic", 1, 1, y, np.int32(5), shared=20)
    with pytest.raises(KernelError, match="memory access out of bounds"):
        run("into_dynamic", 1, 1, y, np.int32(8), shared=32)
    with pytest.raises(KernelError, match="memory access out of bounds"):
        run("into_dynamic", 1, 1, y, np.int32(0), shared=0)
    run("into_dynamic", 1, 1, y, np.int32(16383), shared=65536)
    assert y == 1


def test_access_out_of_bounds_is_reported(run):
    after, before = guarded(5), guarded(5, side="before")
    after[...] = before[...] = np.arange(5)
    y = guarded((3, 1))
    assert np.isnan(y).all() and np.isnan(poisoned(2)).all() and (guarded(2, np.int64) == -1).all()
    run("at", 1, 1, after, y, np.int32(4), np.int32(2))
    run("at", 1, 1, before, y, np.int32(0), np.int32(0))
    np.testing.assert_array_equal(y[::2], [[0], [4]])
    index = np.int32
    with pytest.raises(KernelError, match=r"thread \(0, 0, 0\) of block \(0, 0, 0\).*, 4 bytes past .* argument 0$"):
        run("at", 1, 1, after, y, index(6), index(0))
    with pytest.raises(KernelError, match=r"4 bytes before argument 0$"):
        run("at", 1, 1, before, y, index(-1), index(0))
    with pytest.raises(KernelError, match=r"0 bytes past the end of argument 1$"):
        run("at", 1, 1, after, y, index(0), index(3))
    with pytest.raises(KernelError, match=r"address 0x0$"):
        run("at", 1, 1, None, y, index(0), index(0))
    run("at", 1, 1, after, y, index(1), index(1))  # the next launch works
    assert y[1] == 1


def test_misalignment_bad_index_and_division_are_reported(run):
    x, y = drawn(9), poisoned(1)
    aligned = x[(-x.ctypes.data % 16) // 4 :]
    run("four", 1, 1, aligned, y)
    assert y == aligned[0] + aligned[3]
    with pytest.raises(KernelError, match="a misaligned address"):
        run("four", 1, 1, aligned[1:], y)
    with pytest.raises(KernelError, match="an index outside an array"):
        run("fixed_index", 1, 1, y, np.int32(4))
    with pytest.raises(KernelError, match="a division by zero"):
        run("divided", 1, 1, np.ones(1, np.int32), np.int32(0))


def test_atomics_and_math_functions_are_correct(run):
    count, total = np.zeros(1, np.int32), np.zeros(1, np.float32)
    run("counted", 3, 33, count, total)
    assert count == 99 and total == 49.5
    x, y = np.full(1, 0.7, np.float32), poisoned(10)
    run("functions", 1, 1, x, y, np.bool_(True))
    expected = [0.7**-0.5, math.erf(0.7), math.exp(0.7), 2, 1, 0.7, 32, 2, math.log(0.7), 0.7 / 4]
    np.testing.assert_allclose(y, expected, rtol=2e-7)


def test_16_bit_floats_are_converted_exactly(run):
    """All bfloat16 and float16 values, the midpoints between neighbours, and the floats next to the midpoints."""
    everything = np.arange(1 << 16, dtype=np.uint32)
    halfway = (everything << 16 | 0x8000).view(np.float32)
    middle = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        middle[1:] = (middle[1:] + middle[:-1]) / 2
        middle = np.nan_to_num(middle, nan=1.0, posinf=70000.0, neginf=-70000.0)
        x = [(everything << 16).view(np.float32), halfway, middle]
        x = np.concatenate([*x, *(np.nextafter(v, np.float32(to)) for v in x[1:] for to in (0, 9e9))])
    b, h = poisoned(x.shape, np.uint16), poisoned(x.shape, np.float16)
    from_b, from_h = poisoned(x.shape), poisoned(x.shape)
    run("casts", len(x) // 1024, 1024, x, b, h, from_b, from_h)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(h, x.astype(np.float16))
    np.testing.assert_array_equal(from_h, h.astype(np.float32))
    np.testing.assert_array_equal(from_b, (b.astype(np.uint32) << 16).view(np.float32))
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    np.testing.assert_array_equal(b[~np.isnan(x)], rounded[~np.isnan(x)])
    assert np.isnan(from_b[np.isnan(x)]).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_tensor_core_product_equals_numpy(run, transposed):
    rng = np.random.default_rng(0)
    A, B, C = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
    out = C.copy()
    B_there = np.ascontiguousarray(B.T if transposed else B)
    casts = [(M.view(np.uint32) >> 16).astype(np.uint16) for M in (A, B_there)]
    run("product", 1, 32, *casts, out, np.bool_(transposed))
    np.testing.assert_array_equal(out, A @ B + C)


def test_unaligned_tile_raises(run):
    with pytest.raises(KernelError, match=r"load_tiles at .* of a row at a misaligned address"):
        run("misaligned_tile", 1, 32)


def test_asynchronous_copy_arrives_when_waited_for(run):
    x, y = np.arange(128, dtype=np.int32), poisoned(128, np.int32)
    run("copied", 1, 32, x, y, np.int32(20), np.bool_(True), np.int32(0))
    np.testing.assert_array_equal(y, np.where(np.arange(128) < 80, x, 0))
    run("copied", 1, 32, x, y, np.int32(20), np.bool_(False), np.int32(0))
    assert (y == -1).all()
    with pytest.raises(KernelError, match=r"copy_async at .* with a misaligned address"):
        run("copied", 1, 32, x, y, np.int32(20), np.bool_(True), np.int32(8))


def test_arguments_of_wrong_type_raise(run):
    x, y, n = drawn(4), poisoned(4), np.int32(0)
    with pytest.raises(TypeError, match="at has 4 parameters, got 3 arguments"):
        run("at", 1, 1, x, y, n)
    with pytest.raises(TypeError, match=r"parameter 2 is 'i4' .*, got int64 'i8'"):
        run("at", 1, 1, x, y, np.int64(0), n)
    with pytest.raises(TypeError, match=r"parameter 0 is '\*cf4' .*, got ndarray 'f8'"):
        run("at", 1, 1, x.astype(np.float64), y, n, n)
    with pytest.raises(TypeError, match="parameter 2 is 'i4'"):
        run("at", 1, 1, x, y, x, n)
    with pytest.raises(TypeError, match="parameter 2 is 'i4'"):
        run("at", 1, 1, x, y, None, n)
    with pytest.raises(TypeError, match=r"parameter 1 is '\*f4'"):
        run("at", 1, 1, x, np.float32(0), n, n)
    x.flags.writeable = False
    run("at", 1, 1, x, y, n, n)
    with pytest.raises(TypeError, match="parameter 1 is not a pointer to const, got a read-only array"):
        run("at", 1, 1, y, x, n, n)
    with pytest.raises(KernelError, match=re.escape('no kernel `extern "C" __global__ void missing(`')):
        run("missing", 1, 1)


def test_compile_error_is_shown(tmp_path):
    path = tmp_path / "wrong.cu"
    path.write_text('extern "C" __global__ void wrong(float* x) { *x = nowhere; }')
    with use_device(CpuDevice()), pytest.raises(KernelError, match="nowhere"):
        Kernel(str(path), "wrong")(1, 1, poisoned(1))


def test_launch_restores_signal_handlers(source):
    """faulthandler still reports a segmentation fault after a launch."""
    code = f"""
import ctypes, faulthandler
import numpy as np
from minigrad.kernels.cuda.launch import Kernel, use_device
from tests.cuda.runner import CpuDevice
faulthandler.enable()
with use_device(CpuDevice()):
    Kernel({source!r}, "early")(1, 64, np.int32(40))
ctypes.string_at(0)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode < 0 and "Fatal Python error: Segmentation fault" in done.stderr, done.stderr


def test_emulated_ends_with_its_block():
    empty, paths = np.empty, FAST_PATHS[LayerNorm]
    with pytest.raises(RuntimeError), emulated():
        assert FAST_PATHS[LayerNorm][0] is norm.CUDALayerNorm
        assert set(FAST_PATHS[LayerNorm]) == set(fast_paths_of(LayerNorm))
        for array in (np.empty((2, 3), np.float32), np.empty_like(np.zeros(2, np.int32)), np.empty(3, np.int8)):
            assert np.array_equal(array.view(np.uint8), np.full_like(array.view(np.uint8), 0xFF))
            assert array.ctypes.data % 16 == 0
        raise RuntimeError
    assert np.empty is empty and FAST_PATHS[LayerNorm] == paths
    for wrong in (lambda: CpuDevice("backwards"), lambda: guarded(3, side="left")):
        with pytest.raises(ValueError, match="must be"):
            wrong()
