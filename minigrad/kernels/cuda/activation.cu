// Elementwise ReLU and GELU. Letters as in minigrad/ops/activation.py:
//
//   ReLU   y = max(x, 0)                        ∂x = 0 where y ≤ 0, else ∂y
//   GELU   y = x · Φ(x)                         ∂x = ∂y · (Φ(x) + x · φ(x))
//
//          Φ(x) = ½ (1 + erf(x / √2)),          φ(x) = exp(-x² / 2) / √(2π)
//
// The kernels are memory-bound, so backward recomputes Φ(x) from x instead of reading a saved result.
//
//   x, y, ∂y, ∂x   `count` elements, Stored, dense, all in the same memory order
//
// A thread has PACK adjacent elements, one load: 4 floats or 8 16-bit values (16 bytes) if the pointers are aligned,
// else 1. Accesses are coalesced: a warp reads 512 contiguous bytes.
//
//   grid   ceil(count / (256 PACK))        block   256
//
// Constants: STORED and PACK.
//
// warps[STORED=float PACK=1]: gelu_forward 64, gelu_backward 64, relu_forward 64, relu_backward 64
// warps[STORED=float PACK=4]: gelu_forward 48, gelu_backward 48, relu_forward 64, relu_backward 64
// warps[STORED=BFloat16 PACK=8]: gelu_forward 48, gelu_backward 48, relu_forward 64, relu_backward 64
// warps[STORED=Half PACK=8]: gelu_forward 48, gelu_backward 48, relu_forward 64, relu_backward 64
// warps[STORED=Half PACK=1]: gelu_forward 64, gelu_backward 64, relu_forward 64, relu_backward 64
#include "stored.cuh"

using Pack = Packed<Stored, PACK>;

// The first element of this thread. In the last block it may be beyond the end of the array.
static inline __device__ long long first_element() {
    return ((long long)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
}

static inline __device__ bool is_full_pack(long long first, long long count) { return first + PACK <= count; }

// y = f(x). The thread at the end of the array may have less than a pack, and processes single elements.
template <float f(float)>
static inline __device__ void map(const Stored* __restrict__ x, Stored* __restrict__ y, long long count) {
    const long long first = first_element();
    if (is_full_pack(first, count)) {
        Pack pack = *reinterpret_cast<const Pack*>(x + first);
#pragma unroll
        for (int i = 0; i < PACK; ++i) pack.at[i] = f(pack.at[i]);
        *reinterpret_cast<Pack*>(y + first) = pack;
    } else {
#pragma unroll 1
        for (long long i = first; i < count; ++i) y[i] = f(x[i]);
    }
}

// ∂x = f(x, ∂y), likewise.
template <float f(float, float)>
static inline __device__ void map(const Stored* __restrict__ x, const Stored* __restrict__ grad_y,
                                  Stored* __restrict__ grad_x, long long count) {
    const long long first = first_element();
    if (is_full_pack(first, count)) {
        const Pack at = *reinterpret_cast<const Pack*>(x + first);
        Pack pack = *reinterpret_cast<const Pack*>(grad_y + first);
#pragma unroll
        for (int i = 0; i < PACK; ++i) pack.at[i] = f(at.at[i], pack.at[i]);
        *reinterpret_cast<Pack*>(grad_x + first) = pack;
    } else {
#pragma unroll 1
        for (long long i = first; i < count; ++i) grad_x[i] = f(x[i], grad_y[i]);
    }
}

// exp(-x² / 2)
static inline __device__ float bell(float x) {
    return sizeof(Stored) == 2 ? exp2f(-0.72134752f * x * x) : expf(-0.5f * x * x);
}

// Φ(x), with e = exp(-x² / 2). In 16 bits, loads take half the time, and erff would limit the kernel. So
//
//   Φ(-|x|) = e · t · P(t),   t = 1 / (1 + |x| / 4),   P a fitted polynomial: absolute error 4e-8, relative error 2e-5
//
// which is more exact than ½ (1 + erf) for negative x, where 1 + erf cancels.
static inline __device__ float normal_cdf(float x, float e) {
    if (sizeof(Stored) == 4) return 0.5f + 0.5f * erff(x * 0.70710678f);
    const float P[] = {0.09892956f, 0.11093722f, 0.030221377f, 0.2695058f, -0.25352526f, 0.33361271f, -0.08968141f};
    const float t = __fdividef(1.0f, 1.0f + 0.25f * fabsf(x));
    float tail = P[6];
#pragma unroll
    for (int k = 5; k >= 0; --k) tail = tail * t + P[k];
    tail *= t * e;
    return x < 0 ? tail : 1.0f - tail;
}

static inline __device__ float gelu(float x) { return x * normal_cdf(x, bell(x)); }
static inline __device__ float grad_gelu(float x, float grad_y) {
    const float e = bell(x);
    return grad_y * (normal_cdf(x, e) + x * (e * 0.39894228f));
}

// (NaN ≤ 0 is false: NaN is returned unchanged, and its gradient passes.)
static inline __device__ float relu(float x) { return x <= 0 ? 0 : x; }
static inline __device__ float grad_relu(float y, float grad_y) { return y <= 0 ? 0 : grad_y; }

extern "C" __global__ void __launch_bounds__(256)
gelu_forward(const Stored* x, Stored* y, long long count) { map<gelu>(x, y, count); }

extern "C" __global__ void __launch_bounds__(256)
gelu_backward(const Stored* x, const Stored* grad_y, Stored* grad_x, long long count) {
    map<grad_gelu>(x, grad_y, grad_x, count);
}

extern "C" __global__ void __launch_bounds__(256)
relu_forward(const Stored* x, Stored* y, long long count) { map<relu>(x, y, count); }

extern "C" __global__ void __launch_bounds__(256)
relu_backward(const Stored* y, const Stored* grad_y, Stored* grad_x, long long count) {
    map<grad_relu>(y, grad_y, grad_x, count);
}
