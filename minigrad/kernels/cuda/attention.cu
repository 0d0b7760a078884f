// Attention for short sequences: scores stay in registers, and the backward pass recomputes them.
//
//   S = scale · q kᵀ + mask,   P = exp(S - lse),   lse_i = log Σ_j exp(S_ij)              y = P v
//
//   ∂v = Pᵀ ∂y,   ∂P = ∂y vᵀ,   ∂S = P ⊙ (∂P - D),   D_i = Σ_j ∂P_ij P_ij                 ∂mask = ∂S
//   ∂q = scale · ∂S k,   ∂k = scale · ∂Sᵀ q
//
//   q, ∂q (L, E)      k, ∂k (S, E)      v, ∂v (S, V)      y, ∂y (L, V)      mask, ∂S (L, S)      lse, D (L,)
//
// for every head of every entry of the batch: an image or a window. Block entry · heads + head has one head of one
// entry. The block loads the `other` rows into shared memory once; a warp processes ROWS `own` rows at a time:
//
//   kernel                   other rows, in shared memory      own rows of a warp      results of a warp
//   attention_forward        k, v                              q                       y, lse
//   attention_backward_q     k, v                              q, ∂y                   ∂q, D, ∂S
//   attention_backward_kv    scale · q, ∂y                     k, v                    ∂k, ∂v
//
// A warp computes two matrix products. First the scores: a lane has those of all own rows with the other rows lane,
// lane + 32, ... Then the weighted sums of other rows: a lane has the columns lane, lane + 32, ..., and reads from
// shared memory the weights that all lanes have written. Each operand that a lane loads is used ROWS times.
//
// q, k, v, y and their gradients are strided, as in the packed qkv of a linear layer: each has a pointer and three
// strides, to the next entry, head and row. Rows are aligned to 16 bytes. lse, D and ∂S are contiguous.
//
// Constants: QK_WIDTH (E) and V_WIDTH (V), multiples of 4; SLOTS, the scores of a row in a lane: L, S ≤ 32 · SLOTS.
// Grid: entries · heads. Block: (32, warps). Shared memory: see attention.py.
//
// warps[QK_WIDTH=32 V_WIDTH=32 SLOTS=2]: attention_forward 24, attention_backward_q 24, attention_backward_kv 24
// warps[QK_WIDTH=32 V_WIDTH=32 SLOTS=5]: attention_forward 16, attention_backward_q 16, attention_backward_kv 16
// warps[QK_WIDTH=64 V_WIDTH=64 SLOTS=3]: attention_forward 24, attention_backward_q 16, attention_backward_kv 16
// warps[QK_WIDTH=64 V_WIDTH=64 SLOTS=7]: attention_forward 16, attention_backward_q 8, attention_backward_kv 8
#include "common.cuh"

typedef float Stored;  // the element type of q, k, v, y and their gradients

constexpr int E = QK_WIDTH, V = V_WIDTH, ROWS = 4, WEIGHTS = 32 * SLOTS;
// Resident blocks of 8 warps per multiprocessor: limits registers.
constexpr int FORWARD_MIN_BLOCKS = SLOTS <= 3 && E + V <= 128 ? 3 : 2;
constexpr int BACKWARD_MIN_BLOCKS = SLOTS <= 2 && E + V <= 64 ? 3 : SLOTS <= 5 && E + V <= 128 ? 2 : 1;
#define INF __int_as_float(0x7f800000)

// The stride of rows in shared memory: an odd number of float4, so that eight lanes that read one column of eight rows
// have no bank conflict.
static inline __device__ constexpr int spaced(int width) { return width / 4 % 2 ? width : width + 4; }
static inline __device__ constexpr int rounded_up(int count) { return (count + 3) / 4 * 4; }

static inline __device__ float warp_max(float value) {
#pragma unroll
    for (int apart = 1; apart < WARP; apart *= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, apart));
    return value;
}

// Copies `count` rows, from row `first` of an array of `rows` rows, to shared memory, times a factor; rows past the end
// are 0. `threads` threads call it, this one with index `thread`.
template <int WIDTH>
static inline __device__ void stage(float* to, const Stored* from, long long step, int first, int count, int rows,
                                    float factor, int thread, int threads) {
    for (int i = thread; i < count * (WIDTH / 4); i += threads) {
        const int row = i / (WIDTH / 4), column = i % (WIDTH / 4) * 4;
        float4 x = make_float4(0, 0, 0, 0);
        if (first + row < rows) x = *reinterpret_cast<const float4*>(from + (first + row) * step + column);
        *reinterpret_cast<float4*>(to + row * spaced(WIDTH) + column) =
            make_float4(factor * x.x, factor * x.y, factor * x.z, factor * x.w);
    }
}

