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
// head, not on the entry. A block has one head of `blockDim.z` entries, as one small window has too few warps; backward
// it may iterate over further entries, to accumulate ∂B. All rows of an entry are copied to shared memory.
//
// Forward, a warp processes 16 queries at a time: it iterates over the keys in steps of 16, has 16 x 16 scores in
// registers, casts the weights to Stored, and multiplies the weights by the 16 values. This needs an online softmax
// (Milakov and Gimelshein 2018, arXiv:1805.02867): the warp keeps the running maximum m of the scores, Σ exp(S - m) and
// Σ exp(S - m) v. When the maximum grows to m', it multiplies both sums by exp(m - m').
//
// Backward, lse is known, so P needs no maximum. Each of the five products is computed once. The keys are processed in
// chunks, as P and ∂S of all keys may not fit in shared memory; for each chunk
//
//   1. a warp has q, ∂y and the sums of ∂q of 16 queries in registers (TILES times, for long sequences). For 16 keys at
//      a time it computes S = q kᵀ and ∂P = ∂y vᵀ, then P and ∂S, stores both to shared memory, and adds ∂S k to ∂q.
//   2. a warp computes 16 rows of ∂v = Pᵀ ∂y or of ∂k = ∂Sᵀ q: a product of two matrices in shared memory.
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
// Constants: STORED; QK_WIDTH (E) and V_WIDTH (V), multiples of 16; WINDOW, or 0 for none; BIASED, 1 if there is a
// bias, else 0 or undefined; TILES, 1 if undefined. Grid: heads · entries / blockDim.z; backward heads · groups, for any
// number of groups of blockDim.z entries. Block: (32, warps, entries), where blockDim.z divides `entries`, and is 1
// without windows. Shared memory: attention_mma.py.
//
// warps[STORED=BFloat16 QK_WIDTH=64 V_WIDTH=64 WINDOW=0 BIASED=0]: attention_mma_forward 16, attention_mma_backward 16
// warps[STORED=Half QK_WIDTH=64 V_WIDTH=64 WINDOW=0 BIASED=0]: attention_mma_forward 16, attention_mma_backward 16
// warps[STORED=BFloat16 QK_WIDTH=32 V_WIDTH=32 WINDOW=0 BIASED=0]: attention_mma_forward 24, attention_mma_backward 16
// warps[STORED=BFloat16 QK_WIDTH=32 V_WIDTH=32 WINDOW=4 BIASED=1]: attention_mma_forward 24, attention_mma_backward 16
// warps[STORED=BFloat16 QK_WIDTH=32 V_WIDTH=32 WINDOW=7 BIASED=1]: attention_mma_forward 24, attention_mma_backward 16
// warps[STORED=Half QK_WIDTH=32 V_WIDTH=32 WINDOW=12 BIASED=1]: attention_mma_forward 24, attention_mma_backward 16
// warps[STORED=BFloat16 QK_WIDTH=64 V_WIDTH=64 WINDOW=0 TILES=3]: attention_mma_forward 16, attention_mma_backward 8
// warps[STORED=BFloat16 QK_WIDTH=128 V_WIDTH=128 WINDOW=0 BIASED=0]: attention_mma_forward 8, attention_mma_backward 8
// warps[STORED=BFloat16 QK_WIDTH=64 V_WIDTH=64 WINDOW=0 BIASED=1]: attention_mma_forward 16, attention_mma_backward 8
#include "common.cuh"
#include "mma.cuh"

