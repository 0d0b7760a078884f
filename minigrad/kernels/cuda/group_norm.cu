// GroupNorm, alone or with the ReLU after it (RELU), of images that are channels-last in memory. Letters as in
// minigrad/ops/norm.py:
//
//   x̂ = (x - μ) · r,   r = 1 / √(σ² + eps),   μ and σ² over the n = P · WIDTH values of one group of one image
//   y = z,   RELU: y = max(z, 0);   z = x̂ ⊙ weight + bias + shortcut
//
//   ∂x = r · (ĝ - ⟨ĝ⟩ - x̂ ⟨ĝ ⊙ x̂⟩),   ĝ = ∂z ⊙ weight,   ⟨·⟩ the mean over the same n values
//   ∂weight = Σ ∂z ⊙ x̂,   ∂bias = Σ ∂z,   both over images and pixels
//   ∂shortcut = ∂z = ∂y,   RELU: 0 where z ≤ 0
//
//   x, shortcut, y and gradients   (N, P, C), Stored: N images, P = H · W pixels, C channels, WIDTH channels in a group
//   weight, bias                   (C,), or null             μ, r   (N, C / WIDTH)
//
// Mapping: a block has GROUPS adjacent groups of one image, and makes several passes over them. The first pass reads
// device memory, later passes hit the caches, as a group is small. GROUPS > 1 if the channels of a group are less than
// 64 bytes: memory is read in sectors of 32 bytes, and blocks with one 16-bit channel each would read each sector 16
// times. A pixel of the block has SLOTS = GROUPS · WIDTH / PACK packs of PACK adjacent channels, one load each.
// Thread t has pack t % SLOTS of the pixels
//
//   t / SLOTS,   t / SLOTS + STEP,   t / SLOTS + 2 STEP,   ...                      STEP = THREADS / SLOTS
//
// so its channels are the same throughout, and accesses are coalesced. The last THREADS % SLOTS threads have no pixels,
// but take part in the reductions.
//
//   grid   C / WIDTH / GROUPS, N images              block   THREADS
//
// Constants: STORED; RELU; WIDTH; GROUPS, 1 or a number for which SLOTS is a power of two, at most 32; THREADS; PACK: 4
// floats or 8 16-bit values, or less as the channels and the pointers allow.
//
// warps[STORED=float RELU=0 WIDTH=2 GROUPS=8 THREADS=512 PACK=4]: group_norm_forward 32, group_norm_backward 16
// warps[STORED=float RELU=0 WIDTH=3 GROUPS=1 THREADS=256 PACK=1]: group_norm_forward 40, group_norm_backward 32
// warps[STORED=float RELU=1 WIDTH=1 GROUPS=16 THREADS=512 PACK=1]: group_norm_forward 40, group_norm_backward 32
// warps[STORED=float RELU=1 WIDTH=64 GROUPS=1 THREADS=512 PACK=4]: group_norm_forward 32, group_norm_backward 16
// warps[STORED=BFloat16 RELU=0 WIDTH=8 GROUPS=4 THREADS=256 PACK=8]: group_norm_forward 32, group_norm_backward 16
// warps[STORED=BFloat16 RELU=1 WIDTH=1 GROUPS=32 THREADS=256 PACK=8]: group_norm_forward 32, group_norm_backward 16
// warps[STORED=BFloat16 RELU=1 WIDTH=2 GROUPS=16 THREADS=512 PACK=8]: group_norm_forward 32, group_norm_backward 16
// warps[STORED=BFloat16 RELU=1 WIDTH=16 GROUPS=2 THREADS=256 PACK=8]: group_norm_forward 32, group_norm_backward 16
// warps[STORED=Half RELU=1 WIDTH=64 GROUPS=1 THREADS=512 PACK=8]: group_norm_forward 32, group_norm_backward 16
#include "common.cuh"
#include "stored.cuh"

constexpr int SLOTS = GROUPS * WIDTH / PACK, STEP = THREADS / SLOTS;
constexpr int PARTS = PACK > WIDTH ? PACK / WIDTH : 1;  // groups of a pack
constexpr int GROUP_SLOTS = GROUPS == 1 ? WARP : PACK > WIDTH ? 1 : WIDTH / PACK;  // adjacent lanes with one group

template <class T>
using Pack = Packed<T, PACK>;

