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
// Multiply-adds in float32 limit these kernels: any other instruction takes the place of a multiply-add. So a thread
// computes a tile of ROWS x RUN outputs of one channel, with one sum for each output (∂weight: for each tap) and all
// weights (∂weight: the tile of ∂y) in registers. A row of x is loaded once, and used for all taps and outputs that read
// the row:
//
//     7 x 7 kernel, 7 x 7 outputs: 13 rows of 13 pixels for 49 · 49 multiply-adds, 14 for each load
//
// To save work at the border, rows outside the image are skipped, and so are the first or last EDGE pixels of a row if
// they are outside: padding of 3 around images of 7 x 7 leaves 57 % of the multiply-adds. Where ROWS or RUN does not
// divide the image, the last tile overlaps the tile before it, and both write the same values. So the pixels between the
// edges are inside, and the pixels of an edge are all inside or all outside: no load needs a comparison. If padding is
// such that an edge can be partly outside, EDGE is the whole row, and each pixel is compared.
//
// Mapping: a block has threads (GROUP, images): GROUP adjacent channels of one tile in several images. Loads are
// coalesced. All threads of a block have the same tile, so branches do not diverge. Consecutive blocks have the other
// channels of the same tile, then the tile below, so blocks that run at the same time read overlapping rows in L2.
//
// Constants: STORED; C, so that offsets in a row are immediates; KH, KW (kernel), ROWS, RUN (tile), EDGE, GROUP.
//
// warps[STORED=BFloat16 C=96 KH=7 KW=7 ROWS=7 RUN=7 EDGE=3 GROUP=32]: depthwise_correlate 16, depthwise_grad_weight 16
// warps[STORED=Half C=96 KH=7 KW=7 ROWS=7 RUN=7 EDGE=3 GROUP=32]: depthwise_correlate 16, depthwise_grad_weight 16
// warps[STORED=float C=96 KH=7 KW=7 ROWS=7 RUN=7 EDGE=3 GROUP=32]: depthwise_correlate 16, depthwise_grad_weight 16
// warps[STORED=BFloat16 C=40 KH=7 KW=7 ROWS=4 RUN=8 EDGE=3 GROUP=40]: depthwise_correlate 16, depthwise_grad_weight 16
// warps[STORED=BFloat16 C=320 KH=7 KW=7 ROWS=2 RUN=2 EDGE=3 GROUP=32]: depthwise_correlate 20, depthwise_grad_weight 16
// warps[STORED=BFloat16 C=96 KH=7 KW=7 ROWS=7 RUN=7 EDGE=13 GROUP=32]: depthwise_correlate 16, depthwise_grad_weight 16
// warps[STORED=float C=96 KH=3 KW=3 ROWS=6 RUN=8 EDGE=1 GROUP=32]: depthwise_correlate 16, depthwise_grad_weight 20
// warps[STORED=float C=96 KH=9 KW=9 ROWS=4 RUN=4 EDGE=4 GROUP=32]: depthwise_correlate 12, depthwise_grad_weight 8
#include "common.cuh"
#include "stored.cuh"

constexpr int GROUPS = (C + GROUP - 1) / GROUP, TAPS = KH * KW;
constexpr int HEIGHT = ROWS + KH - 1, WIDTH = RUN + KW - 1;  // the pixels of x that a tile reads
constexpr int RIGHT = EDGE < WIDTH ? WIDTH - EDGE : WIDTH;   // the first pixel of the right edge of a row

// A bit mask of `count` bits: bit p is set if 0 ≤ first + p < size.
static inline __device__ unsigned inside(int first, int count, int size) {
    const int from = min(max(-first, 0), count), to = min(max(size - first, 0), count);
    return (1u << to) - (1u << from);
}

// Tiles are ordered down a column, then by column, then by image.
struct Tile {
    int n, i, j;                          // image of this thread; row and column of the first output
    int repeated_rows, repeated_columns;  // the number of rows and columns that the tile before has too
    int h, w;                             // row and column of the first pixel of x
    unsigned rows, columns;               // bit masks of the rows and columns of x inside the image

