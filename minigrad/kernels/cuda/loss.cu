// Cross-entropy of each row of logits. Letters as in minigrad/ops/loss.py:
//
//   lossₙ = -Σ_c Q_nc · ln p_nc,     p = softmax(x),     Q_nc = w_c · ((1 - s) · q_nc + s / C)
//   ∂x_nc = ∂lossₙ · (p_nc · Σ_c Q_nc - Q_nc),           ∂q_nc = -∂lossₙ · (1 - s) · w_c · ln p_nc
//
//   x, ∂x       (rows, COLUMNS), C = COLUMNS classes
//   index       (rows,): q_nc = 1 if c = index_n, else 0; all Q_nc = 0 if index_n = `ignored`;  or null, with targets
//   q, ∂q       (rows, COLUMNS): class probabilities
//   weight      (COLUMNS,): w, or null
//   loss        (rows,)
//
// Mapping: a team of TEAM threads has a row, reads it once and keeps it in registers; thread t has the columns t,
// t + TEAM, t + 2 TEAM, ...  For COLUMNS ≤ 1024 a team is one warp, and a block has TEAMS = 8 rows; for more, a team is
// a block of 512 threads. Backward recomputes p from x, so forward does not save p.
//
// Constants: COLUMNS and TEAM.
//
// warps[COLUMNS=10 TEAM=32]: cross_entropy_forward 64, cross_entropy_backward 64, cross_entropy_total 64
// warps[COLUMNS=1000 TEAM=32]: cross_entropy_forward 16, cross_entropy_backward 16, cross_entropy_total 64
// warps[COLUMNS=21841 TEAM=512]: cross_entropy_forward 16, cross_entropy_backward 16, cross_entropy_total 64
#include "common.cuh"

typedef float Stored;  // the element type of logits and their gradients; arithmetic is in float

constexpr int TEAMS = TEAM == WARP ? 8 : 1, THREADS = TEAM * TEAMS;
constexpr int PER_THREAD = (COLUMNS + TEAM - 1) / TEAM;  // elements of a row in a thread

static inline __device__ float infinity() { return __int_as_float(0x7f800000); }
static inline __device__ float nan_value() { return __int_as_float(0x7fffffff); }

// The column of this thread's j-th element, and whether the row has that column.
static inline __device__ int column(int j) { return threadIdx.x + j * TEAM; }
static inline __device__ bool exists(int j) { return column(j) < COLUMNS; }

// Sum and maximum over a row, from those over each thread's part, returned to every thread of the team.
static inline __device__ float row_sum(float sum) { return TEAM == WARP ? warp_sum(sum) : block_sum(sum); }

static inline __device__ float warp_max(float value) {
#pragma unroll
    for (int apart = 1; apart < WARP; apart *= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, apart));
    return value;
}

static inline __device__ float row_max(float value) {
    value = warp_max(value);
    if (TEAM == WARP) return value;
    __shared__ float per_warp[TEAM / WARP];
    const int lane = threadIdx.x % WARP;
    if (lane == 0) per_warp[threadIdx.x / WARP] = value;
    __syncthreads();  // every warp has written before any warp reads; row_max is called once, so nothing is overwritten
    return warp_max(per_warp[lane % (TEAM / WARP)]);
}

// This thread's part of ln p = x - m - ln Σ exp(x - m). With m the maximum of the row, no exponential overflows.
static inline __device__ void log_softmax(const Stored* row, float (&part)[PER_THREAD]) {
    float largest = -infinity();
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) {
        part[j] = exists(j) ? (float)row[column(j)] : -infinity();
        largest = fmaxf(largest, part[j]);
    }
    largest = row_max(largest);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) {
        part[j] -= largest;
        sum += expf(part[j]);  // 0 in missing columns
    }
    const float log_sum = logf(row_sum(sum));
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) part[j] -= log_sum;
}

// The target of a row, and the parameters of Q.
struct Targets {
    const Stored* q;        // the class probabilities of the row, or null
    long long index;        // the target class, if q is null
    bool ignored;           // the row is ignored: Q = 0
    const float* weight;    // w, or null
    float kept, smoothing;  // 1 - s, and s / C

    __device__ float w(int c) const { return weight ? weight[c] : 1.0f; }
    __device__ float Q(int c) const {
        const float target = q ? (float)q[c] : c == index ? 1.0f : 0.0f;
        return ignored ? 0.0f : w(c) * (kept * target + smoothing);
    }
};

