// Convolution of 16-bit images with up to 64 channels on tensor cores (mma.cuh), without im2col: an implicit matrix
// product (Chetlur et al. 2014, arXiv:1410.0759). Letters as in minigrad/ops/conv.py, stride S, dilation 1:
//
//   y[n,i,j,o]  = bias[o] + Σ_k,l,c  x[n,h,w,c] W[o,k,l,c],       h = i · S + k - top,  w = j · S + l - left
//   ∂x[n,h,w,c] = Σ_k,l,o  ∂y[n,i,j,o] W[o,k,l,c],                over all i, j, k, l that give this h and w
//   ∂W[o,k,l,c] = Σ_n,i,j  ∂y[n,i,j,o] x[n,h,w,c]
//
//   x, ∂x (N, H, W, C)    y, ∂y (N, OH, OW, O)    all Stored    W (O, KH, KW, C) Stored, ∂W float
//
// y is a matrix product: row (n,i,j) of im2col's X times W, with (k,l,c) as the inner axis. But X need not exist. A
// block has a tile of TILE_H x TILE_W windows of an image, and loads the patch of pixels that the windows cover into
// shared memory. Row (i,j) of X at tap (k,l) is the pixel (i · S + k, j · S + l) of the patch: an address, computed by
// each lane for its row of a tensor-core operand.
//
// ∂x is a product of the same kind. For S = 1 it is the convolution of ∂y with W flipped and transposed. For S = 2,
// only the taps k ≡ h + top (mod S) read the row h. So the pixels h = S i + a with one remainder a are a convolution of
// ∂y with every S-th tap, in the reverse order (`Axis`), and blockIdx.z is the pair of remainders.
//
// Cost: an estimate in picoseconds a pixel for 3 x 3, S = 1, C = O. im2col reads 2 C bytes and writes 18 C, the product
// reads 18 C and writes 2 C, at about 3.4 TB/s of an H200's 4.8; cuBLAS computes 18 C² FLOP at about 525 of 990 TFLOP/s.
// The kernel of this file reads x and writes y once, 4 C bytes, with W and the margins of patches from the L2 cache, and
// mma.sync is assumed to reach 200 TFLOP/s: for 8 products (16, 16) x (16, 8) a warp loads four operands of 512 bytes
// from shared memory, 16 cycles of the memory's bandwidth, so at most half of the peak.
//
//   C                                                             32      64     128     256
//   im2col and cuBLAS    20 C / 3.4 + max(20 C / 3.4, 18 C² / 525)   376     753    1506    3753
//   this kernel          max(4 C / 3.4, 18 C² / 200)                  92     369    1475    5898
//
// So the kernel is used up to 64 channels (MAX_CHANNELS). ∂x and ∂W have about the same figures. None has been measured.
//
// Constants: STORED; KH, KW, at most 9 taps; S; TILE_W, a multiple of 8; GRAD_X, 1 for ∂x; OUT, a multiple of 32: the
// channels of the result, and for ∂W the channels of ∂y of a block. Shared memory: conv_mma.py.
//
// warps[STORED=BFloat16 KH=3 KW=3 S=1 TILE_W=16 GRAD_X=0 OUT=32]: conv_mma_correlate 24, conv_mma_grad_weight 16
// warps[STORED=BFloat16 KH=3 KW=3 S=1 TILE_W=16 GRAD_X=1 OUT=64]: conv_mma_correlate 24, conv_mma_grad_weight 16
// warps[STORED=BFloat16 KH=3 KW=3 S=2 TILE_W=8 GRAD_X=0 OUT=64]: conv_mma_correlate 24, conv_mma_grad_weight 16
// warps[STORED=BFloat16 KH=3 KW=3 S=2 TILE_W=16 GRAD_X=1 OUT=64]: conv_mma_correlate 24, conv_mma_grad_weight 16
// warps[STORED=Half KH=2 KW=3 S=2 TILE_W=8 GRAD_X=1 OUT=32]: conv_mma_correlate 24, conv_mma_grad_weight 16
#include "common.cuh"
#include "mma.cuh"

constexpr int CHUNK = 32;  // channels in shared memory at a time
constexpr int TILE_H = 8, TILE = TILE_H * TILE_W;  // windows of a block