    __device__ Tile(int number, int H, int W, int OH, int OW, int top, int left) {
        const int down = (OH + ROWS - 1) / ROWS, across = (OW + RUN - 1) / RUN;
        const int row = number % down * ROWS, column = number / down % across * RUN;
        n = number / (down * across) * blockDim.y + threadIdx.y;
        i = min(row, OH - ROWS), j = min(column, OW - RUN);
        repeated_rows = row - i, repeated_columns = column - j;
        h = i - top, w = j - left;
        rows = inside(h, HEIGHT, H), columns = inside(w, WIDTH, W);
    }

    // Whether pixels of an edge are inside the image.
    __device__ bool left() const { return columns & ((1u << EDGE) - 1); }
    __device__ bool right() const { return columns >> RIGHT; }
};

// Pixels FROM to TO - 1 of a row, of one channel; 0 outside the image.
template <int FROM, int TO>
static inline __device__ void load(float (&pixels)[WIDTH], const Stored* row, unsigned columns) {
#pragma unroll
    for (int q = FROM; q < TO; ++q)
        pixels[q] = EDGE < WIDTH || columns >> q & 1 ? (float)row[q * C] : 0.0f;
}

// Call use(o, p, tap, q) for all products of row r and pixels FROM to TO - 1: output (o, p), its tap, pixel q = p + l.
template <int FROM, int TO, class Use>
static inline __device__ void products(int r, Use use) {
#pragma unroll
    for (int o = 0; o < ROWS; ++o)
#pragma unroll
        for (int l = 0; l < KW; ++l)
#pragma unroll
            for (int p = 0; p < RUN; ++p)
                if (0 <= r - o && r - o < KH && FROM <= p + l && p + l < TO) use(o, p, (r - o) * KW + l, p + l);
}

// Load row r of x, and call use(o, p, tap, pixel) for all products of its pixels.
template <class Use>
static inline __device__ void use_row(const Tile& tile, const Stored* row, int r, Use use) {
    float pixels[WIDTH];
    if (tile.left()) load<0, EDGE>(pixels, row, tile.columns);
    load<EDGE, RIGHT>(pixels, row, tile.columns);
    if (tile.right()) load<RIGHT, WIDTH>(pixels, row, tile.columns);
    const auto with_pixel = [&](int o, int p, int tap, int q) { use(o, p, tap, pixels[q]); };
    if (tile.left()) products<0, EDGE>(r, with_pixel);
    products<EDGE, RIGHT>(r, with_pixel);
    if (tile.right()) products<RIGHT, WIDTH>(r, with_pixel);
}

// y from x; or ∂x from ∂y, with the weight flipped, top', left', and a null bias. Then `total`, of the shape of ∂x, is
// added, unless it is null: the gradient that x has received so far.
//
//   grid   GROUPS · tiles of an image · ceil(N / blockDim.y)          block   (GROUP, images), at most 256 threads
extern "C" __global__ void __launch_bounds__(256, TAPS <= 49 ? 2 : 1)
depthwise_correlate(const Stored* __restrict__ x, const Stored* __restrict__ weight, const Stored* __restrict__ bias,
                    const Stored* __restrict__ total, Stored* __restrict__ y, int flipped, int N, int H, int W, int OH,
                    int OW, int top, int left) {
    // The weights of the block's channels, (TAPS, GROUP). The padding of a row avoids bank conflicts along a column.
    __shared__ float taps[TAPS][GROUP + 1];
    const int first = blockIdx.x % GROUPS * GROUP, c = first + threadIdx.x;
#pragma unroll 1
    for (int e = threadIdx.y * GROUP + threadIdx.x; e < GROUP * TAPS; e += GROUP * blockDim.y) {
        const int channel = e / TAPS, tap = flipped ? TAPS - 1 - e % TAPS : e % TAPS;
        if (first + channel < C) taps[tap][channel] = weight[first * TAPS + e];
    }
    __syncthreads();  // every weight is written before any thread reads

    const Tile tile(blockIdx.x / GROUPS, H, W, OH, OW, top, left);
    if (c >= C || tile.n >= N) return;
    float weights[TAPS], sum[ROWS][RUN];
#pragma unroll
    for (int tap = 0; tap < TAPS; ++tap) weights[tap] = taps[tap][threadIdx.x];
    const float offset = bias ? (float)bias[c] : 0.0f;
#pragma unroll
    for (int o = 0; o < ROWS; ++o)
#pragma unroll
        for (int p = 0; p < RUN; ++p) sum[o][p] = offset;

    const Stored* row = x + (((long long)tile.n * H + tile.h) * W + tile.w) * C + c;
#pragma unroll
    for (int r = 0; r < HEIGHT; ++r, row += W * C)
        if (tile.rows >> r & 1)
            use_row(tile, row, r, [&](int o, int p, int tap, float pixel) { sum[o][p] += weights[tap] * pixel; });

    long long at = (((long long)tile.n * OH + tile.i) * OW + tile.j) * C + c;
#pragma unroll
    for (int o = 0; o < ROWS; ++o, at += OW * C)
#pragma unroll
        for (int p = 0; p < RUN; ++p) y[at + p * C] = sum[o][p] + (total ? (float)total[at + p * C] : 0.0f);
}

