// GroupNorm of images that are channels-last in memory. Letters as in minigrad/ops/norm.py:
//
//   x̂ = (x - μ) · r,   r = 1 / √(σ² + eps),   μ and σ² over the n = P · WIDTH values of one group of one image
//   y = x̂ ⊙ weight + bias
//
//   ∂x = r · (ĝ - ⟨ĝ⟩ - x̂ ⟨ĝ ⊙ x̂⟩),   ĝ = ∂y ⊙ weight,   ⟨·⟩ the mean over the same n values
//   ∂weight = Σ ∂y ⊙ x̂,   ∂bias = Σ ∂y,   both over images and pixels
//
//   x, y, ∂x, ∂y   (N, P, C), Stored: N images, P = H · W pixels, C channels, WIDTH channels in a group
//   weight, bias   (C,), or null                   μ, r   (N, C / WIDTH)
//
// Mapping: a block has one group of one image, and makes several passes over it. The first pass reads device memory,
// later passes hit the caches, as a group is small. A pixel has SLOTS = WIDTH / PACK packs of PACK adjacent channels,
// one load each. Thread t has pack t % SLOTS of the pixels
//
//   t / SLOTS,   t / SLOTS + STEP,   t / SLOTS + 2 STEP,   ...                      STEP = THREADS / SLOTS
//
// so its channels are the same throughout, and accesses are coalesced. The last THREADS % SLOTS threads have no pixels,
// but take part in the reductions.
//
//   grid   C / WIDTH groups, N images              block   THREADS
//
// Constants: STORED; WIDTH; THREADS; PACK: 4 floats or 8 16-bit values, or less as WIDTH and the pointers allow.
// (With 1024 threads, the occupancy is the same for 33 to 64 registers: one block.)
//
// warps[STORED=float WIDTH=2 THREADS=1024 PACK=2]: group_norm_forward 64, group_norm_backward 64
// warps[STORED=float WIDTH=3 THREADS=256 PACK=1]: group_norm_forward 64, group_norm_backward 48
// warps[STORED=float WIDTH=4 THREADS=256 PACK=4]: group_norm_forward 64, group_norm_backward 40
// warps[STORED=float WIDTH=64 THREADS=1024 PACK=4]: group_norm_forward 64, group_norm_backward 32
// warps[STORED=BFloat16 WIDTH=2 THREADS=1024 PACK=2]: group_norm_forward 64, group_norm_backward 64
// warps[STORED=BFloat16 WIDTH=8 THREADS=256 PACK=8]: group_norm_forward 40, group_norm_backward 32
// warps[STORED=Half WIDTH=64 THREADS=1024 PACK=8]: group_norm_forward 32, group_norm_backward 32
#include "common.cuh"
#include "stored.cuh"

constexpr int SLOTS = WIDTH / PACK, STEP = THREADS / SLOTS;

template <class T>
using Pack = Packed<T, PACK>;

// The elements of this thread.
struct Part {
    int pixel, channel;  // the first pixel and channel; pixel is P if the thread has none
    size_t at, step;     // the offset of the first pixel in the images, and from one pixel to the next

    __device__ Part(int P, int C) {
        const int slot = threadIdx.x % SLOTS, row = threadIdx.x / SLOTS;
        pixel = row < STEP ? row : P;
        channel = blockIdx.x * WIDTH + slot * PACK;
        at = ((size_t)blockIdx.y * P + pixel) * C + channel;
        step = (size_t)STEP * C;
    }
};

static inline __device__ Pack<Stored> load(const Stored* images, size_t at) {
    return *reinterpret_cast<const Pack<Stored>*>(images + at);
}

static inline __device__ void store(Stored* images, size_t at, Pack<Stored> pack) {
    *reinterpret_cast<Pack<Stored>*>(images + at) = pack;
}

// y, and μ and r for the backward pass.
extern "C" __global__ void __launch_bounds__(THREADS)
group_norm_forward(const Stored* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                   Stored* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, int P, int C,
                   float eps) {
    const Part part(P, C);
    const float n = (float)P * WIDTH;

    float sum = 0;
    size_t at = part.at;
#pragma unroll 2
    for (int pixel = part.pixel; pixel < P; pixel += STEP, at += part.step) {
        const Pack<Stored> pack = load(x, at);
#pragma unroll
        for (int i = 0; i < PACK; ++i) sum += (float)pack.at[i];
    }
    const float mu = block_sum(sum) / n;

    float squares = 0;  // Σ (x - μ)², as ⟨x²⟩ - μ² cancels where σ² is small beside μ²
    at = part.at;
#pragma unroll 2
    for (int pixel = part.pixel; pixel < P; pixel += STEP, at += part.step) {
        const Pack<Stored> pack = load(x, at);
#pragma unroll
        for (int i = 0; i < PACK; ++i) {
            const float centred = (float)pack.at[i] - mu;
            squares += centred * centred;
        }
    }
    const float r = rsqrtf(block_sum(squares) / n + eps);

    float factor[PACK], offset[PACK];
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
        factor[i] = r * (weight ? weight[part.channel + i] : 1.0f);
        offset[i] = bias ? bias[part.channel + i] : 0.0f;
    }
    at = part.at;
