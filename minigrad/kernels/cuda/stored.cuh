// What numbers are kept in. Arithmetic is in float everywhere: a kernel widens what it reads and rounds what it writes, so
// that a narrow type costs digits in memory only, and halves what memory costs.
//
//              sign, exponent, fraction      largest      digits
//   float          1      8       23          3.4e38        7
//   BFloat16       1      8        7          3.4e38        2 to 3      the upper half of a float
//   Half           1      5       10          65504         3           what is smaller than 6e-8 is lost
//
// Rounded to the nearest, and between two to the one whose last bit is 0; what is no number stays none.
//
// A source that is for all three is compiled with STORED=float, BFloat16 or Half, and calls it Stored.
#pragma once

// (Another compiler than CUDA's is a CPU's, in the tests; older GPUs have no instruction for bfloat16.)
struct BFloat16 {
    unsigned short bits;

    BFloat16() = default;
    __device__ BFloat16(float x) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
        const unsigned all = __float_as_uint(x), half_of_the_last_bit = 0x7fff, last_bit = all >> 16 & 1;
        bits = x != x ? 0x7fff : (all + half_of_the_last_bit + last_bit) >> 16;
#endif
    }
    __device__ operator float() const { return __uint_as_float((unsigned)bits << 16); }
};

struct Half {
    unsigned short bits;

    Half() = default;
#ifdef __CUDACC__
    __device__ Half(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
    __device__ operator float() const {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
        return x;
    }
#else
    Half(float x) : bits(__float2half(x).bits) {}
    operator float() const { return __half2float({bits}); }
#endif
};

// So many numbers side by side, which a thread reads or writes 16 bytes at a time, the most there is: eight of a narrow
// type at once, eight floats in two halves. They begin at a multiple of that.
template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT < 16 ? sizeof(T) * COUNT : 16) Packed {
    T at[COUNT];
};

#ifdef STORED
typedef STORED Stored;
#endif
