// Depthwise convolution of stride 1: each channel by itself. Letters as in minigrad/ops/conv.py:
//
//     y[n,i,j,c]       = Σ_k,l    weight[c,k,l] · x[n,h,w,c]       h = i + k - top, w = j + l - left; 0 beyond the edge
//     ∂x[n,h,w,c]      = Σ_k,l    weight[c,k,l] · ∂y[n,i,j,c]      over the i, j that read this h and w
//     ∂weight[c,k,l]   = Σ_n,i,j  ∂y[n,i,j,c] · x[n,h,w,c]
//
// With k' = KH-1-k and top' = KH-1-top (and so for l), i = h + k' - top': ∂x is the same convolution of ∂y, with the
// weight turned around.
//
// Shapes: x (N, H, W, C); y (N, OH, OW, C); weight (C, KH, KW).
//
// Who computes what: the outputs of one channel are cut into tiles of ROWS x RUN pixels, and a thread works on one tile
// at a time. The 32 threads of a warp are 32 channels of the same tile: they stand side by side in memory, and all take
// the same branches. The warps of a block have tiles one below the other, which share most of what they read, in L1;
// blocks that run at the same time have other channels of these tiles, so that memory is read in long stretches.
// A tile reads a row of x once, RUN + KW - 1 pixels into registers, and uses it for all KW taps and all ROWS outputs:
//
//     for a 7 x 7 kernel and 2 x 8 pixels: 8 rows of 14 pixels for 16 · 49 multiply-adds, seven for each load
//
// Constants: KH, KW (the kernel), ROWS, RUN (a tile), WARPS (of a block).
// The most registers that a thread takes:
//
// registers[KH=3 KW=3 ROWS=2 RUN=8 WARPS=8]: depthwise_correlate 72, depthwise_grad_weight 80
// registers[KH=7 KW=7 ROWS=2 RUN=8 WARPS=8]: depthwise_correlate 112, depthwise_grad_weight 128
// registers[KH=9 KW=9 ROWS=2 RUN=4 WARPS=8]: depthwise_correlate 80, depthwise_grad_weight 255
#include "common.cuh"

typedef float Stored;  // what images are kept in; sums are float

constexpr int TAPS = KH * KW;

struct Tile {
    int n, i, j;  // image, and the first output
};

// Tiles are numbered downwards, then to the right, then by image.
static inline __device__ Tile tile_at(int number, int OH, int OW) {
    const int down = (OH + ROWS - 1) / ROWS, across = (OW + RUN - 1) / RUN;
    return {number / (down * across), number % down * ROWS, number / down % across * RUN};
}

// Pixels (h, w), (h, w + 1), ... of one channel of an image (H, W, C); 0 beyond the edge.
template <int LENGTH>
static inline __device__ void load_run(float (&run)[LENGTH], const Stored* image, int h, int w, int H, int W, int C) {
    const Stored* row = image + (long long)h * W * C;
#pragma unroll
    for (int p = 0; p < LENGTH; ++p) {
        const bool inside = 0 <= h && h < H && 0 <= w + p && w + p < W;
        run[p] = inside ? (float)row[(w + p) * C] : 0.0f;
    }
}