// The elements of this thread.
struct Part {
    int pixel, channel, group;  // the first pixel, channel and group; pixel is P if the thread has none
    size_t at, step;            // the offset of the first pixel in the images, and from one pixel to the next

    __device__ Part(int P, int C) {
        const int slot = threadIdx.x % SLOTS, row = threadIdx.x / SLOTS;
        pixel = row < STEP ? row : P;
        channel = blockIdx.x * GROUPS * WIDTH + slot * PACK;
        group = blockIdx.y * (C / WIDTH) + channel / WIDTH;
        at = ((size_t)blockIdx.y * P + pixel) * C + channel;
        step = (size_t)STEP * C;
    }
};

// The index in the pack's groups of channel i of a pack.
static inline __device__ constexpr int part_of(int i) { return PARTS > 1 ? i / WIDTH : 0; }

static inline __device__ Pack<Stored> load(const Stored* images, size_t at) {
    return *reinterpret_cast<const Pack<Stored>*>(images + at);
}

static inline __device__ void store(Stored* images, size_t at, Pack<Stored> pack) {
    *reinterpret_cast<Pack<Stored>*>(images + at) = pack;
}

// The sums over the block for each group of this thread's pack: over the lanes of a warp with the same groups
// (butterfly reduction), then over the warps, lane g for group g of the block.
static inline __device__ void sum_over_group(float (&sums)[PARTS]) {
    constexpr int WARPS = THREADS / WARP;
    __shared__ float per_warp[WARPS][GROUPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int first = GROUPS == 1 ? 0 : threadIdx.x % SLOTS * PACK / WIDTH;  // the pack's first group in the block
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
#pragma unroll
        for (int apart = 1; apart < WARP; apart *= 2)
            if (apart < GROUP_SLOTS || apart >= SLOTS) sums[part] += __shfl_xor_sync(0xffffffff, sums[part], apart);
        if (lane < (GROUPS == 1 ? 1 : SLOTS)) per_warp[warp][first + part] = sums[part];
    }
    __syncthreads();  // every warp has written before any warp reads
    float total = 0;
    if (lane < GROUPS)
#pragma unroll
        for (int w = 0; w < WARPS; ++w) total += per_warp[w][lane];
    __syncthreads();  // every warp has read before the next call writes
#pragma unroll
    for (int part = 0; part < PARTS; ++part) sums[part] = __shfl_sync(0xffffffff, total, first + part);
}

// y, and μ and r for the backward pass. `shortcut` may be null.
extern "C" __global__ void __launch_bounds__(THREADS, 1024 / THREADS)
group_norm_forward(const Stored* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                   const Stored* __restrict__ shortcut, Stored* __restrict__ y, float* __restrict__ mean,
                   float* __restrict__ rstd, int P, int C, float eps) {
    const Part part(P, C);
    const float n = (float)P * WIDTH;

    float mu[PARTS] = {};
    size_t at = part.at;
#pragma unroll 2
    for (int pixel = part.pixel; pixel < P; pixel += STEP, at += part.step) {
        const Pack<Stored> pack = load(x, at);
#pragma unroll
        for (int i = 0; i < PACK; ++i) mu[part_of(i)] += (float)pack.at[i];
    }
    sum_over_group(mu);
#pragma unroll
    for (int i = 0; i < PARTS; ++i) mu[i] /= n;

    float r[PARTS] = {};  // at first Σ (x - μ)², as ⟨x²⟩ - μ² cancels where σ² is small beside μ²
    at = part.at;
#pragma unroll 2
    for (int pixel = part.pixel; pixel < P; pixel += STEP, at += part.step) {
        const Pack<Stored> pack = load(x, at);
#pragma unroll
        for (int i = 0; i < PACK; ++i) {
            const float centred = (float)pack.at[i] - mu[part_of(i)];
            r[part_of(i)] += centred * centred;
        }
    }
    sum_over_group(r);
#pragma unroll
    for (int i = 0; i < PARTS; ++i) r[i] = rsqrtf(r[i] / n + eps);

    float factor[PACK], offset[PACK];
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
        factor[i] = r[part_of(i)] * (weight ? weight[part.channel + i] : 1.0f);
        offset[i] = bias ? bias[part.channel + i] : 0.0f;
    }
    at = part.at;