// Partial sums of ∂weight and ∂bias, for sum_rows. A block loops over `tiles`: those of all images.
//
//   partials   (gridDim.y, C · TAPS + C): ∂weight, then ∂bias          grid   (GROUPS, any)          block   as above
extern "C" __global__ void __launch_bounds__(256, TAPS <= 49 ? 2 : 1)
depthwise_grad_weight(const Stored* __restrict__ grad_y, const Stored* __restrict__ x, float* __restrict__ partials,
                      int tiles, int N, int H, int W, int OH, int OW, int top, int left) {
    const int first = blockIdx.x * GROUP, c = min(first + (int)threadIdx.x, C - 1);
    float sum[TAPS + 1] = {};
    for (int number = blockIdx.y; number < tiles; number += gridDim.y) {
        const Tile tile(number, H, W, OH, OW, top, left);
        const unsigned outputs = tile.n < N ? ~0u << tile.repeated_columns : 0;
        const int n = min(tile.n, N - 1);  // a thread without an image adds zeros
        const Stored* row = x + (((long long)n * H + tile.h) * W + tile.w) * C + c;
        const Stored* grad_row = grad_y + (((long long)n * OH + tile.i) * OW + tile.j) * C + c;
        float grad[ROWS][RUN];
#pragma unroll
        for (int r = 0; r < HEIGHT; ++r, row += W * C) {
            if (r < ROWS) {  // rows r - KH + 1 to r of ∂y read row r of x
                const unsigned mask = r < tile.repeated_rows ? 0 : outputs;
#pragma unroll
                for (int p = 0; p < RUN; ++p) {
                    grad[r][p] = mask >> p & 1 ? (float)grad_row[p * C] : 0.0f;
                    sum[TAPS] += grad[r][p];
                }
                grad_row += OW * C;
            }
            if (tile.rows >> r & 1)
                use_row(tile, row, r, [&](int o, int p, int tap, float pixel) { sum[tap] += grad[o][p] * pixel; });
        }
    }

    // The threads of a channel add their sums in turn, a fixed order.
    __shared__ float total[TAPS + 1][GROUP + 1];
    for (int turn = 0; turn < blockDim.y; ++turn) {
        if (threadIdx.y == turn)
#pragma unroll
            for (int tap = 0; tap <= TAPS; ++tap)
                total[tap][threadIdx.x] = (turn ? total[tap][threadIdx.x] : 0.0f) + sum[tap];
        __syncthreads();  // this thread has written before the next reads, and before all read after the last
    }
    float* partial = partials + (long long)blockIdx.y * (C * TAPS + C);
#pragma unroll 1
    for (int e = threadIdx.y * GROUP + threadIdx.x; e < GROUP * TAPS; e += GROUP * blockDim.y)
        if (first + e / TAPS < C) partial[first * TAPS + e] = total[e % TAPS][e / TAPS];
    if (threadIdx.y == 0 && first + threadIdx.x < C) partial[C * TAPS + c] = total[TAPS][threadIdx.x];
}
