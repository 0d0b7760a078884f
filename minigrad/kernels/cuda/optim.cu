// AdamW, all of it in one pass over a parameter: each number is read and written once.
//
//   m <- β₁ m + (1 - β₁) g,    v <- β₂ v + (1 - β₂) g²
//   x <- (1 - lr · weight_decay) x - lr · m̂ / (√v̂ + eps),    m̂ = m / (1 - β₁ᵗ),   v̂ = v / (1 - β₂ᵗ)
//
// See minigrad/optim/optimizer.py.   x, g, m, v (count,)     grid: any, the threads take numbers in turn     block: 256
//
// What is the same for all numbers comes computed: rest = 1 - β, which float32 would round; decay = 1 - lr · weight_decay, rate = lr / (1 - β₁ᵗ),
// scale = 1 / √(1 - β₂ᵗ). In a captured graph, whose arguments stay what they were, the three are read from `step`, which
// is null elsewhere.
// registers[]: adamw 40
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
adamw(float* __restrict__ x, const float* __restrict__ grad, float* __restrict__ m, float* __restrict__ v,
      long long count, float beta1, float beta2, float rest1, float rest2, float eps, float decay, float rate, float scale,
      const float* __restrict__ step) {
    if (step) decay = step[0], rate = step[1], scale = step[2];
    for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < count; i += (long long)gridDim.x * 256) {
        const float g = grad[i];
        const float m_i = m[i] = beta1 * m[i] + rest1 * g;
        const float v_i = v[i] = beta2 * v[i] + rest2 * g * g;
        x[i] = decay * x[i] - rate * m_i / (sqrtf(v_i) * scale + eps);
    }
}
