// Matrix products of a warp on tensor cores:   C += A B,   A (16, 16) and B (16, 8) Stored, C (16, 8) float.
//
// The matrices are distributed over the registers of the warp's lanes; a register has two adjacent elements of A or B.
// With g = lane / 4 and t = lane % 4:
//
//                    columns 2t, 2t + 1   2t + 8, 2t + 9                   column g                  columns 2t, 2t + 1
//   A   row g              a[0]                a[2]        B   rows 2t, 2t + 1        b0    C  row g        c[0], c[1]
//       row g + 8          a[1]                a[3]            rows 2t + 8, 2t + 9    b1       row g + 8    c[2], c[3]
//
// Two adjacent C are (16, 16), and cast to Stored they have the layout of an A: the result of one product is an operand
// of the next without leaving the registers.
//
// A row of 8 16-bit values is 16 bytes. ldmatrix loads four (8, 8) tiles from shared memory: lane 8 i + r provides the
// address of row r of tile i, and receives of each tile row g, columns 2t and 2t + 1; with .trans column g, rows 2t and
// 2t + 1. So one copy of a matrix in shared memory serves as B and as Bᵀ.
#pragma once
#include "stored.cuh"

typedef float Tile[4];         // a lane's elements of C
typedef unsigned Fragment[4];  // a lane's elements of A, or of four tiles, in pairs

#ifdef __CUDACC__
#define MULTIPLY(type)                                                                                             \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
        "{%0, %1, %2, %3};"                                                                                        \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

static inline __device__ void multiply(Tile& c, const Fragment& a, unsigned b0, unsigned b1, BFloat16) {
    MULTIPLY("bf16");
}
static inline __device__ void multiply(Tile& c, const Fragment& a, unsigned b0, unsigned b1, Half) { MULTIPLY("f16"); }

static inline __device__ unsigned address_in_shared(const void* at) {
    return (unsigned)__cvta_generic_to_shared(at);
}

template <bool TRANSPOSED>
static inline __device__ void load_tiles(Fragment& tiles, const Stored* row) {
    const unsigned address = address_in_shared(row);
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) : "r"(address) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) : "r"(address) : "memory");
}

// Starts to copy 16 bytes from global to shared memory, or to write 16 zeros. The thread does not wait, and no register
// holds the bytes, so a thread can have many copies in flight.
static inline __device__ void copy_async(void* to, const void* from, bool zeros) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(address_in_shared(to)), "l"(from), "r"(zeros ? 0 : 16) : "memory");
}
// Waits for the copies of this thread; a barrier must follow before another thread reads them.
static inline __device__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif  // (The tests' CPU compiler defines the functions between #ifdef and #endif.)

static inline __device__ unsigned pair_of(float first, float second) {
    return Stored(first).bits | (unsigned)Stored(second).bits << 16;
}

// The stride of rows in shared memory: an odd multiple of 16 bytes, as width is a multiple of 16 elements. load_tiles
// then reads 8 rows at once without bank conflicts.
static inline __device__ constexpr int spaced(int width) { return width + 8; }

// WIDTH / 16 A = rows (16, WIDTH), in shared memory
template <int WIDTH>
static inline __device__ void load(Fragment (&a)[WIDTH / 16], const Stored* rows) {
    rows += threadIdx.x % 16 * spaced(WIDTH) + threadIdx.x / 16 * 8;
#pragma unroll
    for (int part = 0; part < WIDTH / 16; ++part) load_tiles<false>(a[part], rows + 16 * part);
}

// a = rowsᵀ:   rows (16, 16), in shared memory, `step` elements apart
static inline __device__ void load_transposed(Fragment& a, const Stored* rows, int step) {
    load_tiles<true>(a, rows + (threadIdx.x / 16 * 8 + threadIdx.x % 8) * step + threadIdx.x / 8 % 2 * 8);
}

// Stores a (16, 16) to rows in shared memory, `step` elements apart.
static inline __device__ void store(const Fragment& a, Stored* rows, int step) {
    Stored* const first = rows + threadIdx.x / 4 * step + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) *reinterpret_cast<unsigned*>(first + i % 2 * 8 * step + i / 2 * 8) = a[i];
}

// Two C = A rowsᵀ:   A (16, WIDTH)   rows (16, WIDTH), in shared memory
template <int WIDTH>
static inline __device__ void multiply_by_rows(Tile (&c)[2], const Fragment (&a)[WIDTH / 16], const Stored* rows) {
    rows += (threadIdx.x / 16 * 8 + threadIdx.x % 8) * spaced(WIDTH) + threadIdx.x / 8 % 2 * 8;
#pragma unroll
    for (int e = 0; e < 8; ++e) c[e / 4][e % 4] = 0;
#pragma unroll
    for (int part = 0; part < WIDTH / 16; ++part) {
        Fragment b;  // tiles: rows 0 to 7, columns 0 to 7 and 8 to 15; rows 8 to 15, likewise
        load_tiles<false>(b, rows + 16 * part);
        multiply(c[0], a[part], b[0], b[1], Stored());
        multiply(c[1], a[part], b[2], b[3], Stored());
    }
}

// WIDTH / 8 C += A rows:   A (16, 16)   rows (16, WIDTH), in shared memory
template <int WIDTH>
static inline __device__ void multiply_by_columns(Tile (&c)[WIDTH / 8], const Fragment& a, const Stored* rows) {
    rows += threadIdx.x % 16 * spaced(WIDTH) + threadIdx.x / 16 * 8;
#pragma unroll
    for (int part = 0; part < WIDTH / 16; ++part) {
        Fragment b;  // tiles: columns 0 to 7, rows 0 to 7 and 8 to 15; columns 8 to 15, likewise
        load_tiles<true>(b, rows + 16 * part);
        multiply(c[2 * part], a, b[0], b[1], Stored());
        multiply(c[2 * part + 1], a, b[2], b[3], Stored());
    }
}

// Two adjacent C, cast to Stored, as an A.
static inline __device__ void as_factor(Fragment& a, const Tile (&c)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = pair_of(c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]);
}