// y from x; or ∂x from ∂y, with the weight `turned`, top' and left'.
//
//   grid   C / 32 · tiles / WARPS, each rounded up          block   (32, WARPS)
extern "C" __global__ void __launch_bounds__(WARP * WARPS)
depthwise_correlate(const Stored* __restrict__ x, const float* __restrict__ weight, Stored* __restrict__ y,
                    int turned, int tiles, int H, int W, int OH, int OW, int C, int top, int left) {
    // The weights of these channels, (TAPS, 32). A row has one more, so that a column too lies in 32 different banks.
    __shared__ float taps[TAPS][WARP + 1];
    const int groups = (C + WARP - 1) / WARP, first = blockIdx.x % groups * WARP, c = first + threadIdx.x;
    for (int e = threadIdx.y * WARP + threadIdx.x; e < WARP * TAPS; e += WARP * WARPS) {
        const int channel = e / TAPS, tap = turned ? TAPS - 1 - e % TAPS : e % TAPS;
        if (first + channel < C) taps[tap][channel] = weight[first * TAPS + e];
    }
    __syncthreads();  // a thread's weights are loaded by others

    const int number = blockIdx.x / groups * WARPS + threadIdx.y;
    if (c >= C || number >= tiles) return;
    const Tile tile = tile_at(number, OH, OW);
    const Stored* image = x + (long long)tile.n * H * W * C + c;
    float sum[ROWS][RUN] = {};
#pragma unroll
    for (int r = 0; r < ROWS + KH - 1; ++r) {  // the row of x that is at tap k = r - o of row o of the tile
        float pixels[RUN + KW - 1];
        load_run(pixels, image, tile.i + r - top, tile.j - left, H, W, C);
#pragma unroll
        for (int o = 0; o < ROWS; ++o) {
            const int k = r - o;
            if (k < 0 || k >= KH) continue;
#pragma unroll
            for (int l = 0; l < KW; ++l) {
                const float w = taps[k * KW + l][threadIdx.x];
#pragma unroll
                for (int p = 0; p < RUN; ++p) sum[o][p] += w * pixels[p + l];
            }
        }
    }
    Stored* out = y + (long long)tile.n * OH * OW * C + c;
#pragma unroll
    for (int o = 0; o < ROWS; ++o)
#pragma unroll
        for (int p = 0; p < RUN; ++p)
            if (tile.i + o < OH && tile.j + p < OW) out[((long long)(tile.i + o) * OW + tile.j + p) * C] = sum[o][p];
}

// ∂weight, each block's share of it, for sum_rows to add up.
//
//   shares   (any, C, TAPS)          grid   (C / 32 rounded up, any)          block   (32, WARPS)
//
// A warp goes from tile to tile with the sums of all taps in registers.
extern "C" __global__ void __launch_bounds__(WARP * WARPS)
depthwise_grad_weight(const Stored* __restrict__ grad_y, const Stored* __restrict__ x, float* __restrict__ shares,
                      int tiles, int H, int W, int OH, int OW, int C, int top, int left) {
    const int first = blockIdx.x * WARP, c = first + threadIdx.x;
    float sum[TAPS] = {};
    for (int number = blockIdx.y * WARPS + threadIdx.y; c < C && number < tiles; number += gridDim.y * WARPS) {
        const Tile tile = tile_at(number, OH, OW);
        const Stored* grad_image = grad_y + (long long)tile.n * OH * OW * C + c;
        const Stored* image = x + (long long)tile.n * H * W * C + c;
        float grad[ROWS][RUN];
#pragma unroll
        for (int o = 0; o < ROWS; ++o) load_run(grad[o], grad_image, tile.i + o, tile.j, OH, OW, C);
#pragma unroll
        for (int r = 0; r < ROWS + KH - 1; ++r) {
            float pixels[RUN + KW - 1];
            load_run(pixels, image, tile.i + r - top, tile.j - left, H, W, C);
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
    __shared__ float total[TAPS][WARP + 1];
    for (int turn = 0; turn < WARPS; ++turn) {
        if (threadIdx.y == turn)
#pragma unroll
            for (int tap = 0; tap < TAPS; ++tap)
                total[tap][threadIdx.x] = (turn ? total[tap][threadIdx.x] : 0.0f) + sum[tap];
        __syncthreads();  // what this warp wrote, the next one reads; and after the last, all do
    }
    float* share = shares + (long long)blockIdx.y * C * TAPS;
    for (int e = threadIdx.y * WARP + threadIdx.x; e < WARP * TAPS; e += WARP * WARPS)
        if (first + e / TAPS < C) share[first * TAPS + e] = total[e % TAPS][e / TAPS];
}
