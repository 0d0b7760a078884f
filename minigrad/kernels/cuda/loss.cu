// Cross-entropy: of each row of logits, -ln of the probability of its class. Letters as in minigrad/ops/loss.py:
//
//   lossₙ = -Σ_c Q_nc · ln p_nc,     p = softmax(x),     Q_nc = w_c · ((1 - s) · q_nc + s / C)
//   ∂x_nc = ∂lossₙ · (p_nc · Σ_c Q_nc - Q_nc),           ∂q_nc = -∂lossₙ · (1 - s) · w_c · ln p_nc
//
//   x, ∂x       (rows, COLUMNS), C = COLUMNS classes
//   index       (rows,): q_nc is 1 where c is the index, and all Q_nc are 0 where it is `ignored`;  or null:
//   q, ∂q       (rows, COLUMNS): the probabilities wanted
//   weight      (COLUMNS,): w, or null
//   loss        (rows,)
//
// Who computes what: a team of threads has a row, which it reads once and keeps in registers; thread t has the columns
// t, t + TEAM, t + 2 TEAM, ...  With 1024 columns or fewer a team is one warp, and a block has TEAMS = 8 rows; with more
// it is the whole block of 512 threads. Backward reads the row again and finds p anew: nothing of it is kept between.
//
// Constants: COLUMNS and TEAM.
//
// registers[COLUMNS=10 TEAM=32]: cross_entropy_forward 32, cross_entropy_backward 32, cross_entropy_total 24
// registers[COLUMNS=1000 TEAM=32]: cross_entropy_forward 128, cross_entropy_backward 128, cross_entropy_total 24
// registers[COLUMNS=21841 TEAM=512]: cross_entropy_forward 128, cross_entropy_backward 128, cross_entropy_total 24
#include "common.cuh"

typedef float Stored;  // what logits and their gradients are kept in; arithmetic is in float

constexpr int TEAMS = TEAM == WARP ? 8 : 1, THREADS = TEAM * TEAMS;
constexpr int MINE = (COLUMNS + TEAM - 1) / TEAM;  // numbers of a row that one thread has

static inline __device__ float infinity() { return __int_as_float(0x7f800000); }
static inline __device__ float not_a_number() { return __int_as_float(0x7fffffff); }

// Which column is the j-th of this thread. Past the end of the row there is none.
static inline __device__ int column(int j) { return threadIdx.x + j * TEAM; }
static inline __device__ bool exists(int j) { return column(j) < COLUMNS; }

// Sum and maximum over a row, of what the threads of its team have found; the same in all of them.
static inline __device__ float row_sum(float sum) { return TEAM == WARP ? warp_sum(sum) : block_sum(sum); }

static inline __device__ float warp_max(float value) {
#pragma unroll
    for (int apart = 1; apart < WARP; apart *= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, apart));
    return value;
}

static inline __device__ float row_max(float value) {
    value = warp_max(value);
    if (TEAM == WARP) return value;
    __shared__ float of_warp[TEAM / WARP];
    const int lane = threadIdx.x % WARP;
    if (lane == 0) of_warp[threadIdx.x / WARP] = value;
    __syncthreads();  // all warps have written before any reads; nobody writes again, as a kernel comes here once
    return warp_max(of_warp[lane % (TEAM / WARP)]);
}

// This thread's part of ln p = x - m - ln Σ exp(x - m), with m the maximum, so that no exponential overflows.
static inline __device__ void log_softmax(const Stored* row, float (&part)[MINE]) {
    float largest = -infinity();
#pragma unroll
    for (int j = 0; j < MINE; ++j) {
        part[j] = exists(j) ? (float)row[column(j)] : -infinity();
        largest = fmaxf(largest, part[j]);
    }
    largest = row_max(largest);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < MINE; ++j) {
        part[j] -= largest;
        sum += expf(part[j]);  // 0 where there is no column
    }
    const float log_sum = logf(row_sum(sum));
#pragma unroll
    for (int j = 0; j < MINE; ++j) part[j] -= log_sum;
}

// The targets of a row, and the numbers that make Q of them.
struct Targets {
    const Stored* q;        // the row's probabilities, or null:
    long long index;        // then the class it names
    bool ignored;           // whether the row does not count
    const float* weight;    // w, or null
    float kept, smoothing;  // 1 - s, and s / C

