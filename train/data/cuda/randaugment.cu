// RandAugment: `rounds` random ops for each image, one after another. Formulas, letters and the order of each sum are
// those of train/data/randaugment.py, where the ops are explained. So are the random numbers: round k has draws 2k and
// 2k + 1 of the launch.
//
//   images   (N, 3, H, W) uint8: a batch, or a part of a batch of `count` images (rows.cuh)
//   y        the result
//   spare    the image before the last round, before the third last, ...; null if rounds = 1
//
//   grid     N: a block has one image, for all rounds
//   block    256 threads, one for each level from 0 to 255
//
// A colour op that depends only on the level of the pixel is a table of 256 levels for each channel: thread v computes
// entry v of the three tables, then the block looks up every pixel. Histograms are counted in shared memory by integer
// atomics, whose result does not depend on their order.
//
// For equal magnitudes, sines and cosines, the results equal the reference bit for bit: sums and products are rounded
// as in NumPy, without fused multiply-adds. `log`, `cos` and `sin` in float64 may differ in the last bit from NumPy's.
//
// Two loops are not unrolled, so that registers allow four blocks on a multiprocessor. The stack is for sin and cos of
// large angles, which do not occur.
//
// Constants: OPS, the ops in the order of their intervals; LEVELS, the table of randaugment.py in this order, with 0
// for an op without an argument.
//
// options: --fmad=false
// stack: randaugment 40
// warps[OPS=Rotate,ShearX,ShearY,TranslateXRel,TranslateYRel,AutoContrast,Equalize,Invert,Posterize,Solarize,
//   SolarizeAdd,Color,Contrast,Brightness,
//   Sharpness LEVELS=30,.3,.3,.45,.45,0,0,0,4,256,110,.9,.9,.9,.9]: randaugment 32
#include "common.cuh"
#include "philox.cuh"
#include "rows.cuh"
#include "stratified.cuh"

enum Op { OPS, NONE };
static __constant__ const double LEVEL[] = {LEVELS};

constexpr double PI = 3.14159265358979323846;

using Level = unsigned char;

struct Settings {  // the fields of the dataclass RandAugment
    double magnitude, prob, std, highest;
    bool increasing;
};

// An op, its argument, and the matrix of a geometric op.
struct Choice {
    int op;
    double argument, matrix[6];
};

// What the threads of a block share.
struct Shared {
    Choice choice;
    int histogram[3][256], low[3], high[3];
    Level table[3][256];
};

// m and the sign of a row of the permuted batch of N images: RandAugment._strength.
static inline __device__ double strength(const Settings& settings, int row, int N, const Draw& draw, double& sign) {
    const double u0 = draw.uniform(row), u1 = draw.uniform(N + row), u2 = draw.uniform(2 * N + row);
    sign = u0 < 0.5 ? -1.0 : 1.0;
    const double magnitude = isinf(settings.std)
                                 ? u1 * settings.magnitude
                                 : settings.magnitude + settings.std * (sqrt(-2 * log(1 - u1)) * cos(2 * PI * u2));
    return fmin(fmax(magnitude, 0.0), settings.highest) / 10;
}

// The function `arguments`.
static inline __device__ double argument_of(int op, double m, double sign, bool increasing) {
    const double level = LEVEL[op];
    switch (op) {
        case AutoContrast: case Equalize: case Invert: return 0;
        case Posterize: {
            const int bits = min((int)(m * level), 8);
            return increasing ? max((int)level - bits, 0) : bits;
        }
        case Solarize: {
            const int threshold = min((int)(m * level), (int)level);
            return increasing ? (int)level - threshold : threshold;
        }
        case SolarizeAdd: return min((int)(m * level), 128);
        case Color: case Contrast: case Brightness: case Sharpness:
            return increasing ? fmax(1 + sign * (m * level), 0.1) : m * (2 * level) + 0.1;
        default: return sign * (m * level);
    }
}

