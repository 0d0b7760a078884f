// The residual connection with layer scale and stochastic depth. Letters as in minigrad/ops/residual.py:
//
//   s = x + m · γ ⊙ b                 ∂b = ∂s · m ⊙ γ,    ∂γ = Σ ∂s · m ⊙ b  over the rows             (∂x = ∂s)
//
//   x, b, s, ∂s, ∂b   (rows, C)          γ, ∂γ   (C,), or null
//
// with m from dropped.cuh, one for each image.
//
// The kernels are memory-bound. A thread has PACK adjacent columns, one load, of the rows at a stride of
// blockDim.y · gridDim.y, so γ and the sums of ∂γ stay in its registers:
//
//   block   (across, down) = 256 threads; across is the smallest power of two that covers a row, at most 32
//   grid    (ceil(C / (PACK · across)), any): forward one row for each thread, backward few blocks, as each block
//           writes partial sums of ∂γ
//
// Constants: STORED, the type of x, b, s and their gradients (γ, ∂γ and m are float); PACK, 16 bytes of Stored if C and
// all pointers allow, else 1; C, the number of columns.
//
// warps[C=384 PACK=4 STORED=float]: residual_forward 48, residual_backward 40
// warps[C=384 PACK=8 STORED=BFloat16]: residual_forward 40, residual_backward 32
// warps[C=385 PACK=1 STORED=Half]: residual_forward 64, residual_backward 64
#include "common.cuh"
#include "dropped.cuh"
#include "stored.cuh"

using Pack = Packed<Stored, PACK>;

// The first column of this thread; C or more if the thread has none.
static inline __device__ int first_column() { return (blockIdx.x * blockDim.x + threadIdx.x) * PACK; }

static inline __device__ void load(const float* scale, float (&factor)[PACK]) {
    const int c = first_column();
#pragma unroll
    for (int i = 0; i < PACK; ++i) factor[i] = scale && c < C ? scale[c + i] : 1.0f;
}

extern "C" __global__ void __launch_bounds__(256)
residual_forward(const Stored* __restrict__ x, const Stored* __restrict__ branch, const float* __restrict__ scale,
                 Stored* __restrict__ s, int rows, const float* u, float p, float rescale, int rows_per_image) {
    const int c = first_column();
    if (c >= C) return;
    float factor[PACK];
    load(scale, factor);
    const Dropped dropped = {u, p, rescale, rows_per_image};
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

// ∂b, unless it is null, and the block's partial sums of ∂γ for sum_rows, unless `partials` (gridDim.y, C) is null.
//
// Shared memory: 256 PACK floats, with `partials`.
extern "C" __global__ void __launch_bounds__(256)
residual_backward(const Stored* __restrict__ grad_s, const Stored* __restrict__ branch, const float* __restrict__ scale,
                  Stored* __restrict__ grad_branch, float* __restrict__ partials, int rows, const float* u, float p,
                  float rescale, int rows_per_image) {
    const int c = first_column();
    float factor[PACK], grad_scale[PACK] = {};
    load(scale, factor);
    const Dropped dropped = {u, p, rescale, rows_per_image};
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows && c < C; row += gridDim.y * blockDim.y) {
        const size_t at = (size_t)row * C + c;
        const float m = dropped.m(row);
        Pack grad = *reinterpret_cast<const Pack*>(grad_s + at);
        if (partials) {
            const Pack b = *reinterpret_cast<const Pack*>(branch + at);
#pragma unroll
            for (int i = 0; i < PACK; ++i) grad_scale[i] += (float)grad.at[i] * m * (float)b.at[i];
        }
        if (!grad_branch) continue;
#pragma unroll
        for (int i = 0; i < PACK; ++i) grad.at[i] = (float)grad.at[i] * m * factor[i];
        *reinterpret_cast<Pack*>(grad_branch + at) = grad;
    }
    if (!partials) return;

    // The first row of threads sums over the threads with the same columns.
    DYNAMIC_SHARED(float, sums);  // (down, across, PACK)
#pragma unroll
    for (int i = 0; i < PACK; ++i) sums[(threadIdx.y * blockDim.x + threadIdx.x) * PACK + i] = grad_scale[i];
    __syncthreads();  // every sum is written before the first row of threads reads
    if (threadIdx.y > 0 || c >= C) return;
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
        float sum = 0;
        for (int y = 0; y < blockDim.y; ++y) sum += sums[(y * blockDim.x + threadIdx.x) * PACK + i];
        partials[(size_t)blockIdx.y * C + c + i] = sum;
    }
}
