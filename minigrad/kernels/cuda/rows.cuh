// The images of a part of a batch: `Rows` of minigrad/backend/batch.py, of at most two index ranges.
//
// Random numbers do not depend on how a batch is divided: a part computes the rows that its images have in a draw for
// the whole batch. The whole batch is {count, 0, 0, 0}.
#pragma once

struct Rows {
    long long count;             // images of the whole batch
    long long split;             // images of the first range
    long long offset0, offset1;  // of the first and the second range

    // The index in the batch of image j of the part.
    __device__ long long row(long long j) const { return j + (j < split ? offset0 : offset1); }
};
