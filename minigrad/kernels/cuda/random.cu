// Counter-based random numbers: Philox4x32-10.  Salmon, Moraes, Dror, Shaw 2011.
//
// Words 4k to 4k + 3 of draw d are philox(counter = (k, d), key = seed). A word depends only on its index, the draw and
// the seed, so a thread needs no state. minigrad/backend/random.py computes the same words on the CPU, bit for bit.
// warps[]: uniform 64, words 64
#include "common.cuh"

struct Words {
    unsigned at[4];
};

// Ten rounds of (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0)),
// hi and lo being the halves of a 64-bit product.
static inline __device__ Words philox(unsigned long long index, unsigned long long draw, unsigned long long seed) {
    unsigned c0 = index, c1 = index >> 32, c2 = draw, c3 = draw >> 32, k0 = seed, k1 = seed >> 32;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long product0 = 0xD2511F53ull * c0, product1 = 0xCD9E8D57ull * c2;
        c0 = (unsigned)(product1 >> 32) ^ c1 ^ k0;
        c1 = product1;
        c2 = (unsigned)(product0 >> 32) ^ c3 ^ k1;
        c3 = product0;
        k0 += 0x9E3779B9;  // the golden ratio and √3 - 1, as 32-bit fractions
        k1 += 0xBB67AE85;
    }
    return {{c0, c1, c2, c3}};
}

// The arguments of a captured graph are constants, so a graph reads `state` (seed, first draw) from memory, and adds
// `draw` to the first draw. Outside a graph, state is null.
static inline __device__ Words four_words(long long index, unsigned long long draw, unsigned long long seed,
                                          const unsigned long long* __restrict__ state) {
    return state ? philox(index, state[1] + draw, state[0]) : philox(index, draw, seed);
}

// y_i = 32 random bits; a thread writes four adjacent words.   y (count,)   grid: ceil(count / (4 * 256))
extern "C" __global__ void __launch_bounds__(256)
words(unsigned* __restrict__ y, long long count, unsigned long long draw, unsigned long long seed,
      const unsigned long long* __restrict__ state) {
    const long long index = (long long)blockIdx.x * 256 + threadIdx.x;
    const Words words = four_words(index, draw, seed, state);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (index * 4 + i < count) y[index * 4 + i] = words.at[i];
}

// y_i uniform in [0, 1), a multiple of 2⁻²⁴; grid and block as for `words`.
extern "C" __global__ void __launch_bounds__(256)
uniform(float* __restrict__ y, long long count, unsigned long long draw, unsigned long long seed,
        const unsigned long long* __restrict__ state) {
    const long long index = (long long)blockIdx.x * 256 + threadIdx.x;
    const Words words = four_words(index, draw, seed, state);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (index * 4 + i < count) y[index * 4 + i] = (words.at[i] >> 8) * 0x1p-24f;
}