#ifndef BIASED
#define BIASED 0
#endif
#ifndef TILES
#define TILES 1
#endif
constexpr int E = QK_WIDTH, V = V_WIDTH;
constexpr bool WINDOWS = WINDOW > 0, HAS_BIAS = BIASED > 0;
constexpr int M = WINDOWS ? WINDOW : 1;
constexpr float CROSS_REGION = -100;
// Registers are limited by the threads of a block, forward also by the resident blocks per multiprocessor.
constexpr int FORWARD_MIN_BLOCKS = E + V < 128 ? 3 : E + V == 128 ? 2 : 1;
constexpr int BACKWARD_THREADS = E + V <= (HAS_BIAS ? 64 : 128) && TILES == 1 ? 512 : 256;
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
    // Computes the tokens and regions of a window. `thread` is the index of this thread in the `threads` that call.
    __device__ void locate(int window, int thread, int threads) const {
        for (int i = thread; i < M * M; i += threads) {
            const int r = window / (right / M) * M + i / M, c = window % (right / M) * M + i % M;
            tokens[i] = (r + shift_down) % down * right + (c + shift_right) % right;
            regions[i] = 3 * part(r, down, shift_down) + part(c, right, shift_right);
        }
    }
    __device__ bool apart(int i, int j) const { return WINDOWS && regions[i] != regions[j]; }
};

// ARRAY: the parameters of a strided array, pointer and strides. OF_BLOCK: the rows of the block's entry and head.
#define ARRAY(type, name) type *name, long long name##_outer, long long name##_head, int name##_row
#define OF_BLOCK(name) {name + entry / map.windows() * name##_outer + head * name##_head, name##_row, map.tokens}

template <class T>
struct Rows {
    T* first;
    int step;
    const int* tokens;

    __device__ T* operator[](int i) const { return first + (long long)(WINDOWS ? tokens[i] : i) * step; }
};

// The term added to scaled scores: B if BIASED, and CROSS_REGION; -∞ for padded rows and columns.
struct Bias {
    const float* first;
    int L, S;
    Map map;

    __device__ float at(int i, int j) const {
        if (i >= L || j >= S) return -INF;
        return (HAS_BIAS ? first[i * S + j] : 0) + (map.apart(i, j) ? CROSS_REGION : 0);
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

// Element e of tile n of this lane has this row and column in the warp's (16, 16) scores.
static inline __device__ int row_of(int e) { return threadIdx.x / 4 + e / 2 * 8; }
static inline __device__ int column_of(int n, int e) { return 8 * n + threadIdx.x % 4 * 2 + e % 2; }

// Starts to copy `count` rows to shared memory, padded with zeros to a multiple of 16. `thread` is the index of this
// thread in the `threads` that call.
template <int WIDTH>
static inline __device__ void stage(Stored* to, const Rows<const Stored>& from, int count, int thread, int threads) {
#pragma unroll 1
    for (int i = thread; i < rounded_up(count) * (WIDTH / 8); i += threads) {
        const int row = i / (WIDTH / 8), column = i % (WIDTH / 8) * 8;
        copy_async(to + row * spaced(WIDTH) + column, row < count ? from[row] + column : from.first, row >= count);
    }
}

// Stores c, times a factor for each row, to those of the rows first to first + 15 that are below `count`. Two lanes
// exchange pairs, so that the four lanes of a row store 32 adjacent bytes at once: a sector of the memory.
template <int WIDTH>
static inline __device__ void store(const Rows<Stored>& to, int count, int first, const Tile (&c)[WIDTH / 8],
                                    const float (&factor)[2]) {
    const int odd = threadIdx.x % 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first + row_of(2 * half);
        Stored* const elements = row < count ? to[row] + 8 * odd + threadIdx.x % 4 / 2 * 4 : nullptr;
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n += 2) {
            unsigned pairs[2];
#pragma unroll
            for (int i = 0; i < 2; ++i)
                pairs[i] = pair_of(factor[half] * c[n + i][2 * half], factor[half] * c[n + i][2 * half + 1]);
            const unsigned other = __shfl_xor_sync(0xffffffff, odd ? pairs[0] : pairs[1], 1);
            const uint2 four = odd ? make_uint2(other, pairs[1]) : make_uint2(pairs[0], other);
            if (elements) *reinterpret_cast<uint2*>(elements + 8 * n) = four;
        }
    }
}

