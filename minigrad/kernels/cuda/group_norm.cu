// GroupNorm on images that are channels-last in memory: each group of channels of each image is brought to mean 0 and
// variance 1, then scaled and shifted by channel. Letters as in minigrad/ops/norm.py:
//
//   x̂ = (x - μ) · r,   r = 1 / √(σ² + eps),   μ and σ² over the n = P · WIDTH numbers of one group of one image
//   y = x̂ ⊙ weight + bias
//
//   ∂x = r · (ĝ - ⟨ĝ⟩ - x̂ ⟨ĝ ⊙ x̂⟩),   ĝ = ∂y ⊙ weight,   ⟨·⟩ the mean over those n numbers
//   ∂weight = Σ ∂y ⊙ x̂,   ∂bias = Σ ∂y,   both over images and places
//
//   x, y, ∂x, ∂y   (N, P, C), Stored: N images of P = H · W places, and in each the C channels, WIDTH for each group
//   weight, bias   (C,), or null                   μ, r   (N, C / WIDTH)
//
// Who computes what: a block has one group of one image, and goes over it several times. The first reads memory, and the
// others find the group in the caches, as it is small. A thread reads PACK neighbouring channels at once, so that a
// place has SLOTS = WIDTH / PACK packs, and stays with them all the way: it takes the slot t % SLOTS of the places
//
//   t / SLOTS,   t / SLOTS + STEP,   t / SLOTS + 2 STEP,   ...                      STEP = THREADS / SLOTS
//
// Neighbouring threads have neighbouring packs. The last THREADS % SLOTS threads have none, but take part in the sums.
//
//   grid   C / WIDTH groups, N images              block   THREADS
//
// Constants: STORED; WIDTH; THREADS; PACK: 4 floats or 8 narrow numbers, or less where WIDTH or the pointers do not allow
// it. (With 1024 threads, 33 to 64 registers are all the same: of such blocks one at a time fits.)
//
// registers[STORED=float WIDTH=2 THREADS=1024 PACK=2]: group_norm_forward 32, group_norm_backward 32
// registers[STORED=float WIDTH=3 THREADS=256 PACK=1]: group_norm_forward 32, group_norm_backward 32
// registers[STORED=float WIDTH=4 THREADS=256 PACK=4]: group_norm_forward 32, group_norm_backward 48
// registers[STORED=float WIDTH=64 THREADS=1024 PACK=4]: group_norm_forward 32, group_norm_backward 48
// registers[STORED=BFloat16 WIDTH=2 THREADS=1024 PACK=2]: group_norm_forward 32, group_norm_backward 32
// registers[STORED=BFloat16 WIDTH=8 THREADS=256 PACK=8]: group_norm_forward 48, group_norm_backward 64
// registers[STORED=Half WIDTH=64 THREADS=1024 PACK=8]: group_norm_forward 56, group_norm_backward 64
#include "common.cuh"
#include "stored.cuh"

constexpr int SLOTS = WIDTH / PACK, STEP = THREADS / SLOTS;

template <class Number>
using Pack = Packed<Number, PACK>;

// This thread's share of the work.
struct Part {
    int place, channel;  // the first place, and the first channel; where it has no share, a place beyond all
    size_t at, step;     // where that lies in the images, and how far it is to the next place