// The functions of MATRICES: A, of two rows.
static inline __device__ void set_matrix(double (&A)[6], int op, double v, int H, int W) {
    A[0] = A[4] = 1;
    A[1] = A[2] = A[3] = A[5] = 0;
    if (op == ShearX) A[1] = v;
    if (op == ShearY) A[3] = v;
    if (op == TranslateXRel) A[2] = v * W;
    if (op == TranslateYRel) A[5] = v * H;
    if (op != Rotate) return;
    double degrees = fmod(v, 360.0);
    if (degrees < 0) degrees += 360;
    const double angle = degrees * (PI / 180), c = rint(cos(angle) * 1e15) / 1e15, s = rint(sin(angle) * 1e15) / 1e15;
    const double cx = W / 2.0, cy = H / 2.0;
    A[0] = A[4] = c;
    A[1] = -s;
    A[2] = -c * cx + s * cy + cx;
    A[3] = s;
    A[5] = -s * cx - c * cy + cy;
}

static inline __device__ void choose(Choice& choice, const Assigned& image, const Settings& settings, int N, int H,
                                     int W, const Draw& draw) {
    const double p = settings.prob / NONE;  // of each op
    choice.op = NONE;
    choice.argument = 0;
#pragma unroll 1
    for (int k = 0; k < NONE; ++k)
        if (image.value >= k * p * N && image.value < (k + 1) * p * N) choice.op = k;
    if (choice.op == NONE) return;
    double sign;
    const double m = strength(settings, image.row, N, draw, sign);
    choice.argument = argument_of(choice.op, m, sign, settings.increasing);
    set_matrix(choice.matrix, choice.op, choice.argument, H, W);
}

static inline __device__ Level blend(float degenerate, float x, float factor) {
    return fminf(fmaxf(degenerate + factor * (x - degenerate), 0), 255);
}

static inline __device__ int gray(const Level* x, int pixels) {
    return (19595 * x[0] + 38470 * x[pixels] + 7471 * x[2 * pixels] + 0x8000) >> 16;
}

// The rounded mean of the gray image.
static inline __device__ int mean_gray(const Level* x, int pixels) {
    int sum = 0;
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) sum += gray(x + i, pixels);
    return (double)block_sum(sum) / pixels + 0.5;
}

// The histogram starts at 0.
static inline __device__ void count_levels(const Level* x, Shared& shared, int pixels) {
    for (int c = 0; c < 3; ++c)
        for (int i = threadIdx.x; i < pixels; i += blockDim.x)
            atomicAdd(&shared.histogram[c][x[c * pixels + i]], 1);
    __syncthreads();  // the histogram is complete
}

// Set the entries of level v = threadIdx.x for AutoContrast or Equalize.
static inline __device__ void set_table_by_histogram(Shared& shared, int pixels) {
    const int v = threadIdx.x;
    int below[3] = {};  // the number of pixels below level v
    for (int u = 0; u < v; ++u)
        for (int c = 0; c < 3; ++c) below[c] += shared.histogram[c][u];
    for (int c = 0; c < 3; ++c) {
        const int count = shared.histogram[c][v];
        if (count && below[c] == 0) shared.low[c] = v;
        if (count && below[c] + count == pixels) shared.high[c] = v;
    }
    __syncthreads();  // low and high are written before all threads read
    for (int c = 0; c < 3; ++c) {
        const int low = shared.low[c], high = shared.high[c];
        int y = v;
        if (shared.choice.op == Equalize) {
            const int step = (pixels - shared.histogram[c][high]) / 255;
            if (step > 0) y = min((step / 2 + below[c]) / step, 255);
        } else if (high > low) {
            const double scale = 255.0 / (high - low);
            y = fmin(fmax(v * scale + -low * scale, 0.0), 255.0);
        }
        shared.table[c][v] = y;
    }
}

// Set the entries of level v = threadIdx.x for the other ops with a table, and the identity for NONE.
static inline __device__ void set_table(Shared& shared, int mean) {
    const int v = threadIdx.x, argument = shared.choice.argument;
    const float factor = shared.choice.argument;
    int y = v;
    switch (shared.choice.op) {
        case Invert: y = 255 - v; break;
        case Solarize: y = v < argument ? v : 255 - v; break;
        case SolarizeAdd: y = v < 128 ? min(v + argument, 255) : v; break;
        case Posterize: y = v & (256 - (1 << (8 - argument))); break;
        case Brightness: y = blend(0, v, factor); break;
        case Contrast: y = blend(mean, v, factor); break;
    }
    for (int c = 0; c < 3; ++c) shared.table[c][v] = y;
}

static inline __device__ void look_up(const Level* x, Level* y, const Shared& shared, int pixels) {
    __syncthreads();  // the table is complete
    for (int c = 0; c < 3; ++c)
        for (int i = threadIdx.x; i < pixels; i += blockDim.x)
            y[c * pixels + i] = shared.table[c][x[c * pixels + i]];
}

