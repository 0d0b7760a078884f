// Attention for short sequences in half precision (float16, bfloat16), on tensor cores (mma.cuh). As in attention.cu:
//
//   S = scale · q kᵀ + B,   P = exp(S - lse),   lse_i = log Σ_j exp(S_ij)               y = P v
//
//   ∂v = Pᵀ ∂y,   ∂P = ∂y vᵀ,   ∂S = P ⊙ (∂P - D),   D_i = Σ_j ∂P_ij P_ij = ⟨∂y_i, y_i⟩          ∂B = Σ ∂S
//   ∂q = scale · ∂S k,   ∂k = scale · ∂Sᵀ q
//
//   q, ∂q (L, E)    k, ∂k (S, E)    v, ∂v (S, V)    y, ∂y (L, V)    all Stored        B (L, S)    lse, D (L,)    float
//
// for each of `heads` heads of each of `entries` entries of the batch: images, or windows. B, the bias, depends on the
// head, not on the entry. A block has one head of one entry; backward it may have one head of several entries in turn,
// to accumulate ∂B. The block loads all rows into shared memory, and a warp processes 16 own rows at a time:
//
//                                own rows    other rows    results
//   attention_mma_forward     q           k, v          y, lse
//   attention_mma_backward    q, ∂y       k, v          ∂q, ∂S
//                         then   k, v        q, ∂y         ∂k, ∂v
//
// A warp iterates over the other rows in steps of 16: it has 16 x 16 scores in registers, casts the weights to Stored,
// and multiplies the weights by the 16 other rows. Forward this needs an online softmax (Milakov and Gimelshein 2018,
// arXiv:1805.02867): the warp keeps the running maximum m of the scores, Σ exp(S - m) and Σ exp(S - m) v. When the
// maximum grows to m', it multiplies both sums by exp(m - m').
//
// Swin: with WINDOW = M, an entry is one of the M x M windows of a feature map of `down` x `right` tokens, rolled by
// -shift_down and -shift_right. The kernels neither roll nor copy: the rows of q, k, v, y are the tokens of the
// unrolled map, and token_i is the index in that map of token i of window (a, b). Tokens of different regions are
// adjacent only because of the roll, so CROSS_REGION is added to their score:
//
//   r = a M + i / M,   c = b M + i % M                                 row and column in the rolled map
//   token_i = ((r + shift_down) mod down) · right + (c + shift_right) mod right
//   region_i = 3 · part(r) + part(c)     part: 0 before the last window; in the last window 1, or 2 if wrapped around
//
// Constants: STORED; QK_WIDTH (E) and V_WIDTH (V), multiples of 16; WINDOW, or 0 for none. Grid: heads · entries;
// backward heads · chunks, for any number of chunks of entries. Block: (32, warps). Shared memory: attention_mma.py.
//
// warps[STORED=BFloat16 QK_WIDTH=64 V_WIDTH=64 WINDOW=0]: attention_mma_forward 16, attention_mma_backward 16
// warps[STORED=Half QK_WIDTH=64 V_WIDTH=64 WINDOW=0]: attention_mma_forward 16, attention_mma_backward 16
// warps[STORED=BFloat16 QK_WIDTH=32 V_WIDTH=32 WINDOW=0]: attention_mma_forward 24, attention_mma_backward 16
// warps[STORED=BFloat16 QK_WIDTH=32 V_WIDTH=32 WINDOW=4]: attention_mma_forward 24, attention_mma_backward 16
// warps[STORED=BFloat16 QK_WIDTH=32 V_WIDTH=32 WINDOW=7]: attention_mma_forward 24, attention_mma_backward 16
// warps[STORED=Half QK_WIDTH=32 V_WIDTH=32 WINDOW=12]: attention_mma_forward 24, attention_mma_backward 16
// warps[STORED=BFloat16 QK_WIDTH=128 V_WIDTH=128 WINDOW=0]: attention_mma_forward 16, attention_mma_backward 8
#include "common.cuh"
#include "mma.cuh"

constexpr int E = QK_WIDTH, V = V_WIDTH;
constexpr bool WINDOWS = WINDOW > 0;
constexpr int M = WINDOWS ? WINDOW : 1;
constexpr float CROSS_REGION = -100;
// Resident blocks of 8 warps per multiprocessor: limits registers.
constexpr int FORWARD_MIN_BLOCKS = E + V < 128 ? 3 : 2, BACKWARD_MIN_BLOCKS = E + V <= 128 ? 2 : 1;
#define INF __int_as_float(0x7f800000)

static inline __device__ constexpr int rounded_up(int count) { return (count + 15) / 16 * 16; }

// The feature map, and the index and region of each token of one window, in shared memory.
struct Map {
    int down, right, shift_down, shift_right;
    int *tokens, *regions;

