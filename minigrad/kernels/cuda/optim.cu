// Optimizer steps over all parameters in one launch: table.cuh. Letters as in minigrad/ops/updates.py.
//
// AdamW in one pass: each element is read and written once.    A row: x, grad, m, v
//
//   m <- β₁ m + (1 - β₁) g,    v <- β₂ v + (1 - β₂) g²
//   x <- (1 - lr · weight_decay) x - lr · m̂ / (√v̂ + eps),    m̂ = m / (1 - β₁ᵗ),   v̂ = v / (1 - β₂ᵗ)
//
// The scalars of a row: rest = 1 - β, computed in double on the host; decay = 1 - lr · weight_decay,
// rate = lr / (1 - β₁ᵗ), scale = 1 / √(1 - β₂ᵗ). Scalars are in memory, because the arguments of a captured graph are
// constants.
//
// Clipping, in three launches.    A row: grad
//
//   squares      partials_b = Σ g²  over the chunk of block b         double: the square of a float may overflow float
//   clip_factor  norm = √Σ_b partials_b, factor = min(max_norm / (norm + 1e-6), 1), or 1 if the norm is not finite
//   scale        g <- factor · g
//
// unscale: g <- g / S, and whether any g is Inf or NaN.    A row: grad
// average: ema <- ema + rest · (x - ema),  rest = 1 - decay, a scalar of the row.    A row: ema, x
// copies:  out <- x / divisor; x and out may be the same array.    A row: out, x
//
// warps[]: adamw 40, squares 48, clip_factor 32, scale 64, unscale 64, average 64, copies 64
#include "common.cuh"
#include "table.cuh"

extern "C" __global__ void __launch_bounds__(256)
adamw(const Row* __restrict__ rows, int count) {
    const Chunk chunk = chunk_of_block(rows, count);
    const float* scalars = chunk.row->scalars;
    const float beta1 = scalars[0], beta2 = scalars[1], rest1 = scalars[2], rest2 = scalars[3], eps = scalars[4],
                decay = scalars[5], rate = scalars[6], scale = scalars[7];
    float* __restrict__ x = chunk.array<float>(0);
    const float* __restrict__ grad = chunk.array<float>(1);
    float* __restrict__ m = chunk.array<float>(2);
    float* __restrict__ v = chunk.array<float>(3);
    for (int i = threadIdx.x; i < chunk.count; i += 256) {
        const float g = grad[i], x_i = x[i];
        const float m_i = beta1 * m[i] + rest1 * g;
        const float v_i = beta2 * v[i] + rest2 * g * g;
        m[i] = m_i;
        v[i] = v_i;
        x[i] = decay * x_i - rate * m_i / (sqrtf(v_i) * scale + eps);
    }
}

extern "C" __global__ void __launch_bounds__(256)
squares(const Row* __restrict__ rows, int count, double* __restrict__ partials) {
    const Chunk chunk = chunk_of_block(rows, count);
    const float* grad = chunk.array<float>(0);
    double sum = 0;
    for (int i = threadIdx.x; i < chunk.count; i += 256) sum += (double)grad[i] * grad[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(1024)
clip_factor(const double* __restrict__ partials, int count, double max_norm, float* __restrict__ norm,
            float* __restrict__ factor) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += 1024) sum += partials[i];
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    const double root = sqrt(sum), wanted = max_norm / (root + 1e-6);
    const bool finite = sum * 0 == 0;
    *norm = root;
    *factor = finite && wanted < 1 ? wanted : 1;
}

extern "C" __global__ void __launch_bounds__(256)
scale(const Row* __restrict__ rows, int count, const float* __restrict__ factor) {
    const float by = *factor;
    if (by == 1) return;  // nothing to clip, as in most steps
    const Chunk chunk = chunk_of_block(rows, count);
    float* grad = chunk.array<float>(0);
    for (int i = threadIdx.x; i < chunk.count; i += 256) grad[i] *= by;
}

// `overflow` must be false at launch. (The race is benign: every thread that writes it writes true.)
extern "C" __global__ void __launch_bounds__(256)
unscale(const Row* __restrict__ rows, int count, float by, bool* overflow) {
    const Chunk chunk = chunk_of_block(rows, count);
    float* grad = chunk.array<float>(0);
    for (int i = threadIdx.x; i < chunk.count; i += 256) {
        const float g = grad[i] * by;
        grad[i] = g;
        if (!(g * 0 == 0)) *overflow = true;
    }
}

extern "C" __global__ void __launch_bounds__(256)
average(const Row* __restrict__ rows, int count) {
    const Chunk chunk = chunk_of_block(rows, count);
    const float rest = chunk.row->scalars[0];
    float* __restrict__ ema = chunk.array<float>(0);
    const float* __restrict__ x = chunk.array<float>(1);
    for (int i = threadIdx.x; i < chunk.count; i += 256) ema[i] += rest * (x[i] - ema[i]);
}

extern "C" __global__ void __launch_bounds__(256)
copies(const Row* __restrict__ rows, int count, float divisor) {
    const Chunk chunk = chunk_of_block(rows, count);
    float* out = chunk.array<float>(0);
    const float* x = chunk.array<float>(1);
    for (int i = threadIdx.x; i < chunk.count; i += 256) out[i] = divisor == 1 ? x[i] : x[i] / divisor;
}
