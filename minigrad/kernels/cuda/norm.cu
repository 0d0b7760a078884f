// LayerNorm: each row of a matrix is brought to mean 0 and variance 1, then scaled and shifted by column. And the same with
// a residual connection before it, whose sum is written, and is what is normalised.
//
//   x̂ = (x - μ) · r,   r = 1 / √(σ² + eps),   μ and σ² over the row              y = x̂ ⊙ weight + bias
//
//   ∂x = r · (ĝ - ⟨ĝ⟩ - x̂ ⟨ĝ ⊙ x̂⟩),   ĝ = ∂y ⊙ weight,   ⟨·⟩ the mean over the row
//   ∂weight = Σ ∂y ⊙ x̂,   ∂bias = Σ ∂y,   both over the rows
//
//   x, y, ∂x, ∂y   (rows, COLUMNS), Stored; all else is float
//   weight, bias   (COLUMNS,), or null                   μ, r   (rows,)
//
// With a branch b, s = x + m · b (dropped.cuh has m) stands for x in all that is above, and its gradient has a second
// part: ∂s, from where s itself is used. Letters as in minigrad/ops/residual.py:
//
//   ∂s' = ∂s + r · (ĝ - ⟨ĝ⟩ - ŝ ⟨ĝ ⊙ ŝ⟩),   ∂x = ∂s',   ∂b = m · ∂s'            b, s, ∂s, ∂b   as x, or null
//
// Memory is what all this costs, so a row is read once and then kept in registers, spread over the threads of its team:
//
//   COLUMNS ≤ 1024    a team is one warp, and a block has TEAMS = 8 rows at a time: block (32, 8)
//   more              a team is the whole block, with one row at a time:            block (256, 1)
//
// Constants: STORED; COLUMNS; TEAM, the threads of a team; PACK, how many neighbours a thread reads at once: 4 floats or 8
// narrow numbers, which is 16 bytes, the most there is, where rows and pointers allow it, else 1. With PACK = 4, thread t
// of a warp holds
//
//   columns 4t, 4t + 1, 4t + 2, 4t + 3,    then 4 (t + 32), ...
//
// How many registers a thread takes; a multiprocessor has 65,536, and with them room for so many threads at a time:
//
// registers[STORED=float COLUMNS=192 TEAM=32 PACK=4]: layer_norm_forward 40, layer_norm_backward 64
// registers[STORED=float COLUMNS=768 TEAM=32 PACK=4]: layer_norm_forward 80, layer_norm_backward 128
// registers[STORED=float COLUMNS=1023 TEAM=32 PACK=1]: layer_norm_forward 128, layer_norm_backward 224
// registers[STORED=float COLUMNS=8192 TEAM=256 PACK=4]: layer_norm_forward 128, layer_norm_backward 240
// registers[STORED=BFloat16 COLUMNS=96 TEAM=32 PACK=8]: layer_norm_forward 40, layer_norm_backward 64
// registers[STORED=BFloat16 COLUMNS=192 TEAM=32 PACK=8]: layer_norm_forward 40, layer_norm_backward 64
// registers[STORED=BFloat16 COLUMNS=384 TEAM=32 PACK=8]: layer_norm_forward 64, layer_norm_backward 128
// registers[STORED=BFloat16 COLUMNS=768 TEAM=32 PACK=8]: layer_norm_forward 80, layer_norm_backward 128
// registers[STORED=Half COLUMNS=1023 TEAM=32 PACK=1]: layer_norm_forward 128, layer_norm_backward 224
// registers[STORED=Half COLUMNS=8192 TEAM=256 PACK=8]: layer_norm_forward 128, layer_norm_backward 232
#include "common.cuh"
#include "dropped.cuh"
#include "stored.cuh"

constexpr int TEAMS = 256 / TEAM;
constexpr int MINE = (COLUMNS + TEAM * PACK - 1) / (TEAM * PACK) * PACK;  // numbers of a row that one thread holds
// How many blocks a multiprocessor is to have room for, backward. The compiler left alone may make room for one more, and
// keep in memory what then finds no register.
constexpr int AT_ONCE = MINE <= 8 ? 4 : MINE <= 24 && PACK > 1 ? 2 : 1;

// Which column of the row is the j-th of this thread. Only in the team's last round can there be none.
static inline __device__ int column(int j) { return (threadIdx.x + j / PACK * TEAM) * PACK + j % PACK; }
static inline __device__ bool exists(int j) {
    return (j / PACK + 1) * TEAM * PACK <= COLUMNS || column(j) < COLUMNS;  // the first half is known to the compiler
}

// This thread's part of a row; `otherwise` where there is no column, and everywhere if there is no row.
template <class Number>
static inline __device__ void load(const Number* row, float (&part)[MINE], float otherwise) {
#pragma unroll
    for (int j = 0; j < MINE; j += PACK) {
        if (row && exists(j)) {
            const Packed<Number, PACK> pack = *reinterpret_cast<const Packed<Number, PACK>*>(row + column(j));
#pragma unroll
            for (int i = 0; i < PACK; ++i) part[j + i] = pack.at[i];
        } else {
#pragma unroll
            for (int i = 0; i < PACK; ++i) part[j + i] = otherwise;
        }
    }
}

static inline __device__ void store(Stored* row, const float (&part)[MINE]) {
#pragma unroll
    for (int j = 0; j < MINE; j += PACK) {
        Packed<Stored, PACK> pack;
#pragma unroll
        for (int i = 0; i < PACK; ++i) pack.at[i] = part[j + i];
        if (exists(j)) *reinterpret_cast<Packed<Stored, PACK>*>(row + column(j)) = pack;
    }
}

