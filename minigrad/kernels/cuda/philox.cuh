// Counter-based random numbers: Philox4x32-10.  Salmon, Moraes, Dror, Shaw 2011.
//
// Words 4k to 4k + 3 of draw d are philox(counter = (k, d), key = seed). A word depends only on its index, the draw and
// the seed, so a thread needs no state. minigrad/backend/random.py computes the same words on the CPU, bit for bit.
#pragma once

struct Words {
    unsigned at[4];

    // Word i, for an i that is not a constant: an index into registers must be.
    __device__ unsigned select(int i) const { return i < 2 ? i ? at[1] : at[0] : i > 2 ? at[3] : at[2]; }
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

// One draw. The arguments of a captured graph are constants, so a graph reads `state` (seed, first draw) from memory,
// and adds `number` to the first draw. Outside a graph, state is null.
struct Draw {
    unsigned long long number, seed;
    const unsigned long long* state;

    // Words 4k to 4k + 3.
    __device__ Words four_words(long long k) const {
        return state ? philox(k, state[1] + number, state[0]) : philox(k, number, seed);
    }

    // Value i of `Generator.uniform` in float32: in [0, 1), a multiple of 2⁻²⁴.
    __device__ float uniform(long long i) const { return as_uniform(four_words(i / 4).select(i % 4)); }

    static __device__ float as_uniform(unsigned word) { return (word >> 8) * 0x1p-24f; }

    // The draw `count` draws later.
    __device__ Draw later(int count) const { return {number + count, seed, state}; }
};
