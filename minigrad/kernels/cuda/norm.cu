// LayerNorm over the rows of a matrix, with or without a residual connection before it. Letters as in
// minigrad/ops/norm.py and residual.py:
//
//   x̂ = (x - μ) · r,   r = 1 / √(σ² + eps),   μ and σ² over the row              y = x̂ ⊙ weight + bias
//
//   ∂x = r · (ĝ - ⟨ĝ⟩ - x̂ ⟨ĝ ⊙ x̂⟩),   ĝ = ∂y ⊙ weight,   ⟨·⟩ the mean over the row
//   ∂weight = Σ ∂y ⊙ x̂,   ∂bias = Σ ∂y,   both over the rows
//
//   x, y, ∂x, ∂y   (rows, COLUMNS), Stored (float, BFloat16 or Half); all else is float
//   weight, bias   (COLUMNS,), or null                   μ, r   (rows,)
//
// With a branch b, s = x + m · b replaces x in these formulas (m: dropped.cuh). Both s and y are outputs, so the
// gradient of s has a second term, ∂s:
//
//   ∂s' = ∂s + r · (ĝ - ⟨ĝ⟩ - ŝ ⟨ĝ ⊙ ŝ⟩),   ∂x = ∂s',   ∂b = m · ∂s'            b, s, ∂s, ∂b   as x, or null
//
// The kernels are memory-bound, so a row is read once and kept in registers. The threads that share a row are a team:
//
//   COLUMNS ≤ 1024    a team is one warp, and a block has TEAMS = 8 rows at a time: block (32, 8)
//   more              a team is the block, which has one row at a time:             block (256, 1)
//
// Constants: STORED; COLUMNS; TEAM, the threads of a team; PACK, the elements of one load: 16 bytes (4 floats, 8 16-bit
// values) if PACK divides COLUMNS and the pointers are aligned, else 1. With PACK = 4, lane t of a warp holds
//
//   columns 4t, 4t + 1, 4t + 2, 4t + 3,    then 4 (t + 32), ...
#include "common.cuh"
#include "dropped.cuh"
#include "stored.cuh"

constexpr int TEAMS = 256 / TEAM;
constexpr int PER_THREAD = (COLUMNS + TEAM * PACK - 1) / (TEAM * PACK) * PACK;  // elements of a row in a thread
// Resident blocks per multiprocessor for which the backward kernel is compiled. Without this bound the compiler may aim
// at one block more, and spill registers to local memory.
constexpr int MIN_BLOCKS = PER_THREAD <= 8 ? 4 : PER_THREAD <= 24 && PACK > 1 ? 2 : 1;

// The column of this thread's j-th element, and whether the row has that column: only the last pack may lack columns.
static inline __device__ int column(int j) { return (threadIdx.x + j / PACK * TEAM) * PACK + j % PACK; }
static inline __device__ bool exists(int j) {
    return (j / PACK + 1) * TEAM * PACK <= COLUMNS || column(j) < COLUMNS;  // the first test folds to a constant
}

// This thread's part of a row. Missing columns are `otherwise`, and so is all of the part if `row` is null.
template <class T>
static inline __device__ void load(const T* row, float (&part)[PER_THREAD], float otherwise) {
#pragma unroll
    for (int j = 0; j < PER_THREAD; j += PACK) {
        if (row && exists(j)) {
            const Packed<T, PACK> pack = *reinterpret_cast<const Packed<T, PACK>*>(row + column(j));
#pragma unroll
            for (int i = 0; i < PACK; ++i) part[j + i] = pack.at[i];
        } else {
#pragma unroll
            for (int i = 0; i < PACK; ++i) part[j + i] = otherwise;
        }
    }
}

static inline __device__ void store(Stored* row, const float (&part)[PER_THREAD]) {
#pragma unroll
    for (int j = 0; j < PER_THREAD; j += PACK) {
        Packed<Stored, PACK> pack;
#pragma unroll
        for (int i = 0; i < PACK; ++i) pack.at[i] = part[j + i];
        if (exists(j)) *reinterpret_cast<Packed<Stored, PACK>*>(row + column(j)) = pack;
    }
}

// ⟨·⟩, the mean over the row: `sum` is the sum over this thread's part.
static inline __device__ float row_mean(float sum) {
    return (TEAM == WARP ? warp_sum(sum) : block_sum(sum)) / COLUMNS;
}

// y, and μ and r for the backward pass. With a branch also s, and then y, μ and r are those of s.
//
// Grid: ceil(rows / TEAMS).
extern "C" __global__ void __launch_bounds__(256)
layer_norm_forward(const Stored* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                   Stored* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, int rows, float eps,
                   const Stored* __restrict__ branch, Stored* __restrict__ s, const float* __restrict__ u, float p,
                   float rescale, int rows_per_image) {
    const int row = blockIdx.x * TEAMS + threadIdx.y;
    if (row >= rows) return;  // true for all threads of a team, so no barrier is left incomplete

    const size_t at = (size_t)row * COLUMNS;
    float part[PER_THREAD];
    load(x + at, part, 0);
    if (branch) {
        float b[PER_THREAD];
        load(branch + at, b, 0);
        const float m = Dropped{u, p, rescale, rows_per_image}.m(row);
#pragma unroll
        for (int j = 0; j < PER_THREAD; ++j) part[j] = Stored(part[j] + m * b[j]);  // cast: y normalises s as stored
        store(s + at, part);
    }
    float sum = 0;
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) sum += part[j];
    const float mu = row_mean(sum);

    float squares = 0;  // Σ (x - μ)², as ⟨x²⟩ - μ² cancels where σ² is small beside μ²
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) {
        part[j] -= mu;
        if (exists(j)) squares += part[j] * part[j];
    }
    const float r = rsqrtf(row_mean(squares) + eps);

    float factor[PER_THREAD], offset[PER_THREAD];
    load(weight, factor, 1);
    load(bias, offset, 0);
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) part[j] = part[j] * r * factor[j] + offset[j];
    store(y + at, part);
    if (threadIdx.x == 0) {
        mean[row] = mu;
        rstd[row] = r;
    }
}