// Along one axis: window i reads at its tap t (< count) the pixel i · STEP + t + origin, and weight first + t · step.
struct Axis {
    int count, origin, first, step;
};

static inline __device__ Axis forward_axis(int taps, int before) { return {taps, -before, 0, 1}; }

// The windows are the pixels S i + a of ∂x, for i = 0, 1, ...; count is 0 if no tap reads them.
static inline __device__ Axis transposed_axis(int taps, int before, int a) {
    const int least = (a + before) % S, count = least < taps ? (taps - 1 - least) / S + 1 : 0;
    const int first = least + (count - 1) * S;
    return {count, (a + before - first) / S, first, -S};  // (the division has no remainder)
}

// Copies 8 elements, or zeros if `inside` is false.
static inline __device__ void copy_pack(Stored* to, const Stored* from, bool inside) {
    uint4 pack = make_uint4(0, 0, 0, 0);
    if (inside) pack = *reinterpret_cast<const uint4*>(from);
    *reinterpret_cast<uint4*>(to) = pack;
}

// Copies channels 0 to WIDTH - 1 of a patch of an image (H, W, C), with zeros beyond its edges, to
// (rows, columns, WIDTH) in shared memory. `image` points to the first of the channels.
template <int WIDTH>
static inline __device__ void stage(Stored* to, const Stored* image, int rows, int columns, int top, int left, int H,
                                    int W, int C) {
    const int thread = threadIdx.y * WARP + threadIdx.x, threads = blockDim.y * WARP;
#pragma unroll 1
    for (int i = thread; i < rows * columns * (WIDTH / 8); i += threads) {
        const int pixel = i / (WIDTH / 8), channel = i % (WIDTH / 8) * 8;
        const int h = top + pixel / columns, w = left + pixel % columns;
        const bool inside = 0 <= h && h < H && 0 <= w && w < W;
        copy_pack(to + pixel * spaced(WIDTH) + channel, image + ((long long)h * W + w) * C + channel, inside);
    }
}

// y from x, or with GRAD_X ∂x from ∂y: `result` (N, RH, RW, OUT) from `source` (N, H, W, C).
//
//   weight   (OUT, KH, KW, C): with GRAD_X Wᵀ          grid    (N · tiles, 1, GRAD_X ? S · S : 1)
//   bias     (OUT,) or null                                block   (32, TILE / 32 · OUT / 32)
//
// A warp has 32 windows and 32 channels of the result, as 2 x 4 tiles (16, 8) of sums. For each chunk of 32 channels of
// the source, the block loads the patch and the weights of all taps; resident blocks load while others multiply.
constexpr int STEP = GRAD_X ? 1 : S;
constexpr int TAPS_H = GRAD_X ? (KH + S - 1) / S : KH, TAPS_W = GRAD_X ? (KW + S - 1) / S : KW;
constexpr int PATCH_H = (TILE_H - 1) * STEP + TAPS_H, PATCH_W = (TILE_W - 1) * STEP + TAPS_W;
constexpr int COLUMNS = TAPS_H * TAPS_W * CHUNK;  // of the weights in shared memory