// The first product: products[r][t] = ⟨own_r, other_j⟩,  j = min(lane + 32 t, count - 1).
template <int WIDTH>
static inline __device__ void multiply(float (&products)[ROWS][SLOTS], const float* own, const float* other,
                                       int count) {
    const int lane = threadIdx.x;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int t = 0; t < SLOTS; ++t) products[r][t] = 0;
#pragma unroll 1
    for (int column = 0; column < WIDTH; column += 4) {
        float4 a[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) a[r] = *reinterpret_cast<const float4*>(own + r * spaced(WIDTH) + column);
#pragma unroll
        for (int t = 0; t < SLOTS; ++t) {
            const int j = min(lane + 32 * t, count - 1);
            const float4 b = *reinterpret_cast<const float4*>(other + j * spaced(WIDTH) + column);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                products[r][t] += a[r].x * b.x;
                products[r][t] += a[r].y * b.y;
                products[r][t] += a[r].z * b.z;
                products[r][t] += a[r].w * b.w;
            }
        }
    }
}

// The second product, stored to rows first, first + 1, ... of an array of `rows` rows:
//
//   to_rc = Σ_j weights_rj other_jc,   c = lane, lane + 32, ...
//
// weights (ROWS, WEIGHTS) and other (count, WIDTH) are in shared memory, padded with zeros to a multiple of 4 in j.
template <int WIDTH>
static inline __device__ void weighted_sum(Stored* to, long long step, int first, int rows, const float* weights,
                                     const float* other, int count) {
    constexpr int COLUMNS = (WIDTH + 31) / 32;
    const int lane = threadIdx.x;
    float sums[ROWS][COLUMNS] = {};
#pragma unroll 1
    for (int j = 0; j < count; j += 4) {
        float4 w[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) w[r] = *reinterpret_cast<const float4*>(weights + r * WEIGHTS + j);
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) {
            const int c = min(lane + 32 * i, WIDTH - 1);
            const float* x = other + j * spaced(WIDTH) + c;
            const float x0 = x[0], x1 = x[spaced(WIDTH)], x2 = x[2 * spaced(WIDTH)], x3 = x[3 * spaced(WIDTH)];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                sums[r][i] += w[r].x * x0;
                sums[r][i] += w[r].y * x1;
                sums[r][i] += w[r].z * x2;
                sums[r][i] += w[r].w * x3;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) {
            const int c = lane + 32 * i;
            if (first + r < rows && c < WIDTH) to[(first + r) * step + c] = sums[r][i];
        }
}

// The parameters of a strided array: pointer and strides. OF_BLOCK points to its rows of the block's entry and head.
#define ARRAY(type, name) type *name, long long name##_outer, long long name##_head, int name##_row
#define OF_BLOCK(name) (name + entry * name##_outer + head * name##_head)

// The parameters of the mask, which may be null: a broadcast axis has stride 0, and entry i uses mask i % masks.
// MASK_OF_BLOCK is the mask of the block's entry and head.
#define MASK ARRAY(const float, mask), long long mask_key, int masks
#define MASK_OF_BLOCK {mask ? mask + entry % masks * mask_outer + head * mask_head : mask, mask_row, mask_key}

struct Mask {
    const float* first;
    long long row, key;
    __device__ float at(int i, int j) const { return first ? first[i * row + j * key] : 0.0f; }
};

