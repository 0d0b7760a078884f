// im2col and col2im, between images x (N, H, W, C) and the matrix X (N·OH·OW, KH·KW·C) with a row for each window:
// convolution is then a matrix product. Letters as in minigrad/ops/conv.py:
//
//     unfold (im2col)    X[(n,i,j), (k,l,c)] = x[n,h,w,c],   h = i · SH + k · DH - top,  w = j · SW + l · DW - left,
//                                              0 in the padding, and 0 in columns beyond the last tap
//     fold   (col2im)    ∂x[n,h,w,c] = Σ ∂X[(n,i,j), (k,l,c)],   over the i, j, k, l that read this h and w
//
// Both kernels gather: a thread computes elements of the result from their sources, so no two threads write one
// address, and the order of every sum is fixed. If the channels of a pixel fill packs of 16 bytes, x, X, C and all
// strides are in packs of PACK channels.
//
// Cost: X has KH·KW / (SH·SW) times the elements of x, and is written once and read once, by the matrix product. For
// patches (stride = kernel) X has the size of x: for 128 16-bit images (3, 224, 224), unfold reads 39 MB and writes
// 39 MB, and the product reads 39 MB, for any patch size. Such images are channels-first, so a thread loads single
// elements, in runs of KW in each of three planes; other windows of the block read the rest of a cache line. The stores
// are coalesced.
//
// Constants: STORED; KH, KW (kernel), SH, SW (stride), DH, DW (dilation); PACK, 1, or 4 floats or 8 16-bit values.
//
// warps[STORED=float KH=3 KW=3 SH=2 SW=2 DH=1 DW=1 PACK=1]: unfold 64, fold 32
// warps[STORED=float KH=3 KW=3 SH=2 SW=2 DH=1 DW=1 PACK=4]: unfold 64, fold 32
// warps[STORED=BFloat16 KH=3 KW=3 SH=1 SW=1 DH=1 DW=1 PACK=8]: unfold 64, fold 32
// warps[STORED=BFloat16 KH=3 KW=3 SH=2 SW=2 DH=1 DW=1 PACK=8]: unfold 64, fold 40
// warps[STORED=BFloat16 KH=2 KW=2 SH=2 SW=2 DH=1 DW=1 PACK=8]: unfold 64, fold 64
// warps[STORED=BFloat16 KH=16 KW=16 SH=16 SW=16 DH=1 DW=1 PACK=1]: unfold 64, fold 24
// warps[STORED=Half KH=3 KW=3 SH=1 SW=1 DH=1 DW=1 PACK=8]: unfold 64, fold 32

#include "stored.cuh"

typedef Packed<Stored, PACK> Pack;

// X from x with any strides, so an image of any layout is copied once.
//
//   grid   ceil(rows / blockDim.y)          block   (threads along a row, rows)
extern "C" __global__ void __launch_bounds__(256)
unfold(const Pack* __restrict__ x, Pack* __restrict__ X, int rows, int H, int W, int C, int OH, int OW,
       int top, int left, long long stride_n, long long stride_h, long long stride_w, long long stride_c,
       int columns) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const int n = row / (OH * OW), i = row / OW % OH, j = row % OW;
    for (int column = threadIdx.x; column < columns; column += blockDim.x) {
        const int tap = column / C, c = column % C;
        const int h = i * SH + tap / KW * DH - top, w = j * SW + tap % KW * DW - left;
        const bool inside = tap < KH * KW && 0 <= h && h < H && 0 <= w && w < W;
        X[(long long)row * columns + column] =
            inside ? x[n * stride_n + h * stride_h + w * stride_w + c * stride_c] : Pack();
    }
}

// ∂x from ∂X. Tap k of window i reads h if i · SH = h + top - k · DH, so at most one window for each tap k.
//
//   grid   ceil(pixels / blockDim.y)          block   (channels, pixels)
extern "C" __global__ void __launch_bounds__(256)
fold(const Pack* __restrict__ grad_X, Pack* __restrict__ grad_x, int pixels, int H, int W, int C, int OH, int OW,
     int top, int left) {
    const int pixel = blockIdx.x * blockDim.y + threadIdx.y;
    if (pixel >= pixels) return;
    const int n = pixel / (H * W), h = pixel / W % H, w = pixel % W;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float sum[PACK] = {};
        for (int k = 0; k < KH; ++k) {
            const int down = h + top - k * DH, i = down / SH;
            if (down < 0 || down % SH || i >= OH) continue;
            for (int l = 0; l < KW; ++l) {
                const int across = w + left - l * DW, j = across / SW;
                if (across < 0 || across % SW || j >= OW) continue;
                const long long row = ((long long)n * OH + i) * OW + j;
                const Pack pack = grad_X[(row * KH * KW + k * KW + l) * C + c];
#pragma unroll
                for (int d = 0; d < PACK; ++d) sum[d] += (float)pack.at[d];
            }
        }
        Pack total;
#pragma unroll
        for (int d = 0; d < PACK; ++d) total.at[d] = Stored(sum[d]);
        grad_x[(long long)pixel * C + c] = total;
    }
}