#pragma unroll 2
    for (int pixel = part.pixel; pixel < P; pixel += STEP, at += part.step) {
        Pack<Stored> pack = load(x, at), added = {};
        if (RELU && shortcut) added = load(shortcut, at);
#pragma unroll
        for (int i = 0; i < PACK; ++i) {
            float z = ((float)pack.at[i] - mu[part_of(i)]) * factor[i] + offset[i];
            if (RELU && shortcut) z += (float)added.at[i];
            pack.at[i] = RELU && z <= 0 ? 0.0f : z;  // (NaN ≤ 0 is false: y is NaN, too)
        }
        store(y, at, pack);
    }
    if (threadIdx.x < SLOTS && part.channel % WIDTH == 0)
#pragma unroll
        for (int i = 0; i < PARTS; ++i) {
            mean[part.group + i] = mu[i];
            rstd[part.group + i] = r[i];
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

// ∂x and ∂shortcut, each unless it is null, and the image's partial sums of ∂weight and ∂bias, unless `partials` is
// null. RELU: z ≤ 0 where y ≤ 0; without a shortcut y is null, and z is computed again.
//
//   partials   (N, 2, C): ∂weight, then ∂bias; sum_rows sums over the images
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
group_norm_backward(const Stored* __restrict__ grad_y, const Stored* __restrict__ x, const Stored* __restrict__ y,
                    const float* __restrict__ weight, const float* __restrict__ bias, const float* __restrict__ mean,
                    const float* __restrict__ rstd, Stored* __restrict__ grad_x, Stored* __restrict__ grad_shortcut,
                    float* __restrict__ partials, int P, int C) {
    const Part part(P, C);
    const float n = (float)P * WIDTH;
    float mu[PARTS], r[PARTS];
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
        mu[i] = mean[part.group + i];
        r[i] = rstd[part.group + i];
    }
    float factor[PACK], offset[PACK];
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
        factor[i] = weight ? weight[part.channel + i] : 1.0f;
        offset[i] = RELU && bias ? bias[part.channel + i] : 0.0f;
    }
    // ∂z of channel i of a pixel, from x - μ, ∂y and y
    const auto grad_z = [&](int i, float centred, float g, float out) {
        return RELU && (y ? out : centred * (r[part_of(i)] * factor[i]) + offset[i]) <= 0 ? 0.0f : g;
    };

    Pack<float> grad_weight = {}, grad_bias = {};
    size_t at = part.at;
#pragma unroll 2
    for (int pixel = part.pixel; pixel < P; pixel += STEP, at += part.step) {
        const Pack<Stored> pack = load(x, at);
        Pack<Stored> g = load(grad_y, at), out = {};
        if (RELU && y) out = load(y, at);
#pragma unroll
        for (int i = 0; i < PACK; ++i) {
            const float centred = (float)pack.at[i] - mu[part_of(i)];
            const float grad = grad_z(i, centred, g.at[i], out.at[i]);
            grad_weight.at[i] += grad * (centred * r[part_of(i)]);
            grad_bias.at[i] += grad;
            g.at[i] = grad;  // exact: ∂y or 0
        }
        if (RELU && grad_shortcut) store(grad_shortcut, at, g);
    }
    if (grad_x) {
        float sum[PARTS] = {}, dot[PARTS] = {};
#pragma unroll
        for (int i = 0; i < PACK; ++i) {
            sum[part_of(i)] += grad_bias.at[i] * factor[i] / n;
            dot[part_of(i)] += grad_weight.at[i] * factor[i] / n;
        }
        sum_over_group(sum);  // ⟨ĝ⟩
        sum_over_group(dot);  // ⟨ĝ ⊙ x̂⟩
        at = part.at;
#pragma unroll 2
        for (int pixel = part.pixel; pixel < P; pixel += STEP, at += part.step) {
            const Pack<Stored> pack = load(x, at);
            Pack<Stored> g = load(grad_y, at), out = {};
            if (RELU && y) out = load(y, at);
#pragma unroll
            for (int i = 0; i < PACK; ++i) {
                const int j = part_of(i);
                const float centred = (float)pack.at[i] - mu[j], grad = grad_z(i, centred, g.at[i], out.at[i]);
                g.at[i] = r[j] * (grad * factor[i] - sum[j] - centred * r[j] * dot[j]);
            }
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