    __device__ int windows() const { return WINDOWS ? down / M * (right / M) : 1; }

    static __device__ int part(int at, int length, int shift) {
        return shift ? (at >= length - M) + (at >= length - shift) : 0;
    }
    // Computes the tokens and regions of a window. `threads` threads call it, this one with index `thread`.
    __device__ void locate(int window, int thread, int threads) const {
        for (int i = thread; i < M * M; i += threads) {
            const int r = window / (right / M) * M + i / M, c = window % (right / M) * M + i % M;
            tokens[i] = (r + shift_down) % down * right + (c + shift_right) % right;
            regions[i] = 3 * part(r, down, shift_down) + part(c, right, shift_right);
        }
    }
    __device__ bool apart(int i, int j) const { return WINDOWS && regions[i] != regions[j]; }
};

// The parameters of a strided array: pointer and strides. OF_BLOCK are its rows of the block's entry and head.
#define ARRAY(type, name) type *name, long long name##_outer, long long name##_head, int name##_row
#define OF_BLOCK(name) {name + entry / map.windows() * name##_outer + head * name##_head, name##_row, map.tokens}

template <class T>
struct Rows {
    T* first;
    int step;
    const int* tokens;

    __device__ T* operator[](int i) const { return first + (long long)(WINDOWS ? tokens[i] : i) * step; }
};

// The term added to scaled scores: B unless it is null, and CROSS_REGION; -∞ for padded rows and columns.
struct Bias {
    const float* first;
    int L, S;
    Map map;

    __device__ float at(int i, int j) const {
        if (i >= L || j >= S) return -INF;
        return (first ? first[i * S + j] : 0) + (map.apart(i, j) ? CROSS_REGION : 0);
    }
};

// The sum and the maximum over the four lanes that have a row of C.
static inline __device__ float row_sum(float value) {
    value += __shfl_xor_sync(0xffffffff, value, 1);
    return value + __shfl_xor_sync(0xffffffff, value, 2);
}
static inline __device__ float row_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffff, value, 2));
}

// The row and column in a warp's (16, 16) scores of element e of tile n of this lane.
static inline __device__ int row_of(int e) { return threadIdx.x / 4 + e / 2 * 8; }
static inline __device__ int column_of(int n, int e) { return 8 * n + threadIdx.x % 4 * 2 + e % 2; }

// Copies `count` rows to shared memory, padded with zeros to a multiple of 16. `threads` threads call it, this one with
// index `thread`.
template <int WIDTH>
static inline __device__ void stage(Stored* to, const Rows<const Stored>& from, int count, int thread, int threads) {
#pragma unroll 1
    for (int i = thread; i < rounded_up(count) * (WIDTH / 8); i += threads) {
        const int row = i / (WIDTH / 8), column = i % (WIDTH / 8) * 8;
        uint4 pack = make_uint4(0, 0, 0, 0);  // 8 elements
        if (row < count) pack = *reinterpret_cast<const uint4*>(from[row] + column);
        *reinterpret_cast<uint4*>(to + row * spaced(WIDTH) + column) = pack;
    }
}

// Two C = own otherᵀ:   own, other (16, WIDTH), in shared memory
template <int WIDTH>
static inline __device__ void products(Tile (&c)[2], const Stored* own, const Stored* other) {
#pragma unroll
    for (int e = 0; e < 8; ++e) c[e / 4][e % 4] = 0;
#pragma unroll
    for (int part = 0; part < WIDTH / 16; ++part) {
        Fragment a;
        load<WIDTH>(a, own, part);
        multiply_by_rows<WIDTH>(c, a, other, part);
    }
}

// Stores c, times a factor for each row, to those of the rows first to first + 15 that are below `count`.
template <int WIDTH>
static inline __device__ void store(const Rows<Stored>& to, int count, int first, const Tile (&c)[WIDTH / 8],
                                    const float (&factor)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first + row_of(2 * half);
        if (row >= count) continue;
        Stored* const elements = to[row] + column_of(0, 0);
#pragma unroll
        for (int n = 0; n < WIDTH / 8; ++n)
            *reinterpret_cast<unsigned*>(elements + 8 * n) =
                pair_of(factor[half] * c[n][2 * half], factor[half] * c[n][2 * half + 1]);
    }
}