extern "C" __global__ void __launch_bounds__(TILE * OUT / 32, 768 / (TILE * OUT / 32))
conv_mma_correlate(const Stored* __restrict__ source, const Stored* __restrict__ weight,
                   const Stored* __restrict__ bias, Stored* __restrict__ result, int H, int W, int C, int RH, int RW,
                   int top, int left) {
    constexpr int SPREAD = GRAD_X ? S : 1;  // pixels of the result from one window to the next
    const int a = GRAD_X ? blockIdx.z / S : 0, b = GRAD_X ? blockIdx.z % S : 0;
    const Axis down = GRAD_X ? transposed_axis(KH, top, a) : forward_axis(KH, top);
    const Axis right = GRAD_X ? transposed_axis(KW, left, b) : forward_axis(KW, left);
    const int tiles_w = ((RW + SPREAD - 1) / SPREAD + TILE_W - 1) / TILE_W;
    const int tiles = ((RH + SPREAD - 1) / SPREAD + TILE_H - 1) / TILE_H * tiles_w;
    const int n = blockIdx.x / tiles, i0 = blockIdx.x % tiles / tiles_w * TILE_H, j0 = blockIdx.x % tiles_w * TILE_W;
    const int thread = threadIdx.y * WARP + threadIdx.x, threads = blockDim.y * WARP;
    const int window = threadIdx.y % (TILE / 32) * 32, channel = threadIdx.y / (TILE / 32) * 32;  // first of the warp

    DYNAMIC_SHARED(Stored, patch);                                  // (PATCH_H, PATCH_W, CHUNK)
    Stored* const weights = patch + PATCH_H * PATCH_W * spaced(CHUNK);  // (OUT, TAPS_H, TAPS_W, CHUNK)

    // The rows whose addresses this lane provides for load_tiles: a window of each A, an output channel of each B.
    const int quarter = threadIdx.x / 8, row = threadIdx.x % 8;
    const Stored* A[2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
        const int p = window + 16 * m + quarter % 2 * 8 + row;
        A[m] = patch + (p / TILE_W * STEP * PATCH_W + p % TILE_W * STEP) * spaced(CHUNK) + quarter / 2 * 8;
    }
    const Stored* const B = weights + (channel + quarter / 2 * 8 + row) * spaced(COLUMNS) + quarter % 2 * 8;

    Tile sums[2][4];
#pragma unroll
    for (int e = 0; e < 32; ++e) {
        const int o = channel + e / 4 % 4 * 8 + threadIdx.x % 4 * 2 + e % 2;
        sums[e / 16][e / 4 % 4][e % 4] = bias ? (float)bias[o] : 0.0f;
    }
    for (int c = 0; c < C; c += CHUNK) {
        if (c) __syncthreads();  // every warp has multiplied the previous chunk
        stage<CHUNK>(patch, source + (long long)n * H * W * C + c, PATCH_H, PATCH_W, i0 * STEP + down.origin,
                     j0 * STEP + right.origin, H, W, C);
        for (int t = 0; t < down.count; ++t)
            for (int u = 0; u < right.count; ++u) {
                const int tap = (down.first + t * down.step) * KW + right.first + u * right.step;
                for (int i = thread; i < OUT * (CHUNK / 8); i += threads) {
                    const int o = i / (CHUNK / 8), at = i % (CHUNK / 8) * 8;
                    copy_pack(weights + o * spaced(COLUMNS) + (t * TAPS_W + u) * CHUNK + at,
                              weight + ((long long)o * KH * KW + tap) * C + c + at, true);
                }
            }
        __syncthreads();  // the patch and the weights are written
#pragma unroll 1
        for (int t = 0; t < down.count; ++t)
#pragma unroll 1
            for (int u = 0; u < right.count; ++u)
#pragma unroll
                for (int part = 0; part < CHUNK / 16; ++part) {
                    Fragment x[2], w[2];
#pragma unroll
                    for (int m = 0; m < 2; ++m)
                        load_tiles<false>(x[m], A[m] + (t * PATCH_W + u) * spaced(CHUNK) + 16 * part);
#pragma unroll
                    for (int k = 0; k < 2; ++k)
                        load_tiles<false>(w[k], B + 16 * k * spaced(COLUMNS) + (t * TAPS_W + u) * CHUNK + 16 * part);
#pragma unroll
                    for (int m = 0; m < 2; ++m)
#pragma unroll
                        for (int k = 0; k < 4; ++k)
                            multiply(sums[m][k], x[m], w[k / 2][k % 2 * 2], w[k / 2][k % 2 * 2 + 1], Stored());
                }
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {  // row g, then g + 8, of the two A
        const int p = window + 8 * m + threadIdx.x / 4;
        const int h = (i0 + p / TILE_W) * SPREAD + a, w = (j0 + p % TILE_W) * SPREAD + b;
        if (h >= RH || w >= RW) continue;
        Stored* const pixel = result + (((long long)n * RH + h) * RW + w) * OUT + channel + threadIdx.x % 4 * 2;
#pragma unroll
        for (int k = 0; k < 4; ++k)
            *reinterpret_cast<unsigned*>(pixel + 8 * k) =
                pair_of(sums[m / 2][k][m % 2 * 2], sums[m / 2][k][m % 2 * 2 + 1]);
    }
}

// The block's partial sums of ∂W, over every gridDim.z-th tile of windows: OUT of O outputs and CHUNK of C channels.
//
//   partials   (gridDim.z, O, KH, KW, C)        grid    (O / OUT, C / CHUNK, any number)
//                                               block   (32, OUT / 16 · 2)
//
// ∂W at tap (k,l) is ∂yᵀ times the pixels at this tap: the windows are the inner axis. Both operands are transposed by
// load_tiles. A warp has 16 outputs and 16 channels at all taps: per 16 windows one A and a B for each tap.
extern "C" __global__ void __launch_bounds__(OUT * 4)
conv_mma_grad_weight(const Stored* __restrict__ grad_y, const Stored* __restrict__ x, float* __restrict__ partials,
                     int N, int H, int W, int C, int OH, int OW, int O, int top, int left) {
    constexpr int PATCH_H = (TILE_H - 1) * S + KH, PATCH_W = (TILE_W - 1) * S + KW;
    const int tiles_w = (OW + TILE_W - 1) / TILE_W, tiles = (OH + TILE_H - 1) / TILE_H * tiles_w;
    const int o = threadIdx.y / 2 * 16, c = threadIdx.y % 2 * 16;  // the warp's first output and channel, in the block
    DYNAMIC_SHARED(Stored, patch);                                    // (PATCH_H, PATCH_W, CHUNK)
    Stored* const grads = patch + PATCH_H * PATCH_W * spaced(CHUNK);  // ∂y: (TILE, OUT)

    const int quarter = threadIdx.x / 8, row = threadIdx.x % 8;
    Tile sums[KH * KW][2] = {};
    for (int tile = blockIdx.z; tile < N * tiles; tile += gridDim.z) {
        const int n = tile / tiles, i0 = tile % tiles / tiles_w * TILE_H, j0 = tile % tiles_w * TILE_W;
        __syncthreads();  // every warp has multiplied the previous tile
        stage<CHUNK>(patch, x + (long long)n * H * W * C + blockIdx.y * CHUNK, PATCH_H, PATCH_W, i0 * S - top,
                     j0 * S - left, H, W, C);
        stage<OUT>(grads, grad_y + (long long)n * OH * OW * O + blockIdx.x * OUT, TILE_H, TILE_W, i0, j0, OH, OW, O);
        __syncthreads();  // the patch and ∂y are written
#pragma unroll 1
        for (int p = 0; p < TILE; p += 16) {
            Fragment g;  // ∂yᵀ: outputs 0 to 7 and 8 to 15 of windows 0 to 7; of windows 8 to 15, likewise
            load_tiles<true>(g, grads + (p + quarter / 2 * 8 + row) * spaced(OUT) + o + quarter % 2 * 8);
            const int at = p + quarter % 2 * 8 + row;  // the window whose pixels this lane addresses
            const Stored* const pixel =
                patch + (at / TILE_W * S * PATCH_W + at % TILE_W * S) * spaced(CHUNK) + c + quarter / 2 * 8;
#pragma unroll
            for (int tap = 0; tap < KH * KW; ++tap) {
                Fragment b;  // channels 0 to 7 of windows 0 to 7 and 8 to 15; channels 8 to 15, likewise
                load_tiles<true>(b, pixel + (tap / KW * PATCH_W + tap % KW) * spaced(CHUNK));
                multiply(sums[tap][0], g, b[0], b[1], Stored());
                multiply(sums[tap][1], g, b[2], b[3], Stored());
            }
        }
    }
    float* const partial = partials + (long long)blockIdx.z * O * KH * KW * C + blockIdx.y * CHUNK + c;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float* const of_output = partial + (long long)(blockIdx.x * OUT + o + threadIdx.x / 4 + 8 * half) * KH * KW * C;
#pragma unroll
        for (int tap = 0; tap < KH * KW; ++tap)
#pragma unroll
            for (int k = 0; k < 2; ++k)
                *reinterpret_cast<float2*>(of_output + tap * C + 8 * k + threadIdx.x % 4 * 2) =
                    make_float2(sums[tap][k][2 * half], sums[tap][k][2 * half + 1]);
    }
}