// ⟨·⟩: the mean over the row, of what the threads of a team have summed.
static inline __device__ float row_mean(float sum) {
    return (TEAM == WARP ? warp_sum(sum) : block_sum(sum)) / COLUMNS;
}

// y, and μ and r for the backward pass; if there is a branch, s too, and then they are those of s.
//
// Grid: rows / TEAMS, rounded up.
extern "C" __global__ void __launch_bounds__(256)
layer_norm_forward(const Stored* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                   Stored* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, int rows, float eps,
                   const Stored* __restrict__ branch, Stored* __restrict__ s, const float* __restrict__ u, float p,
                   float rescale, int together) {
    const int row = blockIdx.x * TEAMS + threadIdx.y;
    if (row >= rows) return;  // the whole team: nobody waits for it

    const size_t at = (size_t)row * COLUMNS;
    float part[MINE];
    load(x + at, part, 0);
    if (branch) {
        float b[MINE];
        load(branch + at, b, 0);
        const float m = Dropped{u, p, rescale, together}.m(row);
#pragma unroll
        for (int j = 0; j < MINE; ++j) part[j] = Stored(part[j] + m * b[j]);  // rounded: y is the norm of what s holds
        store(s + at, part);
    }
    float sum = 0;
#pragma unroll
    for (int j = 0; j < MINE; ++j) sum += part[j];
    const float mu = row_mean(sum);

    float squares = 0;  // of x - μ, not of x: σ² = ⟨x²⟩ - μ² would lose what is small beside μ²
#pragma unroll
    for (int j = 0; j < MINE; ++j) {
        part[j] -= mu;
        if (exists(j)) squares += part[j] * part[j];
    }
    const float r = rsqrtf(row_mean(squares) + eps);

    float factor[MINE], offset[MINE];
    load(weight, factor, 1);
    load(bias, offset, 0);
#pragma unroll
    for (int j = 0; j < MINE; ++j) part[j] = part[j] * r * factor[j] + offset[j];
    store(y + at, part);
    if (threadIdx.x == 0) {
        mean[row] = mu;
        rstd[row] = r;
    }
}

// ∂x and ∂b, unless they are null, and each block's share of ∂weight and ∂bias, unless `shares` is null. x is s, if there
// was a branch, and ∂s null if nothing used it. Where nothing is dropped, ∂b is ∂x and not written a second time.
//
//   shares   (blocks, 2, COLUMNS): ∂weight, then ∂bias, for sum_rows to add up over the blocks
//
// Any grid: the teams take rows in turn, and add up ∂weight and ∂bias of their rows in registers, so that there are few
// shares. Shared memory: 2 COLUMNS floats, if there is more than one team.
extern "C" __global__ void __launch_bounds__(256, AT_ONCE)
layer_norm_backward(const Stored* __restrict__ grad_y, const Stored* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ mean, const float* __restrict__ rstd, Stored* __restrict__ grad_x,
                    float* __restrict__ shares, int rows, const Stored* __restrict__ grad_s,
                    Stored* __restrict__ grad_branch, const float* __restrict__ u, float p, float rescale,
                    int together) {
    float grad_weight[MINE] = {}, grad_bias[MINE] = {};
    for (int row = blockIdx.x * TEAMS + threadIdx.y; row < rows; row += gridDim.x * TEAMS) {
        const size_t at = (size_t)row * COLUMNS;
        float g[MINE], x_hat[MINE], factor[MINE];
        load(grad_y + at, g, 0);
        load(x + at, x_hat, 0);
        load(weight, factor, 1);
        const float mu = mean[row], r = rstd[row];
        float sum = 0, along = 0;
#pragma unroll
        for (int j = 0; j < MINE; ++j) {
            x_hat[j] = (x_hat[j] - mu) * r;
            grad_weight[j] += g[j] * x_hat[j];
            grad_bias[j] += g[j];
            g[j] *= factor[j];  // ∂y becomes ĝ; where there is no column, both are 0
            sum += g[j];
            along += g[j] * x_hat[j];
        }
        if (!grad_x && !grad_branch) continue;
        sum = row_mean(sum);
        along = row_mean(along);
#pragma unroll
        for (int j = 0; j < MINE; ++j) g[j] = r * (g[j] - sum - x_hat[j] * along);
        if (grad_s) {  // read late: no register was free for it
            float direct[MINE];
            load(grad_s + at, direct, 0);
#pragma unroll
            for (int j = 0; j < MINE; ++j) g[j] += direct[j];
        }
        if (grad_x) store(grad_x + at, g);
        if (grad_branch) {
            const float m = Dropped{u, p, rescale, together}.m(row);
#pragma unroll
            for (int j = 0; j < MINE; ++j) g[j] *= m;
            store(grad_branch + at, g);
        }
    }
    if (!shares) return;

    // The teams of a block add to each other's sums, one after the other; the last has the block's share.
    DYNAMIC_SHARED(float, sums);  // (2, COLUMNS)
    for (int turn = 0; turn < TEAMS; ++turn) {
        if (threadIdx.y == turn) {
            float* result = turn == TEAMS - 1 ? shares + (size_t)blockIdx.x * 2 * COLUMNS : sums;
#pragma unroll
            for (int j = 0; j < MINE; ++j) {
                if (!exists(j)) continue;
                result[column(j)] = grad_weight[j] + (turn ? sums[column(j)] : 0.0f);
                result[COLUMNS + column(j)] = grad_bias[j] + (turn ? sums[COLUMNS + column(j)] : 0.0f);
            }
        }
        __syncthreads();  // what this team wrote, the next one reads
    }
}