// y, and lse unless it is null. A query whose keys are all masked has weights 0, in the backward pass through lse = ∞.
extern "C" __global__ void __launch_bounds__(256, FORWARD_MIN_BLOCKS)
attention_forward(ARRAY(const Stored, q), ARRAY(const Stored, k), ARRAY(const Stored, v), MASK, ARRAY(Stored, y),
                  float* lse, int heads, int L, int S, float scale) {
    const int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y;
    const int entry = blockIdx.x / heads, head = blockIdx.x % heads;
    const Mask bias = MASK_OF_BLOCK;
    DYNAMIC_SHARED(float, shared);
    float* const keys = shared;                              // (S, E), padded with zeros to a multiple of 4 rows
    float* const values = keys + rounded_up(S) * spaced(E);  // (S, V), likewise
    float* const queries = values + rounded_up(S) * spaced(V) + warp * ROWS * (spaced(E) + WEIGHTS);  // (ROWS, E)
    float* const weights = queries + ROWS * spaced(E);       // (ROWS, WEIGHTS)

    stage<E>(keys, OF_BLOCK(k), k_row, 0, rounded_up(S), S, 1, warp * WARP + lane, warps * WARP);
    stage<V>(values, OF_BLOCK(v), v_row, 0, rounded_up(S), S, 1, warp * WARP + lane, warps * WARP);
    __syncthreads();  // every row is written before any warp reads

    for (int first = warp * ROWS; first < L; first += warps * ROWS) {
        stage<E>(queries, OF_BLOCK(q), q_row, first, ROWS, L, scale, lane, WARP);
        __syncwarp();  // every lane has written its rows and read the weights of the previous iteration

        float scores[ROWS][SLOTS];
        multiply<E>(scores, queries, keys, S);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int i = first + r;
            float largest = -INF, total = 0;
#pragma unroll
            for (int t = 0; t < SLOTS; ++t) {
                const int j = lane + 32 * t;
                scores[r][t] = i < L && j < S ? scores[r][t] + bias.at(i, j) : -INF;
                largest = fmaxf(largest, scores[r][t]);
            }
            largest = warp_max(largest);
            const float shift = largest == -INF ? 0.0f : largest;
#pragma unroll
            for (int t = 0; t < SLOTS; ++t) {
                scores[r][t] = expf(scores[r][t] - shift);
                total += scores[r][t];
            }
            total = warp_sum(total);
            const float inverse = total == 0 ? 0.0f : 1 / total;
#pragma unroll
            for (int t = 0; t < SLOTS; ++t) weights[r * WEIGHTS + lane + 32 * t] = scores[r][t] * inverse;
            if (lse && lane == 0 && i < L) lse[(long long)blockIdx.x * L + i] = total == 0 ? INF : shift + logf(total);
        }
        __syncwarp();  // every lane has written its weights and read the queries
        weighted_sum<V>(OF_BLOCK(y), y_row, first, L, weights, values, S);
    }
}

// ∂q, D and ∂S (entries, heads, L, S), each unless it is null.
extern "C" __global__ void __launch_bounds__(256, BACKWARD_MIN_BLOCKS)
attention_backward_q(ARRAY(const Stored, q), ARRAY(const Stored, k), ARRAY(const Stored, v), MASK,
                     ARRAY(const Stored, grad_y), ARRAY(Stored, grad_q), const float* lse, float* D, float* grad_scores,
                     int heads, int L, int S, float scale) {
    const int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y;
    const int entry = blockIdx.x / heads, head = blockIdx.x % heads;
    const Mask bias = MASK_OF_BLOCK;
    DYNAMIC_SHARED(float, shared);
    float* const keys = shared;
    float* const values = keys + rounded_up(S) * spaced(E);
    float* const queries = values + rounded_up(S) * spaced(V) + warp * ROWS * (spaced(E) + spaced(V) + WEIGHTS);
    float* const grads = queries + ROWS * spaced(E);
    float* const weights = grads + ROWS * spaced(V);

    stage<E>(keys, OF_BLOCK(k), k_row, 0, rounded_up(S), S, 1, warp * WARP + lane, warps * WARP);
    stage<V>(values, OF_BLOCK(v), v_row, 0, rounded_up(S), S, 1, warp * WARP + lane, warps * WARP);
    __syncthreads();  // every row is written before any warp reads

    for (int first = warp * ROWS; first < L; first += warps * ROWS) {
        stage<E>(queries, OF_BLOCK(q), q_row, first, ROWS, L, scale, lane, WARP);
        stage<V>(grads, OF_BLOCK(grad_y), grad_y_row, first, ROWS, L, 1, lane, WARP);
        __syncwarp();  // every lane has written its rows and read the weights of the previous iteration

        float probs[ROWS][SLOTS], grad_probs[ROWS][SLOTS];
        multiply<E>(probs, queries, keys, S);
        multiply<V>(grad_probs, grads, values, S);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int i = first + r;
            const long long row = (long long)blockIdx.x * L + i;
            float dot = 0;
#pragma unroll
            for (int t = 0; t < SLOTS; ++t) {
                const int j = lane + 32 * t;
                probs[r][t] = i < L && j < S ? expf(probs[r][t] + bias.at(i, j) - lse[row]) : 0.0f;
                dot += probs[r][t] * grad_probs[r][t];
            }
            dot = warp_sum(dot);
            if (D && lane == 0 && i < L) D[row] = dot;
#pragma unroll
            for (int t = 0; t < SLOTS; ++t) {
                const int j = lane + 32 * t;
                const float grad_score = probs[r][t] * (grad_probs[r][t] - dot);
                weights[r * WEIGHTS + j] = scale * grad_score;
                if (grad_scores && i < L && j < S) grad_scores[row * S + j] = grad_score;
            }
        }
        __syncwarp();  // every lane has written its weights and read the queries and ∂y
        if (grad_q) weighted_sum<E>(OF_BLOCK(grad_q), grad_q_row, first, L, weights, keys, S);
    }
}