// y, and lse unless it is null. A query whose keys are all masked has y = 0 and lse = ∞, so P = 0 in the backward pass.
extern "C" __global__ void __launch_bounds__(256, FORWARD_MIN_BLOCKS)
attention_mma_forward(ARRAY(const Stored, q), ARRAY(const Stored, k), ARRAY(const Stored, v), ARRAY(Stored, y),
                         const float* bias, float* lse, int heads, int L, int S, float scale, int down,
                         int right, int shift_down, int shift_right) {
    const int thread = threadIdx.y * WARP + threadIdx.x, threads = blockDim.y * WARP;
    const int entry = blockIdx.x / heads, head = blockIdx.x % heads;
    DYNAMIC_SHARED(Stored, queries);                           // (L, E), padded with zeros to a multiple of 16 rows
    Stored* const keys = queries + rounded_up(L) * spaced(E);  // (S, E), likewise
    Stored* const values = keys + rounded_up(S) * spaced(E);   // (S, V), likewise
    int* const tokens = reinterpret_cast<int*>(values + rounded_up(S) * spaced(V));
    const Map map = {down, right, shift_down, shift_right, tokens, tokens + L};
    const Bias B = {bias ? bias + head * L * S : bias, L, S, map};

    if (WINDOWS) map.locate(entry % map.windows(), thread, threads);
    if (WINDOWS) __syncthreads();  // the tokens of the window are known
    stage<E>(queries, OF_BLOCK(q), L, thread, threads);
    stage<E>(keys, OF_BLOCK(k), S, thread, threads);
    stage<V>(values, OF_BLOCK(v), S, thread, threads);
    __syncthreads();  // every row is written

    for (int i = threadIdx.y * 16; i < L; i += blockDim.y * 16) {
        float largest[2] = {-INF, -INF}, total[2] = {}, factor[2];
        Tile sums[V / 8] = {};
#pragma unroll 1
        for (int j = 0; j < S; j += 16) {
            Tile scores[2];
            products<E>(scores, queries + i * spaced(E), keys + j * spaced(E));
            float before[2] = {largest[0], largest[1]};
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    scores[n][e] = scale * scores[n][e] + B.at(i + row_of(e), j + column_of(n, e));
                    largest[e / 2] = fmaxf(largest[e / 2], scores[n][e]);
                }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                largest[half] = row_max(largest[half]);
                factor[half] = largest[half] == -INF ? 1.0f : __expf(before[half] - largest[half]);
                total[half] *= factor[half];
#pragma unroll
                for (int n = 0; n < V / 8; ++n) {
                    sums[n][2 * half] *= factor[half];
                    sums[n][2 * half + 1] *= factor[half];
                }
            }
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float shift = largest[e / 2] == -INF ? 0.0f : largest[e / 2];
                    scores[n][e] = __expf(scores[n][e] - shift);
                    total[e / 2] += scores[n][e];
                }
            Fragment weights;
            as_factor(weights, scores);
            multiply_by_columns<V>(sums, weights, values + j * spaced(V));
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = i + row_of(2 * half);
            total[half] = row_sum(total[half]);
            factor[half] = total[half] == 0 ? 0.0f : 1 / total[half];
            if (lse && threadIdx.x % 4 == 0 && row < L)
                lse[((long long)entry * heads + head) * L + row] =
                    total[half] == 0 ? INF : largest[half] + __logf(total[half]);
        }
        store<V>(OF_BLOCK(y), L, i, sums, factor);
    }
}

