// Depthwise convolution of stride 1. Letters as in minigrad/ops/conv.py:
//
//     y[n,i,j,c]       = bias[c] + Σ_k,l  weight[c,k,l] · x[n,h,w,c]   h = i + k - top, w = j + l - left, zero padding
//     ∂x[n,h,w,c]      = Σ_k,l    weight[c,k,l] · ∂y[n,i,j,c]          over the i, j that read this h and w
//     ∂weight[c,k,l]   = Σ_n,i,j  ∂y[n,i,j,c] · x[n,h,w,c]
//     ∂bias[c]         = Σ_n,i,j  ∂y[n,i,j,c]
//
// With k' = KH-1-k and top' = KH-1-top (likewise for l), i = h + k' - top': ∂x is the same convolution of ∂y, with the
// weight flipped along both axes.
//
// Shapes: x (N, H, W, C); y (N, OH, OW, C); weight (C, KH, KW); bias (C,).
//
// Mapping: the outputs of a channel are partitioned into tiles of ROWS x RUN pixels; a thread computes one tile at a
// time. The 32 lanes of a warp have 32 adjacent channels of one tile: loads are coalesced and branches do not diverge.
// The warps of a block have vertically adjacent tiles, whose inputs overlap and hit L1. Consecutive blocks have other
// channels of the same tiles, so blocks that run at the same time read contiguous memory. A thread loads each row of x
// once, RUN + KW - 1 pixels, into registers, and uses the row for all KW taps and all ROWS outputs:
//
//     for a 7 x 7 kernel and 2 x 8 pixels: 8 rows of 14 pixels for 16 · 49 multiply-adds, seven for each load
//
// To save address arithmetic C is a constant, so offsets in a row are immediates. To save comparisons the bounds of a
// row are a bit mask, computed once for a tile.
//
// Constants: STORED, CHANNELS (C); KH, KW (the kernel), ROWS, RUN (a tile), WARPS (of a block).
//
// warps[STORED=float CHANNELS=96 KH=7 KW=7 ROWS=2 RUN=8 WARPS=8]: depthwise_correlate 24, depthwise_grad_weight 16
// warps[STORED=float CHANNELS=96 KH=3 KW=3 ROWS=2 RUN=8 WARPS=8]: depthwise_correlate 32, depthwise_grad_weight 32
// warps[STORED=float CHANNELS=96 KH=9 KW=9 ROWS=2 RUN=4 WARPS=8]: depthwise_correlate 32, depthwise_grad_weight 16
// warps[STORED=BFloat16 CHANNELS=96 KH=7 KW=7 ROWS=2 RUN=8 WARPS=8]: depthwise_correlate 24, depthwise_grad_weight 16
// warps[STORED=BFloat16 CHANNELS=192 KH=7 KW=7 ROWS=2 RUN=7 WARPS=8]: depthwise_correlate 24, depthwise_grad_weight 16
// warps[STORED=BFloat16 CHANNELS=192 KH=7 KW=7 ROWS=2 RUN=4 WARPS=8]: depthwise_correlate 40, depthwise_grad_weight 16
// warps[STORED=BFloat16 CHANNELS=96 KH=9 KW=9 ROWS=2 RUN=4 WARPS=8]: depthwise_correlate 32, depthwise_grad_weight 16
// warps[STORED=Half CHANNELS=96 KH=7 KW=7 ROWS=2 RUN=8 WARPS=8]: depthwise_correlate 24, depthwise_grad_weight 16
// warps[STORED=Half CHANNELS=192 KH=7 KW=7 ROWS=2 RUN=7 WARPS=8]: depthwise_correlate 24, depthwise_grad_weight 16
#include "common.cuh"
#include "stored.cuh"

constexpr int C = CHANNELS, TAPS = KH * KW;

struct Tile {
    int n, i, j;  // image; row and column of the first output
};

// Tiles are ordered down a column, then by column, then by image.
static inline __device__ Tile tile_at(int number, int OH, int OW) {
    const int down = (OH + ROWS - 1) / ROWS, across = (OW + RUN - 1) / RUN;
    return {number / (down * across), number % down * ROWS, number / down % across * RUN};
}

// A bit mask of `count` bits: bit p is set if 0 ≤ first + p < size.
static inline __device__ unsigned inside(int first, int count, int size) {
    const int from = min(max(-first, 0), count), to = min(max(size - first, 0), count);
    return (1u << to) - (1u << from);
}

// One channel of LENGTH pixels of a row, from `first` on; 0 where the bit of `mask` is not set.
template <int LENGTH>
static inline __device__ void load_run(float (&run)[LENGTH], const Stored* first, unsigned mask) {
#pragma unroll
    for (int p = 0; p < LENGTH; ++p) run[p] = mask >> p & 1 ? (float)first[p * C] : 0.0f;
}