static inline __device__ Targets targets_of(int row, const long long* index, const Stored* q, const float* weight,
                                            long long ignored, float kept, float smoothing) {
    const long long named = index ? index[row] : -1;
    return {q ? q + (size_t)row * COLUMNS : nullptr, named, index && named == ignored, weight, kept, smoothing};
}

// loss, and unless it is null `row_weight` (rows,), whose sum is the divisor of the mean: w of the target class (0 for
// an ignored row), or 1 if targets are probabilities.  Grid: ceil(rows / TEAMS).  Block: (TEAM, TEAMS).
extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy_forward(const Stored* __restrict__ x, const long long* __restrict__ index, const Stored* __restrict__ q,
                      const float* __restrict__ weight, float* __restrict__ loss, float* __restrict__ row_weight,
                      int rows, long long ignored, float kept, float smoothing) {
    const int row = blockIdx.x * TEAMS + threadIdx.y;
    if (row >= rows) return;  // true for all threads of a team, so no barrier is left incomplete
    float log_p[PER_THREAD];
    log_softmax(x + (size_t)row * COLUMNS, log_p);
    const Targets targets = targets_of(row, index, q, weight, ignored, kept, smoothing);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) {
        const float Q = exists(j) ? targets.Q(column(j)) : 0.0f;
        if (Q != 0) sum -= Q * log_p[j];  // Q = 0 and ln p = -∞ give 0, not NaN
    }
    sum = row_sum(sum);
    if (threadIdx.x > 0) return;
    loss[row] = sum;
    const bool in_range = !targets.ignored && 0 <= targets.index && targets.index < COLUMNS;
    if (row_weight) row_weight[row] = q ? 1.0f : in_range ? targets.w(targets.index) : 0.0f;
}

// total = scale · Σ loss, scale = 1 / Σ row_weight, or 1 if `row_weight` is null. If Σ row_weight = 0, total is NaN.
// Grid: 1.  Block: 1024. Thread t sums the rows t, t + 1024, ...; then the block sums over its threads.
extern "C" __global__ void __launch_bounds__(1024)
cross_entropy_total(const float* __restrict__ loss, const float* __restrict__ row_weight, float* __restrict__ total,
                    float* __restrict__ scale, int rows) {
    float sum = 0, divisor = 0;
    for (int row = threadIdx.x; row < rows; row += blockDim.x) {
        sum += loss[row];
        if (row_weight) divisor += row_weight[row];
    }
    sum = block_sum(sum);
    divisor = row_weight ? block_sum(divisor) : 1.0f;
    if (threadIdx.x > 0) return;
    *scale = divisor == 0 ? nan_value() : 1 / divisor;
    *total = sum * *scale;
}

// ∂x and ∂q, each unless it is null, from ∂lossₙ = grad_loss[n · step] · scale. After a sum or a mean grad_loss has one
// element and step is 0; without reduction step is 1, and `scale` is null for 1.  Grid and block: as forward.
extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy_backward(const float* __restrict__ grad_loss, int step, const float* __restrict__ scale,
                       const Stored* __restrict__ x, const long long* __restrict__ index, const Stored* __restrict__ q,
                       const float* __restrict__ weight, Stored* __restrict__ grad_x, Stored* __restrict__ grad_q,
                       int rows, long long ignored, float kept, float smoothing) {
    const int row = blockIdx.x * TEAMS + threadIdx.y;
    if (row >= rows) return;
    float log_p[PER_THREAD];
    log_softmax(x + (size_t)row * COLUMNS, log_p);
    const Targets targets = targets_of(row, index, q, weight, ignored, kept, smoothing);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j)
        if (exists(j)) sum += targets.Q(column(j));
    sum = row_sum(sum);
    const float g = targets.ignored ? 0.0f : grad_loss[(size_t)row * step] * (scale ? *scale : 1.0f);
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) {
        if (!exists(j)) continue;
        const int c = column(j);
        const size_t at = (size_t)row * COLUMNS + c;
        if (grad_x) grad_x[at] = g * (expf(log_p[j]) * sum - targets.Q(c));
        if (grad_q) grad_q[at] = -g * kept * targets.w(c) * log_p[j];
    }
}