    __device__ float w(int c) const { return weight ? weight[c] : 1.0f; }
    __device__ float Q(int c) const {
        const float wanted = q ? (float)q[c] : c == index ? 1.0f : 0.0f;
        return ignored ? 0.0f : w(c) * (kept * wanted + smoothing);
    }
};

static inline __device__ Targets targets_of(int row, const long long* index, const Stored* q, const float* weight,
                                            long long ignored, float kept, float smoothing) {
    const long long named = index ? index[row] : -1;
    return {q ? q + (size_t)row * COLUMNS : nullptr, named, index && named == ignored, weight, kept, smoothing};
}

// loss, and unless it is null `share` (rows,): what each row adds to the number by which the mean divides, w of the
// class that it names, or 1 if targets are probabilities.  Grid: rows / TEAMS, rounded up.  Block: (TEAM, TEAMS).
extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy_forward(const Stored* __restrict__ x, const long long* __restrict__ index, const Stored* __restrict__ q,
                      const float* __restrict__ weight, float* __restrict__ loss, float* __restrict__ share, int rows,
                      long long ignored, float kept, float smoothing) {
    const int row = blockIdx.x * TEAMS + threadIdx.y;
    if (row >= rows) return;  // the whole team: nobody waits for it
    float log_p[MINE];
    log_softmax(x + (size_t)row * COLUMNS, log_p);
    const Targets targets = targets_of(row, index, q, weight, ignored, kept, smoothing);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < MINE; ++j) {
        const float Q = exists(j) ? targets.Q(column(j)) : 0.0f;
        if (Q != 0) sum -= Q * log_p[j];  // a class ruled out, ln p = -∞, may be one that is not wanted
    }
    sum = row_sum(sum);
    if (threadIdx.x > 0) return;
    loss[row] = sum;
    const bool named = !targets.ignored && 0 <= targets.index && targets.index < COLUMNS;
    if (share) share[row] = q ? 1.0f : named ? targets.w(targets.index) : 0.0f;
}

// total = scale · Σ loss, and scale = 1 / Σ share, or 1 without `share`. Where no row counts, the mean is not a number.
// Grid: 1.  Block: 1024. Thread t adds up the rows t, t + 1024, ...; and then the block, what its threads have.
extern "C" __global__ void __launch_bounds__(1024)
cross_entropy_total(const float* __restrict__ loss, const float* __restrict__ share, float* __restrict__ total,
                    float* __restrict__ scale, int rows) {
    float sum = 0, shares = 0;
    for (int row = threadIdx.x; row < rows; row += blockDim.x) {
        sum += loss[row];
        if (share) shares += share[row];
    }
    sum = block_sum(sum);
    shares = share ? block_sum(shares) : 1.0f;
    if (threadIdx.x > 0) return;
    *scale = shares == 0 ? not_a_number() : 1 / shares;
    *total = sum * *scale;
}

// ∂x and ∂q, unless they are null, from ∂lossₙ = grad_loss[n · step] · scale: after a sum or a mean there is one ∂loss
// for all rows, and step is 0; otherwise step is 1, and `scale` null, for 1.  Grid and block: as forward.
extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy_backward(const float* __restrict__ grad_loss, int step, const float* __restrict__ scale,
                       const Stored* __restrict__ x, const long long* __restrict__ index, const Stored* __restrict__ q,
                       const float* __restrict__ weight, Stored* __restrict__ grad_x, Stored* __restrict__ grad_q,
                       int rows, long long ignored, float kept, float smoothing) {
    const int row = blockIdx.x * TEAMS + threadIdx.y;
    if (row >= rows) return;
    float log_p[MINE];
    log_softmax(x + (size_t)row * COLUMNS, log_p);
    const Targets targets = targets_of(row, index, q, weight, ignored, kept, smoothing);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < MINE; ++j)
        if (exists(j)) sum += targets.Q(column(j));
    sum = row_sum(sum);
    const float g = targets.ignored ? 0.0f : grad_loss[(size_t)row * step] * (scale ? *scale : 1.0f);
#pragma unroll
    for (int j = 0; j < MINE; ++j) {
        if (!exists(j)) continue;
        const int c = column(j);
        const size_t at = (size_t)row * COLUMNS + c;
        if (grad_x) grad_x[at] = g * (expf(log_p[j]) * sum - targets.Q(c));
        if (grad_q) grad_q[at] = -g * kept * targets.w(c) * log_p[j];
    }
}
