// Flip, shifted crop, cutout, random erasing, mixup and CutMix. Formulas, letters and random numbers are those of
// train/data/augment.py.
//
//   x, y    (N, C, H, W): input and result, uint8 for `flip` and `crop`, else float32
//
//   grid    N: a block has one image of `size` = C H W elements; of `mix_weights` and `mix`: see there
//   block   256 threads
//
// The N images may be a part of a batch of `count` images (rows.cuh). Each image gets the random numbers that it has in
// the whole batch; the parts of a batch have the same `mix_weights`.
//
// The kernels are memory-bound. Each thread computes the random numbers of its image anew.
//
// The results equal the reference bit for bit, except where they depend on log, exp, pow and cos, whose last bits may
// differ from NumPy's: the noise of `erase`, and rarely a side of a box, which is rounded to pixels. The stack is for
// cos of large angles, which do not occur.
//
// options: --fmad=false
// stack: erase 32, mix_weights 40
// warps[]: flip 48, crop 48, cutout 48, erase 32, mix_weights 16, mix 48
#include "common.cuh"
#include "philox.cuh"
#include "rows.cuh"
#include "stratified.cuh"

constexpr double PI = 3.14159265358979323846;

// The function `_integers`: 0 to stop - 1.
static inline __device__ int integer(float u, int stop) { return fminf(u * stop, stop - 1); }
static inline __device__ int integer(double u, int stop) { return fmin(u * stop, stop - 1.0); }

struct Box {
    int top, left, bottom, right;

    // Whether the pixel of element i of images (..., H, W) is inside.
    __device__ bool contains(int i, int H, int W) const {
        const int row = i / W % H, column = i % W;
        return row >= top && row < bottom && column >= left && column < right;
    }
};

extern "C" __global__ void __launch_bounds__(256)
flip(const unsigned char* __restrict__ x, unsigned char* __restrict__ y, int size, int W, float p, long long count,
     long long split, long long offset0, long long offset1, unsigned long long draw, unsigned long long seed,
     const unsigned long long* __restrict__ state) {
    const Rows part = {count, split, offset0, offset1};
    const bool flipped = Draw{draw, seed, state}.uniform(part.row(blockIdx.x)) < p;
    const size_t first = (size_t)blockIdx.x * size;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const int column = i % W;
        y[first + i] = x[first + (flipped ? i - column + W - 1 - column : i)];
    }
}

// Reflection at the edges: -1, -2, ... become 1, 2, ...; length, length + 1, ... become length - 2, length - 3, ...
static inline __device__ int reflected(int i, int length) {
    return i < 0 ? -i : i < length ? i : 2 * (length - 1) - i;
}

extern "C" __global__ void __launch_bounds__(256)
crop(const unsigned char* __restrict__ x, unsigned char* __restrict__ y, int size, int H, int W, int padding,
     bool reflect, long long count, long long split, long long offset0, long long offset1, unsigned long long draw,
     unsigned long long seed, const unsigned long long* __restrict__ state) {
    const Draw draws = {draw, seed, state};
    const Rows part = {count, split, offset0, offset1};
    const int top = integer(draws.uniform(part.row(blockIdx.x)), 2 * padding + 1) - padding;
    const int left = integer(draws.uniform(count + part.row(blockIdx.x)), 2 * padding + 1) - padding;
    const size_t first = (size_t)blockIdx.x * size;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        int row = i / W % H + top, column = i % W + left;
        if (reflect) {
            row = reflected(row, H);
            column = reflected(column, W);
        }
        const bool inside = row >= 0 && row < H && column >= 0 && column < W;
        y[first + i] = inside ? x[first + (i / (H * W) * H + row) * W + column] : 0;
    }
}

extern "C" __global__ void __launch_bounds__(256)
cutout(const float* __restrict__ x, float* __restrict__ y, int size, int H, int W, int side, long long count,
       long long split, long long offset0, long long offset1, unsigned long long draw, unsigned long long seed,
       const unsigned long long* __restrict__ state) {
    const Draw draws = {draw, seed, state};
    const Rows part = {count, split, offset0, offset1};
    const int top = integer(draws.uniform(part.row(blockIdx.x)), H) - side / 2;
    const int left = integer(draws.uniform(count + part.row(blockIdx.x)), W) - side / 2;
    const Box box = {top, left, top + side, left + side};
    const size_t first = (size_t)blockIdx.x * size;
    for (int i = threadIdx.x; i < size; i += blockDim.x) y[first + i] = box.contains(i, H, W) ? 0 : x[first + i];
}