#pragma unroll 2
    for (int pixel = part.pixel; pixel < P; pixel += STEP, at += part.step) {
        Pack<Stored> pack = load(x, at);
#pragma unroll
        for (int i = 0; i < PACK; ++i) pack.at[i] = ((float)pack.at[i] - mu) * factor[i] + offset[i];
        store(y, at, pack);
    }
    if (threadIdx.x == 0) {
        const size_t group = (size_t)blockIdx.y * gridDim.x + blockIdx.x;
        mean[group] = mu;
        rstd[group] = r;
    }
}

// The sum over the block's pixels, for each channel, returned to the first SLOTS threads: a tree reduction over the
// threads with the same channels.
static inline __device__ Pack<float> sum_over_pixels(Pack<float> sum) {
    __shared__ Pack<float> per_thread[THREADS];
    per_thread[threadIdx.x] = sum;
    const int row = threadIdx.x / SLOTS;
#pragma unroll
    for (int rows = STEP; rows > 1; rows = (rows + 1) / 2) {
        const int half = (rows + 1) / 2;
        __syncthreads();  // both operands have been written
        if (row + half < rows) {
#pragma unroll
            for (int i = 0; i < PACK; ++i) sum.at[i] += per_thread[threadIdx.x + half * SLOTS].at[i];
            per_thread[threadIdx.x] = sum;
        }
    }
    __syncthreads();  // every thread has read before the next call writes
    return sum;
}

// ∂x, unless it is null, and the image's partial sums of ∂weight and ∂bias, unless `partials` is null.
//
//   partials   (N, 2, C): ∂weight, then ∂bias; sum_rows sums over the images
extern "C" __global__ void __launch_bounds__(THREADS)
group_norm_backward(const Stored* __restrict__ grad_y, const Stored* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ mean, const float* __restrict__ rstd, Stored* __restrict__ grad_x,
                    float* __restrict__ partials, int P, int C) {
    const Part part(P, C);
    const size_t group = (size_t)blockIdx.y * gridDim.x + blockIdx.x;
    const float n = (float)P * WIDTH, mu = mean[group], r = rstd[group];

    Pack<float> grad_weight = {}, grad_bias = {};
    size_t at = part.at;
#pragma unroll 2
    for (int pixel = part.pixel; pixel < P; pixel += STEP, at += part.step) {
        const Pack<Stored> g = load(grad_y, at), pack = load(x, at);
#pragma unroll
        for (int i = 0; i < PACK; ++i) {
            grad_weight.at[i] += (float)g.at[i] * (((float)pack.at[i] - mu) * r);
            grad_bias.at[i] += (float)g.at[i];
        }
    }
    if (grad_x) {
        float factor[PACK], sum = 0, dot = 0;  // Σ ĝ = Σ weight ⊙ ∂bias, and Σ ĝ ⊙ x̂ = Σ weight ⊙ ∂weight
#pragma unroll
        for (int i = 0; i < PACK; ++i) {
            factor[i] = weight ? weight[part.channel + i] : 1.0f;
            sum += grad_bias.at[i] * factor[i];
            dot += grad_weight.at[i] * factor[i];
        }
        sum = block_sum(sum) / n;
        dot = block_sum(dot) / n;
        at = part.at;
#pragma unroll 2
        for (int pixel = part.pixel; pixel < P; pixel += STEP, at += part.step) {
            Pack<Stored> g = load(grad_y, at);
            const Pack<Stored> pack = load(x, at);
#pragma unroll
            for (int i = 0; i < PACK; ++i)
                g.at[i] = r * ((float)g.at[i] * factor[i] - sum - ((float)pack.at[i] - mu) * r * dot);
            store(grad_x, at, g);
        }
    }
    if (!partials) return;

    grad_weight = sum_over_pixels(grad_weight);
    grad_bias = sum_over_pixels(grad_bias);
    if (threadIdx.x >= SLOTS) return;
    float* partial = partials + (size_t)blockIdx.y * 2 * C + part.channel;
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
        partial[i] = grad_weight.at[i];
        partial[C + i] = grad_bias.at[i];
    }
}
