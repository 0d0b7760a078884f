// Depthwise convolution of stride 1: each channel by itself. Letters as in minigrad/ops/conv.py:
//
//     y[n,i,j,c]       = bias[c] + Σ_k,l  weight[c,k,l] · x[n,h,w,c]   h = i + k - top, w = j + l - left; 0 beyond the edge
//     ∂x[n,h,w,c]      = Σ_k,l    weight[c,k,l] · ∂y[n,i,j,c]          over the i, j that read this h and w
//     ∂weight[c,k,l]   = Σ_n,i,j  ∂y[n,i,j,c] · x[n,h,w,c]
//     ∂bias[c]         = Σ_n,i,j  ∂y[n,i,j,c]
//
// With k' = KH-1-k and top' = KH-1-top (and so for l), i = h + k' - top': ∂x is the same convolution of ∂y, with the
// weight turned around.
//
// Shapes: x (N, H, W, C); y (N, OH, OW, C); weight (C, KH, KW); bias (C,).
//
// Who computes what: the outputs of one channel are cut into tiles of ROWS x RUN pixels, and a thread works on one tile
// at a time. The 32 threads of a warp are 32 channels of the same tile: they stand side by side in memory, and all take
// the same branches. The warps of a block have tiles one below the other, which share most of what they read, in L1;
// blocks that run at the same time have other channels of these tiles, so that memory is read in long stretches.
// A tile reads a row of x once, RUN + KW - 1 pixels into registers, and uses it for all KW taps and all ROWS outputs:
//
//     for a 7 x 7 kernel and 2 x 8 pixels: 8 rows of 14 pixels for 16 · 49 multiply-adds, seven for each load
//
// What is left to spend instructions on is finding out where a pixel is, and whether: so C is a constant, and the pixels
// of a row are at distances that the compiler knows; and which of them lie beyond the edge is a number of so many bits.
//
// Constants: STORED, CHANNELS (C); KH, KW (the kernel), ROWS, RUN (a tile), WARPS (of a block).
// The most registers that a thread takes:
//
// registers[STORED=float CHANNELS=96 KH=7 KW=7 ROWS=2 RUN=8 WARPS=8]: depthwise_correlate 80, depthwise_grad_weight 128
// registers[STORED=float CHANNELS=96 KH=3 KW=3 ROWS=2 RUN=8 WARPS=8]: depthwise_correlate 64, depthwise_grad_weight 64
// registers[STORED=float CHANNELS=96 KH=9 KW=9 ROWS=2 RUN=4 WARPS=8]: depthwise_correlate 64, depthwise_grad_weight 128
// registers[STORED=BFloat16 CHANNELS=96 KH=7 KW=7 ROWS=2 RUN=8 WARPS=8]: depthwise_correlate 80, depthwise_grad_weight 128
// registers[STORED=BFloat16 CHANNELS=192 KH=7 KW=7 ROWS=2 RUN=7 WARPS=8]: depthwise_correlate 80, depthwise_grad_weight 128
// registers[STORED=BFloat16 CHANNELS=192 KH=7 KW=7 ROWS=2 RUN=4 WARPS=8]: depthwise_correlate 48, depthwise_grad_weight 104
// registers[STORED=BFloat16 CHANNELS=96 KH=9 KW=9 ROWS=2 RUN=4 WARPS=8]: depthwise_correlate 64, depthwise_grad_weight 128
// registers[STORED=Half CHANNELS=96 KH=7 KW=7 ROWS=2 RUN=8 WARPS=8]: depthwise_correlate 80, depthwise_grad_weight 128
// registers[STORED=Half CHANNELS=192 KH=7 KW=7 ROWS=2 RUN=7 WARPS=8]: depthwise_correlate 80, depthwise_grad_weight 128
#include "common.cuh"
#include "stored.cuh"

constexpr int C = CHANNELS, TAPS = KH * KW;

struct Tile {
    int n, i, j;  // image, and the first output
};

// Tiles are numbered downwards, then to the right, then by image.
static inline __device__ Tile tile_at(int number, int OH, int OW) {
    const int down = (OH + ROWS - 1) / ROWS, across = (OW + RUN - 1) / RUN;
    return {number / (down * across), number % down * ROWS, number / down % across * RUN};
}