// Random erasing of the images with a stratified value below `stop`, which are among the first `rows` rows of the
// permuted whole batch.
//
//   area     uniform from area to area + area_range, of the image; the ratio log(height / width) likewise
//   noise    the number of samples for an image: C H W, C, or 0 for zeros
extern "C" __global__ void __launch_bounds__(256)
erase(const float* __restrict__ x, float* __restrict__ y, int size, int H, int W, double stop, int rows, float area,
      float area_range, float ratio, float ratio_range, int noise, long long count, long long split, long long offset0,
      long long offset1, unsigned long long draw, unsigned long long seed,
      const unsigned long long* __restrict__ state) {
    const Draw draws = {draw, seed, state};
    const Assigned image = assigned({count, split, offset0, offset1}, draws);
    float u[4];
    for (int k = 0; k < 4; ++k) u[k] = draws.later(1).uniform(k * count + image.row);
    const float pixels = H * W * (area + area_range * u[0]), aspect = expf(ratio + ratio_range * u[1]);
    const int height = fminf(sqrtf(pixels * aspect) + 0.5f, H), width = fminf(sqrtf(pixels / aspect) + 0.5f, W);
    const int top = integer((double)u[2], H - height + 1), left = integer((double)u[3], W - width + 1);
    const Box box = {top, left, top + height, left + width};

    const Draw normal = draws.later(2);
    const long long own = (long long)image.row * noise, second = (long long)rows * noise;
    const size_t first = (size_t)blockIdx.x * size;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        float value = x[first + i];
        if (image.value < stop && box.contains(i, H, W)) {
            value = 0;
            if (noise) {
                const long long k = own + i / (size / noise);
                const float u0 = normal.uniform(k), u1 = normal.uniform(second + k);
                value = sqrtf(-2 * logf(1 - u0)) * cosf((float)(2 * PI) * u1);
            }
        }
        y[first + i] = value;
    }
}

// The function `beta`: a sample of Beta(α, α), from four uniform values.
static inline __device__ double beta(double alpha, const double* u) {
    const double B = 0.5 + 0.5 * sqrt(1 - pow(1 - u[0], 1 / (alpha + 0.5))) * cos(2 * PI * u[1]);
    const double log_odds = log(B) - log(1 - B) + (log(1 - u[2]) - log(1 - u[3])) / alpha;
    return 1 / (1 + exp(fmin(fmax(-log_odds, -700.0), 700.0)));
}

// `Mix.weights`, by one thread. The result, (6,) float32, is an input of `mix`: w outside the box, λ, and the box, in
// which w = 0.
extern "C" __global__ void
mix_weights(float* __restrict__ result, int H, int W, double mixup, double cutmix, double p_cut, double p_mixed,
            unsigned long long draw, unsigned long long seed, const unsigned long long* __restrict__ state) {
    const Draw draws = {draw, seed, state};
    double u[8];
    for (int i = 0; i < 8; ++i) u[i] = draws.uniform(i);
    const bool mixed = u[7] < p_mixed, cut = u[0] < p_cut;
    const double kept = beta(cut ? cutmix : mixup, u + 1), side = sqrt(1 - kept);
    const int height = side * H, width = side * W, y = integer(u[5], H), x = integer(u[6], W);
    const int top = max(y - height / 2, 0), left = max(x - width / 2, 0);
    const int bottom = min(y + (height + 1) / 2, H), right = min(x + (width + 1) / 2, W);
    const double outside = 1 - (double)((bottom - top) * (right - left)) / (H * W);
    result[0] = !mixed || cut ? 1 : kept;
    result[1] = !mixed ? 1 : cut ? outside : kept;
    result[2] = top;
    result[3] = left;
    result[4] = mixed && cut ? bottom : top;  // else the box is empty
    result[5] = right;
}

// The function `blend` for elements i of images or targets n and N - 1 - n.
static inline __device__ void blend(const float* x, float* y, float w, int size, int i, int n, int N) {
    const size_t at = (size_t)n * size + i, reverse = (size_t)(N - 1 - n) * size + i;
    const float a = x[at], b = x[reverse];
    y[at] = w * a + (1 - w) * b;
    y[reverse] = w * b + (1 - w) * a;
}

//   x, t -> y, s   images (N, C, H, W) and targets (N, K)
//   grid           (ceil((C H W + K) / 256), ceil(N / 2)): a thread has an element of two images or targets
extern "C" __global__ void __launch_bounds__(256)
mix(const float* __restrict__ x, const float* __restrict__ t, const float* __restrict__ weights, float* __restrict__ y,
    float* __restrict__ s, int N, int size, int H, int W, int K) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, n = blockIdx.y;
    if (i < size) {
        const Box box = {(int)weights[2], (int)weights[3], (int)weights[4], (int)weights[5]};
        blend(x, y, box.contains(i, H, W) ? 0 : weights[0], size, i, n, N);
    } else if (i < size + K)
        blend(t, s, weights[1], K, i - size, n, N);
}
