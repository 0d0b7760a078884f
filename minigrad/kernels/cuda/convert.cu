// Elementwise cast: y = x, rounded to nearest even.
//
//   x   `count` elements of type FROM, dense           y   `count` elements of type TO, in the same memory order
//
// A thread has PACK adjacent elements: 16 bytes of the wider type if the pointers are aligned, else 1.
//
//   grid   ceil(count / (256 PACK))        block   256
//
// convert_all casts many arrays in one launch (table.cuh).    A row: x, y
//
// Constants: FROM and TO, types of stored.cuh; PACK.
//
// warps[FROM=float TO=BFloat16 PACK=4]: convert 64, convert_all 64
// warps[FROM=BFloat16 TO=float PACK=4]: convert 64, convert_all 64
// warps[FROM=BFloat16 TO=Half PACK=8]: convert 64, convert_all 64
// warps[FROM=float TO=Half PACK=1]: convert 64, convert_all 64
#include "stored.cuh"
#include "table.cuh"

extern "C" __global__ void __launch_bounds__(256)
convert(const FROM* __restrict__ x, TO* __restrict__ y, long long count) {
    const long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    if (first + PACK <= count) {
        const Packed<FROM, PACK> from = *reinterpret_cast<const Packed<FROM, PACK>*>(x + first);
        Packed<TO, PACK> to;
#pragma unroll
        for (int i = 0; i < PACK; ++i) to.at[i] = (float)from.at[i];
        *reinterpret_cast<Packed<TO, PACK>*>(y + first) = to;
    } else {  // the thread at the end of the array may have less than a pack
#pragma unroll 1
        for (long long i = first; i < count; ++i) y[i] = (float)x[i];
    }
}

extern "C" __global__ void __launch_bounds__(256)
convert_all(const Row* __restrict__ rows, int count) {
    const Chunk chunk = chunk_of_block(rows, count);
    const FROM* __restrict__ x = chunk.array<FROM>(0);
    TO* __restrict__ y = chunk.array<TO>(1);
    for (int i = threadIdx.x; i < chunk.count; i += 256) y[i] = (float)x[i];
}
