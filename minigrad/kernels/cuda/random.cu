// Random numbers that depend on nothing but their place: Philox4x32-10.  Salmon, Moraes, Dror, Shaw 2011.
//
// The k-th four words of draw d under a seed are philox(counter = (k, d), key = seed): see minigrad/random.py, which
// makes the same numbers, bit for bit, on the CPU. So a thread needs no state, and any thread can make any number.
// registers[]: uniform 32, words 32
#include "common.cuh"

struct Words {
    unsigned at[4];
};

// One of ten rounds: (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0)),
// hi and lo being the halves of a 64-bit product.
static inline __device__ Words philox(unsigned long long place, unsigned long long draw, unsigned long long seed) {
    unsigned c0 = place, c1 = place >> 32, c2 = draw, c3 = draw >> 32, k0 = seed, k1 = seed >> 32;
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

// In a captured graph the arguments stay what they were: there `state` (seed, draw) is read from memory and `draw` counts
// from it. Elsewhere it is null.
static inline __device__ Words four_words(long long place, unsigned long long draw, unsigned long long seed,
                                          const unsigned long long* __restrict__ state) {
    return state ? philox(place, state[1] + draw, state[0]) : philox(place, draw, seed);
}

// y_i of 32 random bits; four neighbours a thread.   y (count,)   grid: count / (4 * 256), rounded up
extern "C" __global__ void __launch_bounds__(256)
words(unsigned* __restrict__ y, long long count, unsigned long long draw, unsigned long long seed,
      const unsigned long long* __restrict__ state) {
    const long long place = (long long)blockIdx.x * 256 + threadIdx.x;
    const Words words = four_words(place, draw, seed, state);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (place * 4 + i < count) y[place * 4 + i] = words.at[i];
}

// y_i uniform in [0, 1), of 24 random bits, else as above.
extern "C" __global__ void __launch_bounds__(256)
uniform(float* __restrict__ y, long long count, unsigned long long draw, unsigned long long seed,
        const unsigned long long* __restrict__ state) {
    const long long place = (long long)blockIdx.x * 256 + threadIdx.x;
    const Words words = four_words(place, draw, seed, state);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (place * 4 + i < count) y[place * 4 + i] = (words.at[i] >> 8) * 0x1p-24f;
}