    __device__ Part(int P, int C) {
        const int slot = threadIdx.x % SLOTS, row = threadIdx.x / SLOTS;
        place = row < STEP ? row : P;
        channel = blockIdx.x * WIDTH + slot * PACK;
        at = ((size_t)blockIdx.y * P + place) * C + channel;
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
                   Stored* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, int P, int C, float eps) {
    const Part part(P, C);
    const float n = (float)P * WIDTH;

    float sum = 0;
    size_t at = part.at;
#pragma unroll 2
    for (int place = part.place; place < P; place += STEP, at += part.step) {
        const Pack<Stored> pack = load(x, at);
#pragma unroll
        for (int i = 0; i < PACK; ++i) sum += (float)pack.at[i];
    }
    const float mu = block_sum(sum) / n;

    float squares = 0;  // of x - μ, not of x: σ² = ⟨x²⟩ - μ² would lose what is small beside μ²
    at = part.at;
#pragma unroll 2
    for (int place = part.place; place < P; place += STEP, at += part.step) {
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
    for (int place = part.place; place < P; place += STEP, at += part.step) {
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

// The sum over the block's places, for each channel: threads with the same slot add up their packs in pairs, then the
// results in pairs, and so on. The result is that of the first SLOTS threads.
static inline __device__ Pack<float> sum_over_places(Pack<float> mine) {
    __shared__ Pack<float> of_thread[THREADS];
    of_thread[threadIdx.x] = mine;
    const int row = threadIdx.x / SLOTS;
#pragma unroll
    for (int rows = STEP; rows > 1; rows = (rows + 1) / 2) {
        const int half = (rows + 1) / 2;
        __syncthreads();  // what is added now has been written
        if (row + half < rows) {
#pragma unroll
            for (int i = 0; i < PACK; ++i) mine.at[i] += of_thread[threadIdx.x + half * SLOTS].at[i];
            of_thread[threadIdx.x] = mine;
        }
    }
    __syncthreads();  // all has been read before the next call writes
    return mine;
}

// ∂x, unless it is null, and what this image adds to ∂weight and ∂bias, unless `shares` is null.
//
//   shares   (N, 2, C): ∂weight, then ∂bias, for sum_rows to add up over the images
extern "C" __global__ void __launch_bounds__(THREADS)
group_norm_backward(const Stored* __restrict__ grad_y, const Stored* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ mean, const float* __restrict__ rstd, Stored* __restrict__ grad_x,
                    float* __restrict__ shares, int P, int C) {
    const Part part(P, C);
    const size_t group = (size_t)blockIdx.y * gridDim.x + blockIdx.x;
    const float n = (float)P * WIDTH, mu = mean[group], r = rstd[group];

    Pack<float> grad_weight = {}, grad_bias = {};
    size_t at = part.at;
#pragma unroll 2
    for (int place = part.place; place < P; place += STEP, at += part.step) {
        const Pack<Stored> g = load(grad_y, at), pack = load(x, at);
#pragma unroll
        for (int i = 0; i < PACK; ++i) {
            grad_weight.at[i] += (float)g.at[i] * (((float)pack.at[i] - mu) * r);
            grad_bias.at[i] += (float)g.at[i];
        }
    }
    if (grad_x) {
        float factor[PACK], sum = 0, along = 0;  // the sums of ĝ and ĝ ⊙ x̂ are those of ∂bias and ∂weight, each ⊙ weight
#pragma unroll
        for (int i = 0; i < PACK; ++i) {
            factor[i] = weight ? weight[part.channel + i] : 1.0f;
            sum += grad_bias.at[i] * factor[i];
            along += grad_weight.at[i] * factor[i];
        }
        sum = block_sum(sum) / n;
        along = block_sum(along) / n;
        at = part.at;
#pragma unroll 2
        for (int place = part.place; place < P; place += STEP, at += part.step) {
            Pack<Stored> g = load(grad_y, at);
            const Pack<Stored> pack = load(x, at);
#pragma unroll
            for (int i = 0; i < PACK; ++i)
                g.at[i] = r * ((float)g.at[i] * factor[i] - sum - ((float)pack.at[i] - mu) * r * along);
            store(grad_x, at, g);
        }
    }
    if (!shares) return;

    grad_weight = sum_over_places(grad_weight);
    grad_bias = sum_over_places(grad_bias);
    if (threadIdx.x >= SLOTS) return;
    float* share = shares + (size_t)blockIdx.y * 2 * C + part.channel;
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
        share[i] = grad_weight.at[i];
        share[C + i] = grad_bias.at[i];
    }
}