// Stores factor · Aᵀ rows to the rows first to first + 15:   A (L, 16), `step` elements apart, and rows (L, WIDTH), in
// shared memory
template <int WIDTH>
static inline __device__ void store_product(const Rows<Stored>& to, int count, int first, float factor, const Stored* A,
                                            int step, const Stored* rows, int L) {
    Tile sums[WIDTH / 8] = {};
#pragma unroll 1
    for (int i = 0; i < L; i += 16) {
        Fragment a;
        load_transposed(a, A + i * step, step);
        multiply_by_columns<WIDTH>(sums, a, rows + i * spaced(WIDTH));
    }
    store<WIDTH>(to, count, first, sums, {factor, factor});
}

// A lane's elements of 16 rows of y: of two rows, every fourth pack.
typedef Packed<Stored, 8> Share[2][(V + 31) / 32];

static inline __device__ void load(Share& y, const Rows<const Stored>& rows, int first, int count) {
#pragma unroll
    for (int i = 0; i < 2 * ((V + 31) / 32); ++i) {
        const int row = first + row_of(i % 2 * 2), column = i / 2 * 32 + threadIdx.x % 4 * 8;
        if (row < count && column < V)
            y[i % 2][i / 2] = *reinterpret_cast<const Packed<Stored, 8>*>(rows[row] + column);
    }
}

// The lane's part of ⟨∂y_i, y_i⟩ of its two rows; ∂y in shared memory
static inline __device__ void multiply(float (&D)[2], const Share& y, const Stored* grads) {
#pragma unroll
    for (int i = 0; i < 2 * ((V + 31) / 32); ++i) {
        const int column = i / 2 * 32 + threadIdx.x % 4 * 8;
        if (column >= V) continue;
        const auto grad = *reinterpret_cast<const Packed<Stored, 8>*>(grads + row_of(i % 2 * 2) * spaced(V) + column);
#pragma unroll
        for (int e = 0; e < 8; ++e) D[i % 2] += (float)y[i % 2][i / 2].at[e] * (float)grad.at[e];
    }
}

