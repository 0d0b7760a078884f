// The element types of arrays. Arithmetic is in float: a kernel upcasts after a load and casts back before a store, so
// a 16-bit type halves memory traffic, and loses precision only in memory.
//
//              sign, exponent, fraction      largest      digits
//   float          1      8       23          3.4e38        7
//   BFloat16       1      8        7          3.4e38        2 to 3      the upper 16 bits of a float
//   Half           1      5       10          65504         3           magnitudes below 3e-8 become 0
//
// Casts round to nearest even, and keep NaN.
//
// A source for all three types is compiled with STORED=float, BFloat16 or Half, and calls the element type Stored.
#pragma once

// (Without __CUDACC__ the compiler is the tests' CPU compiler. GPUs before compute capability 8.0 cannot convert to
// bfloat16 in one instruction.)
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

// A pack: COUNT adjacent elements, aligned, so that a thread loads or stores them in accesses of up to 16 bytes, the
// widest there is: eight 16-bit elements in one access, eight floats in two.
template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT < 16 ? sizeof(T) * COUNT : 16) Packed {
    T at[COUNT];
};

#ifdef STORED
typedef STORED Stored;
#endif