// ∂x and ∂b, each unless it is null, and the block's partial sums of ∂weight and ∂bias, unless `partials` is null. With
// a branch, x is s; ∂s is null if s has no other use. Without stochastic depth ∂b equals ∂x, and is not written.
//
//   partials   (blocks, 2, COLUMNS): ∂weight, then ∂bias; sum_rows sums over the blocks
//
// Grid: any; a grid-stride loop over rows, with ∂weight and ∂bias accumulated in registers, keeps `partials` small.
// Shared memory: 2 COLUMNS floats, if there is more than one team.
extern "C" __global__ void __launch_bounds__(256, MIN_BLOCKS)
layer_norm_backward(const Stored* __restrict__ grad_y, const Stored* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ mean, const float* __restrict__ rstd, Stored* __restrict__ grad_x,
                    float* __restrict__ partials, int rows, const Stored* __restrict__ grad_s,
                    Stored* __restrict__ grad_branch, const float* __restrict__ u, float p, float rescale,
                    int rows_per_image) {
    float grad_weight[PER_THREAD] = {}, grad_bias[PER_THREAD] = {};
    for (int row = blockIdx.x * TEAMS + threadIdx.y; row < rows; row += gridDim.x * TEAMS) {
        const size_t at = (size_t)row * COLUMNS;
        float g[PER_THREAD], x_hat[PER_THREAD], factor[PER_THREAD];
        load(grad_y + at, g, 0);
        load(x + at, x_hat, 0);
        load(weight, factor, 1);
        const float mu = mean[row], r = rstd[row];
        float sum = 0, dot = 0;
#pragma unroll
        for (int j = 0; j < PER_THREAD; ++j) {
            x_hat[j] = (x_hat[j] - mu) * r;
            grad_weight[j] += g[j] * x_hat[j];
            grad_bias[j] += g[j];
            g[j] *= factor[j];  // ∂y becomes ĝ; in missing columns both are 0
            sum += g[j];
            dot += g[j] * x_hat[j];
        }
        if (!grad_x && !grad_branch) continue;
        sum = row_mean(sum);
        dot = row_mean(dot);
#pragma unroll
        for (int j = 0; j < PER_THREAD; ++j) g[j] = r * (g[j] - sum - x_hat[j] * dot);
        if (grad_s) {  // loaded late: before, it would cost registers
            float direct[PER_THREAD];
            load(grad_s + at, direct, 0);
#pragma unroll
            for (int j = 0; j < PER_THREAD; ++j) g[j] += direct[j];
        }
        if (grad_x) store(grad_x + at, g);
        if (grad_branch) {
            const float m = Dropped{u, p, rescale, rows_per_image}.m(row);
#pragma unroll
            for (int j = 0; j < PER_THREAD; ++j) g[j] *= m;
            store(grad_branch + at, g);
        }
    }
    if (!partials) return;

    // The teams of a block add their sums in turn, a fixed order; the last team writes the block's partial sums.
    DYNAMIC_SHARED(float, sums);  // (2, COLUMNS)
    for (int turn = 0; turn < TEAMS; ++turn) {
        if (threadIdx.y == turn) {
            float* result = turn == TEAMS - 1 ? partials + (size_t)blockIdx.x * 2 * COLUMNS : sums;
#pragma unroll
            for (int j = 0; j < PER_THREAD; ++j) {
                if (!exists(j)) continue;
                result[column(j)] = grad_weight[j] + (turn ? sums[column(j)] : 0.0f);
                result[COLUMNS + column(j)] = grad_bias[j] + (turn ? sums[COLUMNS + column(j)] : 0.0f);
            }
        }
        __syncthreads();  // this team has written before the next reads
    }
}

// Resident warps per multiprocessor, at least (tests/cuda/test_compile.py):
//
// warps[STORED=float COLUMNS=192 TEAM=32 PACK=4]: layer_norm_forward 48, layer_norm_backward 32
// warps[STORED=float COLUMNS=768 TEAM=32 PACK=4]: layer_norm_forward 24, layer_norm_backward 16
// warps[STORED=float COLUMNS=1023 TEAM=32 PACK=1]: layer_norm_forward 16, layer_norm_backward 8
// warps[STORED=float COLUMNS=8192 TEAM=256 PACK=4]: layer_norm_forward 16, layer_norm_backward 8
// warps[STORED=BFloat16 COLUMNS=96 TEAM=32 PACK=8]: layer_norm_forward 48, layer_norm_backward 32
// warps[STORED=BFloat16 COLUMNS=192 TEAM=32 PACK=8]: layer_norm_forward 48, layer_norm_backward 32
// warps[STORED=BFloat16 COLUMNS=384 TEAM=32 PACK=8]: layer_norm_forward 32, layer_norm_backward 16
// warps[STORED=BFloat16 COLUMNS=768 TEAM=32 PACK=8]: layer_norm_forward 24, layer_norm_backward 16
// warps[STORED=Half COLUMNS=1023 TEAM=32 PACK=1]: layer_norm_forward 16, layer_norm_backward 8
// warps[STORED=Half COLUMNS=8192 TEAM=256 PACK=8]: layer_norm_forward 16, layer_norm_backward 8
