// What the kernels of this folder share: sums over a warp and over a block, and the second half of a long sum.
//
// A block's threads run in warps of 32. The threads of a warp can read each other's registers (shuffles); those of
// different warps meet in shared memory, with a barrier between writing and reading. No sum is made with atomics: the
// order of addition is fixed by the indices alone, so that the same numbers give the same bits every time.
#pragma once

#define WARP 32

// Shared memory whose size is given at the launch. (A macro: another compiler may have another way.)
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

// The sum over the 32 threads of a warp, the same in all of them: after the step with `apart`, a thread holds the sum
// of its group of 2 · apart numbers.
template <class Number> static inline __device__ Number warp_sum(Number value) {
#pragma unroll
    for (int apart = 1; apart < WARP; apart *= 2) value += __shfl_xor_sync(0xffffffff, value, apart);
    return value;
}

// The sum over the threads of a block of one dimension, the same in all of them. All must call it, and there must be a
// multiple of 32.
template <class Number> static inline __device__ Number block_sum(Number value) {
    __shared__ Number of_warp[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    value = warp_sum(value);
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();  // all warps have written before any reads
    value = warp_sum(lane < blockDim.x / WARP ? of_warp[lane] : Number(0));
    __syncthreads();  // all have read before the next call writes
    return value;
}

// sums_j = Σ_i parts_ij: what every block of a kernel before has summed by itself.
//
//   parts   (rows, columns)      sums   (columns,)      grid   columns / 32, rounded up      block   (32, STRIPS)
//
// Thread (x, y) of block b adds up column 32 b + x over the rows y, y + STRIPS, ...; the first warp adds the strips.
//
// registers[]: sum_rows 32
#define STRIPS 32

extern "C" __global__ void __launch_bounds__(WARP * STRIPS)
sum_rows(const float* __restrict__ parts, float* __restrict__ sums, int rows, int columns) {
    __shared__ float strip[STRIPS][WARP];
    const int column = blockIdx.x * WARP + threadIdx.x;
    float sum = 0;
    if (column < columns)
        for (int row = threadIdx.y; row < rows; row += STRIPS) sum += parts[(size_t)row * columns + column];
    strip[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();  // all strips are summed before the first warp reads them
    if (threadIdx.y == 0 && column < columns) {
        sum = 0;
        for (int y = 0; y < STRIPS; ++y) sum += strip[y][threadIdx.x];
        sums[column] = sum;
    }
}
