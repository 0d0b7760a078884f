// The two maps between an image x (N, H, W, C) and the matrix X (N·OH·OW, KH·KW·C) that has a row for each window, with
// which convolution is a matrix product. Letters as in minigrad/ops/conv.py:
//
//     unfold (im2col)    X[(n,i,j), (k,l,c)] = x[n,h,w,c],   h = i · SH + k · DH - top,  w = j · SW + l · DW - left,
//                                              0 beyond the edge; and 0 in columns beyond the last tap
//     fold   (col2im)    ∂x[n,h,w,c] = Σ ∂X[(n,i,j), (k,l,c)],   over the i, j, k, l that read this h and w
//
// In both a thread makes numbers of the result, looking for where they come from; so no two threads write to the same
// place, and the order of a sum is always the same. Where the channels of a pixel are so many times 16 bytes, a "number"
// is as many channels as make 16 bytes: C and all strides are then counted in these.
//
// What it costs: X has KH·KW / (SH·SW) times the numbers of x, and is written once and read once, by the product. For
// patches, whose stride is their kernel, that is x once more: of 128 images (3, 224, 224) in a narrow type, 39 MB are
// read, 39 written, and 39 read again, whatever the patch. Such an image is channels-first, and is read one number at a
// time: runs of KW in each of three planes. What lies between them the windows beside it need, which are in the same
// block; and what is written is one stretch.
//
// Constants: STORED; KH, KW (kernel), SH, SW (stride), DH, DW (dilation); PACK (channels in a number: 1, or 4 of float
// and 8 of a narrow type).
// The most registers that a thread takes:
//
// registers[STORED=float KH=3 KW=3 SH=2 SW=2 DH=1 DW=1 PACK=1]: unfold 32, fold 56
// registers[STORED=float KH=3 KW=3 SH=2 SW=2 DH=1 DW=1 PACK=4]: unfold 32, fold 56
// registers[STORED=BFloat16 KH=3 KW=3 SH=1 SW=1 DH=1 DW=1 PACK=8]: unfold 32, fold 64
// registers[STORED=BFloat16 KH=3 KW=3 SH=2 SW=2 DH=1 DW=1 PACK=8]: unfold 32, fold 48
// registers[STORED=BFloat16 KH=2 KW=2 SH=2 SW=2 DH=1 DW=1 PACK=8]: unfold 32, fold 32
// registers[STORED=BFloat16 KH=16 KW=16 SH=16 SW=16 DH=1 DW=1 PACK=1]: unfold 32, fold 80
// registers[STORED=Half KH=3 KW=3 SH=1 SW=1 DH=1 DW=1 PACK=8]: unfold 32, fold 64

#include "stored.cuh"

typedef Packed<Stored, PACK> Numbers;

// X from x with any strides, so that images of any layout are copied once.
//
//   grid   rows / blockDim.y, rounded up          block   (threads along a row, rows)
extern "C" __global__ void __launch_bounds__(256)
unfold(const Numbers* __restrict__ x, Numbers* __restrict__ X, int rows, int H, int W, int C, int OH, int OW,
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
            inside ? x[n * stride_n + h * stride_h + w * stride_w + c * stride_c] : Numbers();
    }
}

// ∂x from ∂X. Tap k of window i reads h if i · SH = h + top - k · DH: each tap gives one window or none.
//
//   grid   pixels / blockDim.y, rounded up          block   (channels, pixels)
extern "C" __global__ void __launch_bounds__(256)
fold(const Numbers* __restrict__ grad_X, Numbers* __restrict__ grad_x, int pixels, int H, int W, int C, int OH, int OW,
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
                const Numbers seen = grad_X[(row * KH * KW + k * KW + l) * C + c];
#pragma unroll
                for (int d = 0; d < PACK; ++d) sum[d] += (float)seen.at[d];
            }
        }
        Numbers total;
#pragma unroll
        for (int d = 0; d < PACK; ++d) total.at[d] = Stored(sum[d]);
        grad_x[(long long)pixel * C + c] = total;
    }
}
