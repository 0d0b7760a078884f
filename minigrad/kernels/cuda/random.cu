// Random words and uniform values, by philox.cuh.
// warps[]: uniform 64, uniform_of_rows 64, words 64
#include "common.cuh"
#include "philox.cuh"
#include "rows.cuh"

// y_i = 32 random bits; a thread writes four adjacent words.   y (count,)   grid: ceil(count / (4 * 256))
extern "C" __global__ void __launch_bounds__(256)
words(unsigned* __restrict__ y, long long count, unsigned long long draw, unsigned long long seed,
      const unsigned long long* __restrict__ state) {
    const long long index = (long long)blockIdx.x * 256 + threadIdx.x;
    const Words words = Draw{draw, seed, state}.four_words(index);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (index * 4 + i < count) y[index * 4 + i] = words.at[i];
}

// y_i uniform in [0, 1), a multiple of 2⁻²⁴; grid and block as for `words`.
extern "C" __global__ void __launch_bounds__(256)
uniform(float* __restrict__ y, long long count, unsigned long long draw, unsigned long long seed,
        const unsigned long long* __restrict__ state) {
    const long long index = (long long)blockIdx.x * 256 + threadIdx.x;
    const Words words = Draw{draw, seed, state}.four_words(index);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (index * 4 + i < count) y[index * 4 + i] = Draw::as_uniform(words.at[i]);
}

// `uniform` for a part of a batch: the values that the images of the part have in a draw (A, count) for the whole batch.
// The fields of `Rows` count values, not images.   y (A, size)   grid: (ceil(size / (4 * 256)), A)
//
// A thread writes four adjacent values, whose words are from one Philox call if they are aligned in the whole draw, as
// in images of 4k values, else from two or more.
extern "C" __global__ void __launch_bounds__(256)
uniform_of_rows(float* __restrict__ y, long long size, long long count, long long split, long long offset0,
                long long offset1, unsigned long long draw, unsigned long long seed,
                const unsigned long long* __restrict__ state) {
    const Draw draws = {draw, seed, state};
    const Rows part = {count, split, offset0, offset1};
    const long long first = ((long long)blockIdx.x * 256 + threadIdx.x) * 4;
    Words words = {};
    long long held = -1;  // the words are 4 held to 4 held + 3
#pragma unroll 1
    for (long long j = first; j < first + 4 && j < size; ++j) {
        const long long i = blockIdx.y * part.count + part.row(j);
        if (i / 4 != held) words = draws.four_words(held = i / 4);
        y[blockIdx.y * size + j] = Draw::as_uniform(words.select(i % 4));
    }
}