// y from x; or ∂x from ∂y, with the weight flipped, top', left', and a null bias.
//
//   grid   ceil(C / 32) · ceil(tiles / WARPS)          block   (32, WARPS)
extern "C" __global__ void __launch_bounds__(WARP * WARPS)
depthwise_correlate(const Stored* __restrict__ x, const Stored* __restrict__ weight, const Stored* __restrict__ bias,
                    Stored* __restrict__ y, int flipped, int tiles, int H, int W, int OH, int OW, int top, int left) {
    // The weights of the block's channels, (TAPS, 32). The padding of a row avoids bank conflicts along a column.
    __shared__ float taps[TAPS][WARP + 1];
    constexpr int groups = (C + WARP - 1) / WARP;
    const int first = blockIdx.x % groups * WARP, c = first + threadIdx.x;
    for (int e = threadIdx.y * WARP + threadIdx.x; e < WARP * TAPS; e += WARP * WARPS) {
        const int channel = e / TAPS, tap = flipped ? TAPS - 1 - e % TAPS : e % TAPS;
        if (first + channel < C) taps[tap][channel] = weight[first * TAPS + e];
    }
    __syncthreads();  // every weight is written before any thread reads

    const int number = blockIdx.x / groups * WARPS + threadIdx.y;
    if (c >= C || number >= tiles) return;
    const Tile tile = tile_at(number, OH, OW);
    const int h = tile.i - top, w = tile.j - left;
    const unsigned rows = inside(h, ROWS + KH - 1, H), columns = inside(w, RUN + KW - 1, W);
    const Stored* corner = x + (((long long)tile.n * H + h) * W + w) * C + c;
    float sum[ROWS][RUN] = {};
#pragma unroll
    for (int r = 0; r < ROWS + KH - 1; ++r) {  // row r of x is at tap k = r - o of row o of the tile
        float pixels[RUN + KW - 1];
        load_run(pixels, corner + (long long)r * W * C, rows >> r & 1 ? columns : 0);
#pragma unroll
        for (int o = 0; o < ROWS; ++o) {
            const int k = r - o;
            if (k < 0 || k >= KH) continue;
#pragma unroll
            for (int l = 0; l < KW; ++l) {
                const float factor = taps[k * KW + l][threadIdx.x];
#pragma unroll
                for (int p = 0; p < RUN; ++p) sum[o][p] += factor * pixels[p + l];
            }
        }
    }
    const float offset = bias ? (float)bias[c] : 0.0f;
    Stored* out = y + (((long long)tile.n * OH + tile.i) * OW + tile.j) * C + c;
#pragma unroll
    for (int o = 0; o < ROWS; ++o)
#pragma unroll
        for (int p = 0; p < RUN; ++p)
            if (tile.i + o < OH && tile.j + p < OW) out[((long long)o * OW + p) * C] = sum[o][p] + offset;
}

// Partial sums of ∂weight and ∂bias, for sum_rows.
//
//   partials   (gridDim.y, C · TAPS + C): ∂weight, then ∂bias      grid   (ceil(C / 32), any)      block   (32, WARPS)
//
// A warp loops over tiles, with TAPS + 1 sums in registers: of ∂weight for each tap, and of ∂bias.
extern "C" __global__ void __launch_bounds__(WARP * WARPS)
depthwise_grad_weight(const Stored* __restrict__ grad_y, const Stored* __restrict__ x, float* __restrict__ partials,
                      int tiles, int H, int W, int OH, int OW, int top, int left) {
    const int first = blockIdx.x * WARP, c = first + threadIdx.x;
    float sum[TAPS + 1] = {};
    for (int number = blockIdx.y * WARPS + threadIdx.y; c < C && number < tiles; number += gridDim.y * WARPS) {
        const Tile tile = tile_at(number, OH, OW);
        const int h = tile.i - top, w = tile.j - left;
        const unsigned rows = inside(h, ROWS + KH - 1, H), columns = inside(w, RUN + KW - 1, W);
        const unsigned outputs = inside(tile.j, RUN, OW);
        const Stored* corner = x + (((long long)tile.n * H + h) * W + w) * C + c;
        const Stored* grad_corner = grad_y + (((long long)tile.n * OH + tile.i) * OW + tile.j) * C + c;
        float grad[ROWS][RUN];
#pragma unroll
        for (int o = 0; o < ROWS; ++o) {
            load_run(grad[o], grad_corner + (long long)o * OW * C, tile.i + o < OH ? outputs : 0);
#pragma unroll
            for (int p = 0; p < RUN; ++p) sum[TAPS] += grad[o][p];
        }
#pragma unroll
        for (int r = 0; r < ROWS + KH - 1; ++r) {
            float pixels[RUN + KW - 1];
            load_run(pixels, corner + (long long)r * W * C, rows >> r & 1 ? columns : 0);
#pragma unroll
            for (int o = 0; o < ROWS; ++o) {
                const int k = r - o;
                if (k < 0 || k >= KH) continue;
#pragma unroll
                for (int l = 0; l < KW; ++l)
#pragma unroll
                    for (int p = 0; p < RUN; ++p) sum[k * KW + l] += grad[o][p] * pixels[p + l];
            }
        }
    }

    // The warps of a block add their sums in turn, a fixed order.
    __shared__ float total[TAPS + 1][WARP + 1];
    for (int turn = 0; turn < WARPS; ++turn) {
        if (threadIdx.y == turn)
#pragma unroll
            for (int tap = 0; tap <= TAPS; ++tap)
                total[tap][threadIdx.x] = (turn ? total[tap][threadIdx.x] : 0.0f) + sum[tap];
        __syncthreads();  // this warp has written before the next reads, and before all read after the last
    }
    float* partial = partials + (long long)blockIdx.y * (C * TAPS + C);
    for (int e = threadIdx.y * WARP + threadIdx.x; e < WARP * TAPS; e += WARP * WARPS)
        if (first + e / TAPS < C) partial[first * TAPS + e] = total[e % TAPS][e / TAPS];
    if (threadIdx.y == 0 && c < C) partial[C * TAPS + c] = total[TAPS][threadIdx.x];
}
