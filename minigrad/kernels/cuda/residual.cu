// The residual connection with layer scale and stochastic depth. Letters as in minigrad/ops/residual.py:
//
//   s = x + m · γ ⊙ b                 ∂b = ∂s · m ⊙ γ,    ∂γ = Σ ∂s · m ⊙ b  over the rows             (∂x = ∂s)
//
//   x, b, s, ∂s, ∂b   (rows, C)          γ, ∂γ   (C,), or null
//
// with m from dropped.cuh, one for each image.
//
// Memory is what it costs. A thread has PACK neighbouring columns, which it reads at once, of rows that are
// `blockDim.y · gridDim.y` apart, so that γ and the sums of ∂γ stay in its registers:
//
//   block   (across, down) = 256 threads; across is a power of two, enough for a row if a warp's width is
//   grid    (C / (PACK · across), rounded up; any): forward has a row for each thread, backward few blocks, as each
//           leaves a share of ∂γ
//
// Constants: STORED, of x, b and their like; γ, ∂γ and m are float. PACK: 16 bytes of Stored if C and all pointers allow
// it, else 1. C columns.
//
// registers[C=384 PACK=4 STORED=float]: residual_forward 40, residual_backward 48
// registers[C=384 PACK=8 STORED=BFloat16]: residual_forward 48, residual_backward 64
// registers[C=385 PACK=1 STORED=Half]: residual_forward 32, residual_backward 32
#include "common.cuh"
#include "dropped.cuh"
#include "stored.cuh"

using Pack = Packed<Stored, PACK>;

// The first column of this thread, and whether there is one.
static inline __device__ int first_column() { return (blockIdx.x * blockDim.x + threadIdx.x) * PACK; }

static inline __device__ void load(const float* scale, float (&factor)[PACK]) {
    const int c = first_column();
#pragma unroll
    for (int i = 0; i < PACK; ++i) factor[i] = scale && c < C ? scale[c + i] : 1.0f;
}

extern "C" __global__ void __launch_bounds__(256)
residual_forward(const Stored* __restrict__ x, const Stored* __restrict__ branch, const float* __restrict__ scale,
                 Stored* __restrict__ s, int rows, const float* u, float p, float rescale, int together) {
    const int c = first_column();
    if (c >= C) return;
    float factor[PACK];
    load(scale, factor);
    const Dropped dropped = {u, p, rescale, together};
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y) {
        const size_t at = (size_t)row * C + c;
        const float m = dropped.m(row);
        Pack sum = *reinterpret_cast<const Pack*>(x + at);
        const Pack b = *reinterpret_cast<const Pack*>(branch + at);
#pragma unroll
        for (int i = 0; i < PACK; ++i) sum.at[i] = (float)sum.at[i] + m * factor[i] * (float)b.at[i];
        *reinterpret_cast<Pack*>(s + at) = sum;
    }
}

// ∂b, unless it is null; and each block's share of ∂γ, unless `shares` (gridDim.y, C) is null, for sum_rows to add up.
//
// Shared memory: 256 PACK floats, if there are shares.
extern "C" __global__ void __launch_bounds__(256)
residual_backward(const Stored* __restrict__ grad_s, const Stored* __restrict__ branch, const float* __restrict__ scale,
                  Stored* __restrict__ grad_branch, float* __restrict__ shares, int rows, const float* u, float p,
                  float rescale, int together) {
    const int c = first_column();
    float factor[PACK], grad_scale[PACK] = {};
    load(scale, factor);
    const Dropped dropped = {u, p, rescale, together};
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows && c < C; row += gridDim.y * blockDim.y) {
        const size_t at = (size_t)row * C + c;
        const float m = dropped.m(row);
        Pack grad = *reinterpret_cast<const Pack*>(grad_s + at);
        if (shares) {
            const Pack b = *reinterpret_cast<const Pack*>(branch + at);
#pragma unroll
            for (int i = 0; i < PACK; ++i) grad_scale[i] += (float)grad.at[i] * m * (float)b.at[i];
        }
        if (!grad_branch) continue;
#pragma unroll
        for (int i = 0; i < PACK; ++i) grad.at[i] = (float)grad.at[i] * m * factor[i];
        *reinterpret_cast<Pack*>(grad_branch + at) = grad;
    }
    if (!shares) return;

    // The threads with the same columns, one above the other, leave their sums for the first of them to add.
    DYNAMIC_SHARED(float, sums);  // (down, across, PACK)
#pragma unroll
    for (int i = 0; i < PACK; ++i) sums[(threadIdx.y * blockDim.x + threadIdx.x) * PACK + i] = grad_scale[i];
    __syncthreads();  // all sums are there before the first row of threads reads them
    if (threadIdx.y > 0 || c >= C) return;
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
        float sum = 0;
        for (int y = 0; y < blockDim.y; ++y) sum += sums[(y * blockDim.x + threadIdx.x) * PACK + i];
        shares[(size_t)blockIdx.y * C + c + i] = sum;
    }
}