// y, and lse unless it is null. A query whose keys are all masked has y = 0 and lse = ∞, so P = 0 in the backward pass.
extern "C" __global__ void __launch_bounds__(256, FORWARD_MIN_BLOCKS)
attention_mma_forward(ARRAY(const Stored, q), ARRAY(const Stored, k), ARRAY(const Stored, v), ARRAY(Stored, y),
                      const float* bias, float* lse, int entry_size, int heads, int L, int S, float scale, int down,
                      int right, int shift_down, int shift_right) {
    const int thread = threadIdx.y * WARP + threadIdx.x, threads = blockDim.y * WARP;  // of this entry
    const int own = WINDOWS ? threadIdx.z : 0, together = WINDOWS ? blockDim.z : 1;  // entries of the block
    const int entry = blockIdx.x / heads * together + own, head = blockIdx.x % heads;
    DYNAMIC_SHARED(Stored, shared);                            // `entry_size` elements for each entry
    Stored* const queries = shared + own * entry_size;         // (L, E), padded with zeros to a multiple of 16 rows
    Stored* const keys = queries + rounded_up(L) * spaced(E);  // (S, E), likewise
    Stored* const values = keys + rounded_up(S) * spaced(E);   // (S, V), likewise
    int* const tokens = reinterpret_cast<int*>(values + rounded_up(S) * spaced(V));
    const Map map = {down, right, shift_down, shift_right, tokens, tokens + L};
    const Bias B = {bias + head * L * S, L, S, map};

    if (WINDOWS) map.locate(entry % map.windows(), thread, threads);
    if (WINDOWS) __syncthreads();  // the tokens of the window are known
    stage<E>(queries, OF_BLOCK(q), L, thread, threads);
    stage<E>(keys, OF_BLOCK(k), S, thread, threads);
    stage<V>(values, OF_BLOCK(v), S, thread, threads);
    wait_for_copies();
    __syncthreads();  // every row is written

    for (int i = threadIdx.y * 16; i < L; i += blockDim.y * 16) {
        float largest[2] = {-INF, -INF}, total[2] = {}, factor[2];
        Tile sums[V / 8] = {};
        Fragment own_q[E / 16];
        load<E>(own_q, queries + i * spaced(E));
#pragma unroll 1
        for (int j = 0; j < S; j += 16) {
            Tile scores[2];
            multiply_by_rows<E>(scores, own_q, keys + j * spaced(E));
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

// ∂q, ∂k and ∂v, each unless it is null, and the block's partial sums of ∂B, unless `partials` (groups, heads, L, S) is
// null. `chunk` is a multiple of 16 keys.
extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 1)
attention_mma_backward(ARRAY(const Stored, q), ARRAY(const Stored, k), ARRAY(const Stored, v), ARRAY(const Stored, y),
                       ARRAY(const Stored, grad_y), ARRAY(Stored, grad_q), ARRAY(Stored, grad_k),
                       ARRAY(Stored, grad_v), const float* bias, const float* lse, float* partials, int entries,
                       int chunk, int entry_size, int heads, int L, int S, float scale, int down, int right,
                       int shift_down, int shift_right) {
    const int thread = threadIdx.y * WARP + threadIdx.x, threads = blockDim.y * WARP;  // of this entry
    const int own = WINDOWS ? threadIdx.z : 0, together = WINDOWS ? blockDim.z : 1;  // entries of the block
    DYNAMIC_SHARED(Stored, shared);
    Stored* const queries = shared + own * entry_size;  // queries, keys, values as in the forward pass
    Stored* const keys = queries + rounded_up(L) * spaced(E);
    Stored* const values = keys + rounded_up(S) * spaced(E);
    Stored* const grads = values + rounded_up(S) * spaced(V);  // ∂y, (L, V)
    // P and ∂S, (L, chunk), likewise: 16 columns of P, the same columns of ∂S, the next 16 of P, ...
    Stored* const P = grads + rounded_up(L) * spaced(V);
    const int row_of_P = spaced(2 * chunk);
    float* const sums = reinterpret_cast<float*>(P + rounded_up(L) * row_of_P);  // ∂B
    const int row_of_sums = rounded_up(S) + 8;  // the stride of rows of `sums`: four rows have no bank conflict
    int* const tokens = reinterpret_cast<int*>(sums + (partials ? L * row_of_sums : 0));
    const Map map = {down, right, shift_down, shift_right, tokens, tokens + L};
    if (partials)
        for (int i = thread; i < L * row_of_sums; i += threads) sums[i] = 0;

    // (The head is always the same, but the compiler must not keep `head * stride` of each array in registers.)
    for (int index = blockIdx.x; index < heads * entries / together; index += gridDim.x) {
        const int entry = index / heads * together + own, head = index % heads;
        const Bias B = {bias + head * L * S, L, S, map};
        __syncthreads();  // every warp has finished the previous entry
        if (WINDOWS) map.locate(entry % map.windows(), thread, threads);
        if (WINDOWS) __syncthreads();  // the tokens of the window are known
        stage<E>(queries, OF_BLOCK(q), L, thread, threads);
        stage<E>(keys, OF_BLOCK(k), S, thread, threads);
        stage<V>(values, OF_BLOCK(v), S, thread, threads);
        stage<V>(grads, OF_BLOCK(grad_y), L, thread, threads);

        Share own_y[TILES] = {};  // loaded while the copies are in flight
        float own_lse[TILES][2], D[TILES][2] = {};
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const int i = (threadIdx.y + tile * blockDim.y) * 16;
            load(own_y[tile], OF_BLOCK(y), i, L);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = i + row_of(2 * half);
                own_lse[tile][half] = row < L ? lse[((long long)entry * heads + head) * L + row] : INF;
            }
        }
        wait_for_copies();
        __syncthreads();  // every row is written, with the zeros

#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const int i = (threadIdx.y + tile * blockDim.y) * 16;
            if (i >= L) break;
            multiply(D[tile], own_y[tile], grads + i * spaced(V));
#pragma unroll
            for (int half = 0; half < 2; ++half) D[tile][half] = row_sum(D[tile][half]);
        }
        Tile sums_q[TILES][E / 8] = {};
        for (int first = 0; first < S; first += chunk) {
            const int end = min(S, first + chunk);
            if (first) __syncthreads();  // every warp has read P and ∂S of the previous chunk
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                const int i = (threadIdx.y + tile * blockDim.y) * 16;
                if (i >= L) break;
                Fragment own_q[E / 16], own_grad[V / 16];
                load<E>(own_q, queries + i * spaced(E));
                load<V>(own_grad, grads + i * spaced(V));
                const Stored* key = keys + first * spaced(E);
                Stored* tile_of_P = P + i * row_of_P;
#pragma unroll 1
                for (int j = first; j < end; j += 16, key += 16 * spaced(E), tile_of_P += 32) {
                    Tile scores[2], grad_scores[2];
                    Fragment weights;
                    multiply_by_rows<E>(scores, own_q, key);
#pragma unroll
                    for (int n = 0; n < 2; ++n)
#pragma unroll
                        for (int e = 0; e < 4; ++e)
                            scores[n][e] = __expf(scale * scores[n][e] + B.at(i + row_of(e), j + column_of(n, e)) -
                                                  own_lse[tile][e / 2]);  // P
                    as_factor(weights, scores);
                    store(weights, tile_of_P, row_of_P);
                    multiply_by_rows<V>(grad_scores, own_grad, values + j * spaced(V));  // ∂P
#pragma unroll
                    for (int n = 0; n < 2; ++n)
#pragma unroll
                        for (int e = 0; e < 4; ++e)
                            grad_scores[n][e] = scores[n][e] * (grad_scores[n][e] - D[tile][e / 2]);
                    if (HAS_BIAS && partials)
#pragma unroll
                        for (int n = 0; n < 2; ++n)
#pragma unroll
                            for (int e = 0; e < 4; e += 2) {  // no race: only this thread adds to these two
                                const int row = i + row_of(e), column = j + column_of(n, e);
                                float2& sum = *reinterpret_cast<float2*>(sums + row * row_of_sums + column);
                                const float* const two = grad_scores[n] + e;
                                if (row < L) sum = make_float2(sum.x + two[0], sum.y + two[1]);
                            }
                    as_factor(weights, grad_scores);
                    store(weights, tile_of_P + 16, row_of_P);
                    if (grad_q) multiply_by_columns<E>(sums_q[tile], weights, key);
                }
            }
            __syncthreads();  // P and ∂S of the chunk are written, and ∂B

            for (unsigned task = threadIdx.y; task < rounded_up(end - first) / 8; task += blockDim.y) {
                const int j = task / 2 * 16;
                if (task % 2 == 0 && grad_v)
                    store_product<V>(OF_BLOCK(grad_v), S, first + j, 1, P + 2 * j, row_of_P, grads, L);
                if (task % 2 == 1 && grad_k)
                    store_product<E>(OF_BLOCK(grad_k), S, first + j, scale, P + 2 * j + 16, row_of_P, queries, L);
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
            if (grad_q)
                store<E>(OF_BLOCK(grad_q), L, (threadIdx.y + tile * blockDim.y) * 16, sums_q[tile], {scale, scale});
    }
    if (!partials) return;

    // Every warp has added to ∂B before the last barrier.
    for (int i = own * threads + thread; i < L * S; i += together * threads) {
        float sum = 0;
        for (int other = 0; other < together; ++other)
            sum += sums[(other - own) * (entry_size / 2) + i / S * row_of_sums + i % S];
        partials[(long long)blockIdx.x * L * S + i] = sum;
    }
}
