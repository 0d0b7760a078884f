// The two maps between an image x (N, H, W, C) and the matrix X (N·OH·OW, KH·KW·C) that has a row for each window, with
// which convolution is a matrix product. Letters as in minigrad/ops/conv.py:
//
//     unfold (im2col)    X[(n,i,j), (k,l,c)] = x[n,h,w,c],   h = i · SH + k · DH - top,  w = j · SW + l · DW - left,
//                                              0 beyond the edge
//     fold   (col2im)    ∂x[n,h,w,c] = Σ ∂X[(n,i,j), (k,l,c)],   over the i, j, k, l that read this h and w
//
// In both a thread makes numbers of the result, looking for where they come from; so no two threads write to the same
// place, and the order of a sum is always the same. Where C can be divided by 4, a "number" is four channels: C and all
// strides are then counted in fours, and memory is read and written 16 bytes at a time.
//
// Constants: KH, KW (kernel), SH, SW (stride), DH, DW (dilation), PACK (1 or 4: channels in a number).
// The most registers that a thread takes:
//
// registers[KH=3 KW=3 SH=2 SW=2 DH=1 DW=1 PACK=1]: unfold 32, fold 56
// registers[KH=3 KW=3 SH=2 SW=2 DH=1 DW=1 PACK=4]: unfold 32, fold 56

#if PACK == 4
typedef float4 Numbers;
static inline __device__ void add(float4& sum, float4 x) {
    sum.x += x.x;
    sum.y += x.y;
    sum.z += x.z;
    sum.w += x.w;
}
#else
typedef float Numbers;
static inline __device__ void add(float& sum, float x) { sum += x; }
#endif

// X from x with any strides, so that images of any layout are copied once.
//
//   grid   rows / blockDim.y, rounded up          block   (threads along a row, rows)
extern "C" __global__ void __launch_bounds__(256)
unfold(const Numbers* __restrict__ x, Numbers* __restrict__ X, int rows, int H, int W, int C, int OH, int OW,
       int top, int left, long long stride_n, long long stride_h, long long stride_w, long long stride_c) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const int n = row / (OH * OW), i = row / OW % OH, j = row % OW;
    for (int column = threadIdx.x; column < KH * KW * C; column += blockDim.x) {
        const int tap = column / C, c = column % C;
        const int h = i * SH + tap / KW * DH - top, w = j * SW + tap % KW * DW - left;
        const bool inside = 0 <= h && h < H && 0 <= w && w < W;
        X[(long long)row * KH * KW * C + column] =
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
        Numbers sum = Numbers();
        for (int k = 0; k < KH; ++k) {
            const int down = h + top - k * DH, i = down / SH;
            if (down < 0 || down % SH || i >= OH) continue;
            for (int l = 0; l < KW; ++l) {
                const int across = w + left - l * DW, j = across / SW;
                if (across < 0 || across % SW || j >= OW) continue;
                const long long row = ((long long)n * OH + i) * OW + j;
                add(sum, grad_X[(row * KH * KW + k * KW + l) * C + c]);
            }
        }
        grad_x[(long long)pixel * C + c] = sum;
    }
}