// Which of the numbers first, first + 1, ... (so many) are among 0, 1, ..., size - 1: bit p is set if first + p is.
static inline __device__ unsigned inside(int first, int count, int size) {
    const int from = min(max(-first, 0), count), to = min(max(size - first, 0), count);
    return (1u << to) - (1u << from);
}

// One channel of the pixels of a row, from `first` on: where a bit is set; the others are 0.
template <int LENGTH>
static inline __device__ void load_run(float (&run)[LENGTH], const Stored* first, unsigned there) {
#pragma unroll
    for (int p = 0; p < LENGTH; ++p) run[p] = there >> p & 1 ? (float)first[p * C] : 0.0f;
}

// y from x; or ∂x from ∂y, with the weight `turned`, top' and left', and no bias, which is null then.
//
//   grid   C / 32 · tiles / WARPS, each rounded up          block   (32, WARPS)
extern "C" __global__ void __launch_bounds__(WARP * WARPS)
depthwise_correlate(const Stored* __restrict__ x, const Stored* __restrict__ weight, const Stored* __restrict__ bias,
                    Stored* __restrict__ y, int turned, int tiles, int H, int W, int OH, int OW, int top, int left) {
    // The weights of these channels, (TAPS, 32). A row has one more, so that a column too lies in 32 different banks.
    __shared__ float taps[TAPS][WARP + 1];
    constexpr int groups = (C + WARP - 1) / WARP;
    const int first = blockIdx.x % groups * WARP, c = first + threadIdx.x;
    for (int e = threadIdx.y * WARP + threadIdx.x; e < WARP * TAPS; e += WARP * WARPS) {
        const int channel = e / TAPS, tap = turned ? TAPS - 1 - e % TAPS : e % TAPS;
        if (first + channel < C) taps[tap][channel] = weight[first * TAPS + e];
    }
    __syncthreads();  // a thread's weights are loaded by others

    const int number = blockIdx.x / groups * WARPS + threadIdx.y;
    if (c >= C || number >= tiles) return;
    const Tile tile = tile_at(number, OH, OW);
    const int h = tile.i - top, w = tile.j - left;
    const unsigned rows = inside(h, ROWS + KH - 1, H), columns = inside(w, RUN + KW - 1, W);
    const Stored* corner = x + (((long long)tile.n * H + h) * W + w) * C + c;
    float sum[ROWS][RUN] = {};
#pragma unroll
    for (int r = 0; r < ROWS + KH - 1; ++r) {  // the row of x that is at tap k = r - o of row o of the tile
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

// ∂weight and ∂bias, each block's share of them, for sum_rows to add up.
//
//   shares   (any, C · TAPS + C): ∂weight, then ∂bias      grid   (C / 32 rounded up, any)      block   (32, WARPS)
//
// A warp goes from tile to tile with the sums of all taps in registers, and one more: of ∂y itself.
extern "C" __global__ void __launch_bounds__(WARP * WARPS)
depthwise_grad_weight(const Stored* __restrict__ grad_y, const Stored* __restrict__ x, float* __restrict__ shares,
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

    // The warps of a block add to each other's sums, one after the other.
    __shared__ float total[TAPS + 1][WARP + 1];
    for (int turn = 0; turn < WARPS; ++turn) {
        if (threadIdx.y == turn)
#pragma unroll
            for (int tap = 0; tap <= TAPS; ++tap)
                total[tap][threadIdx.x] = (turn ? total[tap][threadIdx.x] : 0.0f) + sum[tap];
        __syncthreads();  // what this warp wrote, the next one reads; and after the last, all do
    }
    float* share = shares + (long long)blockIdx.y * (C * TAPS + C);
    for (int e = threadIdx.y * WARP + threadIdx.x; e < WARP * TAPS; e += WARP * WARPS)
        if (first + e / TAPS < C) share[first * TAPS + e] = total[e % TAPS][e / TAPS];
    if (threadIdx.y == 0 && c < C) share[C * TAPS + c] = total[TAPS][threadIdx.x];
}
