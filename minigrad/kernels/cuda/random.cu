// Random words and uniform values, by philox.cuh.
// warps[]: uniform 64, words 64
#include "common.cuh"
#include "philox.cuh"

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
