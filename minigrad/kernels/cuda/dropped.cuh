// Stochastic depth: what a residual connection multiplies its branch by, one number for each image.
//
//   m = 1 / (1 - p) where u ≥ p, else 0,   u uniform in [0, 1);   an image is `together` rows
//
// u is null where nothing is dropped: then m = 1.
#pragma once

struct Dropped {
    const float* u;
    float p, rescale;  // 1 / (1 - p), or 0 if p is 1
    int together;
    __device__ float m(int row) const { return !u ? 1.0f : u[row / together] >= p ? rescale : 0.0f; }
};