// The function `warp`; `fill` has 8 bits for each channel, red first.
static inline __device__ void warp(const Level* x, Level* y, const double (&A)[6], int H, int W, unsigned fill) {
    for (int i = threadIdx.x; i < H * W; i += blockDim.x) {
        const double X = i % W + 0.5, Y = i / W + 0.5;
        double u = A[0] * X + A[1] * Y + A[2], v = A[3] * X + A[4] * Y + A[5];
        const bool inside = u >= 0 && u < W && v >= 0 && v < H;
        u = fmin(fmax(u - 0.5, 0.0), W - 1.0);  // pixel centres become integers
        v = fmin(fmax(v - 0.5, 0.0), H - 1.0);
        const int left = u, top = v, right = min(left + 1, W - 1), bottom = min(top + 1, H - 1);
        const double dx = u - left, dy = v - top;
#pragma unroll 1
        for (int c = 0; c < 3; ++c) {
            const Level *plane = x + c * H * W, *upper = plane + top * W, *lower = plane + bottom * W;
            const double above = upper[left] + (double)(upper[right] - upper[left]) * dx;
            const double below = lower[left] + (double)(lower[right] - lower[left]) * dx;
            y[c * H * W + i] = inside ? (Level)(above + (below - above) * dy) : (Level)(fill >> 8 * c);
        }
    }
}

static inline __device__ void color(const Level* x, Level* y, float factor, int pixels) {
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
        const int luma = gray(x + i, pixels);
        for (int c = 0; c < 3; ++c) y[c * pixels + i] = blend(luma, x[c * pixels + i], factor);
    }
}

static inline __device__ void sharpness(const Level* x, Level* y, float factor, int H, int W) {
    for (int i = threadIdx.x; i < 3 * H * W; i += blockDim.x) {
        const int column = i % W, row = i / W % H;
        int smooth = x[i];
        if (column > 0 && column < W - 1 && row > 0 && row < H - 1) {
            int sum = 4 * x[i] + 6;
            for (int dy = -1; dy <= 1; ++dy)
                for (int dx = -1; dx <= 1; ++dx) sum += x[i + dy * W + dx];
            smooth = sum / 13;
        }
        y[i] = blend(smooth, x[i], factor);
    }
}

extern "C" __global__ void __launch_bounds__(256)
randaugment(const Level* images, Level* y, Level* spare, int H, int W, int rounds, double magnitude, double prob,
            double std, double highest, bool increasing, unsigned fill, long long count, long long split,
            long long offset0, long long offset1, unsigned long long draw, unsigned long long seed,
            const unsigned long long* state) {
    __shared__ Shared shared;
    const Settings settings = {magnitude, prob, std, highest, increasing};
    const Draw draws = {draw, seed, state};
    const Rows part = {count, split, offset0, offset1};
    const int pixels = H * W;
    const size_t first = (size_t)blockIdx.x * 3 * pixels;
    const Level* x = images + first;
    for (int round = 0; round < rounds; ++round) {
        // The barriers in `assigned` are between the rounds: the last image is written, `shared` is no longer read.
        const Assigned image = assigned(part, draws.later(2 * round));
        if (threadIdx.x == 0) choose(shared.choice, image, settings, count, H, W, draws.later(2 * round + 1));
        for (int c = 0; c < 3; ++c) shared.histogram[c][threadIdx.x] = 0;
        __syncthreads();  // the choice and the zeros are written before all threads read

        Level* z = ((rounds - round) % 2 ? y : spare) + first;
        switch (shared.choice.op) {
            case Rotate: case ShearX: case ShearY: case TranslateXRel: case TranslateYRel:
                warp(x, z, shared.choice.matrix, H, W, fill);
                break;
            case Color: color(x, z, shared.choice.argument, pixels); break;
            case Sharpness: sharpness(x, z, shared.choice.argument, H, W); break;
            case AutoContrast: case Equalize:
                count_levels(x, shared, pixels);
                set_table_by_histogram(shared, pixels);
                look_up(x, z, shared, pixels);
                break;
            case Contrast: set_table(shared, mean_gray(x, pixels)); look_up(x, z, shared, pixels); break;
            default: set_table(shared, 0); look_up(x, z, shared, pixels);
        }
        x = z;
    }
}