// ∂q, ∂k and ∂v, each unless it is null, and the block's partial sums of ∂B, unless `partials` (chunks, heads, L, S) is
// null.
extern "C" __global__ void __launch_bounds__(256, BACKWARD_MIN_BLOCKS)
attention_mma_backward(ARRAY(const Stored, q), ARRAY(const Stored, k), ARRAY(const Stored, v), ARRAY(const Stored, y),
                          ARRAY(const Stored, grad_y), ARRAY(Stored, grad_q), ARRAY(Stored, grad_k),
                          ARRAY(Stored, grad_v), const float* bias, const float* lse, float* partials, int entries,
                          int heads, int L, int S, float scale, int down, int right, int shift_down, int shift_right) {
    const int thread = threadIdx.y * WARP + threadIdx.x, threads = blockDim.y * WARP;
    const int head = blockIdx.x % heads;
    DYNAMIC_SHARED(Stored, queries);                           // queries, keys, values as in the forward pass
    Stored* const keys = queries + rounded_up(L) * spaced(E);
    Stored* const values = keys + rounded_up(S) * spaced(E);
    Stored* const grads = values + rounded_up(S) * spaced(V);  // ∂y, (L, V)
    float* const D = reinterpret_cast<float*>(grads + rounded_up(L) * spaced(V));  // (L,), padded to a multiple of 16
    float* const lse_of = D + rounded_up(L);                                       // likewise
    int* const tokens = reinterpret_cast<int*>(lse_of + rounded_up(L));
    float* const sums = reinterpret_cast<float*>(tokens + (WINDOWS ? 2 * L : 0));  // ∂B
    const int row_of_sums = rounded_up(S) + 8;  // the stride of rows of `sums`: four rows have no bank conflict
    const Map map = {down, right, shift_down, shift_right, tokens, tokens + L};
    const Bias B = {bias ? bias + head * L * S : bias, L, S, map};
    if (partials)
        for (int i = thread; i < rounded_up(L) * row_of_sums; i += threads) sums[i] = 0;

    for (int entry = blockIdx.x / heads; entry < entries; entry += gridDim.x / heads) {
        __syncthreads();  // every warp has finished the previous entry
        if (WINDOWS) map.locate(entry % map.windows(), thread, threads);
        if (WINDOWS) __syncthreads();  // the tokens of the window are known
        stage<E>(queries, OF_BLOCK(q), L, thread, threads);
        stage<E>(keys, OF_BLOCK(k), S, thread, threads);
        stage<V>(values, OF_BLOCK(v), S, thread, threads);
        stage<V>(grads, OF_BLOCK(grad_y), L, thread, threads);
        __syncthreads();  // every row is written, with the zeros

        const Rows<const Stored> y_rows = OF_BLOCK(y);
        for (int i = thread / 4; i < rounded_up(L); i += threads / 4) {  // D: four lanes for each row
            float sum = 0;
            for (int column = thread % 4 * 8; i < L && column < V; column += 32) {
                const auto y_i = *reinterpret_cast<const Packed<Stored, 8>*>(y_rows[i] + column);
                const auto grad_i = *reinterpret_cast<const Packed<Stored, 8>*>(grads + i * spaced(V) + column);
#pragma unroll
                for (int n = 0; n < 8; ++n) sum += (float)y_i.at[n] * (float)grad_i.at[n];
            }
            sum = row_sum(sum);
            if (thread % 4 == 0) {
                D[i] = sum;
                lse_of[i] = i < L ? lse[((long long)entry * heads + head) * L + i] : INF;
            }
        }
        __syncthreads();  // every warp needs D and lse

        for (int i = threadIdx.y * 16; i < L && (grad_q || partials); i += blockDim.y * 16) {
            const float own_lse[2] = {lse_of[i + row_of(0)], lse_of[i + row_of(2)]};
            const float own_D[2] = {D[i + row_of(0)], D[i + row_of(2)]};
            Tile sums_q[E / 8] = {};
#pragma unroll 1
            for (int j = 0; j < S; j += 16) {
                Tile scores[2], grad_probs[2];
                products<E>(scores, queries + i * spaced(E), keys + j * spaced(E));
                products<V>(grad_probs, grads + i * spaced(V), values + j * spaced(V));
#pragma unroll
                for (int n = 0; n < 2; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int row = i + row_of(e), column = j + column_of(n, e);
                        const float p = __expf(scale * scores[n][e] + B.at(row, column) - own_lse[e / 2]);
                        scores[n][e] = p * (grad_probs[n][e] - own_D[e / 2]);
                        if (partials) sums[row * row_of_sums + column] += scores[n][e];  // no race: always this thread
                    }
                Fragment grad_scores;
                as_factor(grad_scores, scores);
                multiply_by_columns<E>(sums_q, grad_scores, keys + j * spaced(E));
            }
            if (grad_q) store<E>(OF_BLOCK(grad_q), L, i, sums_q, {scale, scale});
        }
        for (int j = threadIdx.y * 16; j < S && (grad_k || grad_v); j += blockDim.y * 16) {
            Tile sums_k[E / 8] = {}, sums_v[V / 8] = {};
#pragma unroll 1
            for (int i = 0; i < L; i += 16) {
                Tile scores[2], grad_probs[2];  // Sᵀ and ∂Pᵀ: keys by queries
                products<E>(scores, keys + j * spaced(E), queries + i * spaced(E));
                products<V>(grad_probs, values + j * spaced(V), grads + i * spaced(V));
#pragma unroll
                for (int n = 0; n < 2; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int row = j + row_of(e), column = i + column_of(n, e);
                        const float p = __expf(scale * scores[n][e] + B.at(column, row) - lse_of[column]);
                        grad_probs[n][e] = p * (grad_probs[n][e] - D[column]);
                        scores[n][e] = p;
                    }
                Fragment weights, grad_scores;
                as_factor(weights, scores);
                as_factor(grad_scores, grad_probs);
                multiply_by_columns<V>(sums_v, weights, grads + i * spaced(V));
                multiply_by_columns<E>(sums_k, grad_scores, queries + i * spaced(E));
            }
            if (grad_k) store<E>(OF_BLOCK(grad_k), S, j, sums_k, {scale, scale});
            if (grad_v) store<V>(OF_BLOCK(grad_v), S, j, sums_v, {1, 1});
        }
    }
    if (!partials) return;

    __syncthreads();  // every warp has added to ∂B
#pragma unroll 1  // unrolled, this loop would need more registers than those above
    for (int i = thread; i < L * S; i += threads)
        partials[(long long)blockIdx.x * L * S + i] = sums[i / S * row_of_sums + i % S];
}