// ∂k and ∂v, each unless it is null; ∂k needs D. Here own rows are keys, and other rows are queries.
extern "C" __global__ void __launch_bounds__(256, BACKWARD_MIN_BLOCKS)
attention_backward_kv(ARRAY(const Stored, q), ARRAY(const Stored, k), ARRAY(const Stored, v), MASK,
                      ARRAY(const Stored, grad_y), ARRAY(Stored, grad_k), ARRAY(Stored, grad_v), const float* lse,
                      const float* D, int heads, int L, int S, float scale) {
    const int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y;
    const int entry = blockIdx.x / heads, head = blockIdx.x % heads;
    const Mask bias = MASK_OF_BLOCK;
    DYNAMIC_SHARED(float, shared);
    float* const queries = shared;
    float* const grads = queries + rounded_up(L) * spaced(E);
    float* const keys = grads + rounded_up(L) * spaced(V) + warp * ROWS * (spaced(E) + spaced(V) + WEIGHTS);
    float* const values = keys + ROWS * spaced(E);
    float* const weights = values + ROWS * spaced(V);

    stage<E>(queries, OF_BLOCK(q), q_row, 0, rounded_up(L), L, scale, warp * WARP + lane, warps * WARP);
    stage<V>(grads, OF_BLOCK(grad_y), grad_y_row, 0, rounded_up(L), L, 1, warp * WARP + lane, warps * WARP);
    __syncthreads();  // every row is written before any warp reads

    for (int first = warp * ROWS; first < S; first += warps * ROWS) {
        stage<E>(keys, OF_BLOCK(k), k_row, first, ROWS, S, 1, lane, WARP);
        stage<V>(values, OF_BLOCK(v), v_row, first, ROWS, S, 1, lane, WARP);
        __syncwarp();  // every lane has written its rows and read the weights of the previous iteration

        float probs[ROWS][SLOTS], grad_probs[ROWS][SLOTS];
        multiply<E>(probs, keys, queries, L);
        multiply<V>(grad_probs, values, grads, L);
#pragma unroll
        for (int t = 0; t < SLOTS; ++t) {
            const int i = lane + 32 * t;
            const float lse_of_i = i < L ? lse[(long long)blockIdx.x * L + i] : INF;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const int j = first + r;
                probs[r][t] = i < L && j < S ? expf(probs[r][t] + bias.at(i, j) - lse_of_i) : 0.0f;
                weights[r * WEIGHTS + i] = probs[r][t];
            }
        }
        __syncwarp();  // every lane has written its weights and read the keys and values
        if (grad_v) weighted_sum<V>(OF_BLOCK(grad_v), grad_v_row, first, S, weights, grads, L);
        if (!grad_k) continue;

        __syncwarp();  // every lane has read P, which ∂S overwrites
#pragma unroll
        for (int t = 0; t < SLOTS; ++t) {
            const int i = lane + 32 * t;
            const float dot = i < L ? D[(long long)blockIdx.x * L + i] : 0.0f;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) weights[r * WEIGHTS + i] = probs[r][t] * (grad_probs[r][t] - dot);
        }
        __syncwarp();  // every lane has written ∂S
        weighted_sum<E>(OF_BLOCK(grad_k), grad_k_row, first, S, weights, queries, L);
    }
}
