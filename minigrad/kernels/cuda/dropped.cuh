// Stochastic depth: the factor m of the branch of a residual connection, one for each image.
//
//   m = 1 / (1 - p) where u ≥ p, else 0,   u uniform in [0, 1);   row i belongs to image i / rows_per_image
//
// Without stochastic depth, u is null and m = 1.
#pragma once

struct Dropped {
    const float* u;
    float p, rescale;  // 1 / (1 - p), or 0 if p is 1
    int rows_per_image;
    __device__ float m(int row) const { return !u ? 1.0f : u[row / rows_per_image] >= p ? rescale : 0.0f; }
};
