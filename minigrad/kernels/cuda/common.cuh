// Reductions shared by the kernels of this folder: over a warp, over a thread block, and over blocks.
//
// The threads of a block run in warps of 32; the index of a thread in its warp is its lane. Lanes of one warp exchange
// registers by shuffles; warps of one block exchange data through shared memory, with a barrier between write and read.
// No reduction uses atomics: the order of addition is fixed by the indices, so results are deterministic bit for bit.
//
// A line `warps[CONSTANTS]: kernel N` of a source states the occupancy that the registers allow if it is compiled with
// these constants: at least N resident warps per multiprocessor, or the maximum of the GPU. tests/cuda checks the lines.
#pragma once

#define WARP 32

// Dynamic shared memory, sized at launch. (A macro: the tests' CPU compiler replaces it.)
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

// The sum over the 32 lanes of a warp, returned to every lane (butterfly reduction): after the step `apart`, each lane
// holds the sum over its group of 2 · apart lanes.
template <class T> static inline __device__ T warp_sum(T value) {
#pragma unroll
    for (int apart = 1; apart < WARP; apart *= 2) value += __shfl_xor_sync(0xffffffff, value, apart);
    return value;
}

// The sum over a one-dimensional block, returned to every thread. Every thread must call it; blockDim.x must be a
// multiple of 32.
template <class T> static inline __device__ T block_sum(T value) {
    __shared__ T per_warp[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    value = warp_sum(value);
    if (lane == 0) per_warp[warp] = value;
    __syncthreads();  // every warp has written before any warp reads
    value = warp_sum(lane < blockDim.x / WARP ? per_warp[lane] : T(0));
    __syncthreads();  // every warp has read before the next call writes
    return value;
}

// sums_j = Σ_i partials_ij: the second step of a reduction over blocks, row i being the partial sums of block i of
// another kernel.
//
//   partials   (rows, columns)      grid    ceil(columns / 32)
//   first      columns 0 to split   block   (32, STRIPS)
//   second     the other columns, if any: the gradients of two parameters are two arrays
//
// Thread (x, y) of block b sums column 32 b + x over the rows y, y + STRIPS, ...; the first warp sums the strips.
//
// warps[]: sum_rows 64
#define STRIPS 32

extern "C" __global__ void __launch_bounds__(WARP * STRIPS)
sum_rows(const float* __restrict__ partials, float* __restrict__ first, float* __restrict__ second, int rows,
         int columns, int split) {
    __shared__ float strip[STRIPS][WARP];
    const int column = blockIdx.x * WARP + threadIdx.x;
    float sum = 0;
    if (column < columns)
        for (int row = threadIdx.y; row < rows; row += STRIPS) sum += partials[(size_t)row * columns + column];
    strip[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();  // every strip is written before the first warp reads
    if (threadIdx.y == 0 && column < columns) {
        sum = 0;
        for (int y = 0; y < STRIPS; ++y) sum += strip[y][threadIdx.x];
        (column < split ? first[column] : second[column - split]) = sum;
    }
}
