// Stratified random assignment: `StratifiedAssignment` of train/data/randaugment.py, for the image of a thread block.
// If the images of the grid are a part of a batch, the assignment is that of the whole batch.
#pragma once

#include "common.cuh"
#include "philox.cuh"
#include "rows.cuh"

struct Assigned {
    int row;       // of the image in the permuted whole batch
    double value;  // row + u, with the same u in [0, 1) for all images
};

// The row of the image is the rank of its random number among those of all N images; equal numbers rank by index.
// All threads of a one-dimensional block of whole warps must call it. It contains a barrier of the block.
static inline __device__ Assigned assigned(const Rows& part, const Draw& draw) {
    const int N = part.count, image = part.row(blockIdx.x);
    const float own = draw.uniform(image);
    int before = 0;
    for (int k = threadIdx.x; k * 4 < N; k += blockDim.x) {
        const Words words = draw.four_words(k);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int other = k * 4 + i;
            const float u = Draw::as_uniform(words.at[i]);
            before += other < N && (u < own || (u == own && other < image));
        }
    }
    const int row = block_sum(before);
    return {row, row + (double)draw.uniform(N)};
}
