// One launch for the arrays of many parameters. A model has hundreds of parameters, and for most of them a launch takes
// longer than the kernel. So one kernel processes all parameters, and finds their arrays in a table in device memory:
//
//   row     one parameter: the addresses of its arrays, their number of elements, and scalars of the parameter
//   chunk   CHUNK adjacent elements of a row's arrays, or the remainder at the end; an empty row has no chunks
//   block   processes one chunk: first the chunks of row 0, then of row 1, and so on
//
// rows[r].end is the number of chunks of rows 0 to r, so the row of block b is the first with end > b. A binary search
// finds it: 8 reads for 200 rows, mostly cache hits, before 4096 elements are processed.
//
// minigrad/kernels/cuda/table.py fills the table.      grid   rows[last].end        block   256
#pragma once

constexpr int CHUNK = 4096;

struct Row {
    void* at[4];
    long long count, end;
    float scalars[8];
};

// The work of a block: `count` elements of each array of a row, from element `first` on.
struct Chunk {
    const Row* row;
    long long first;
    int count;

    template <class T> __device__ T* array(int place) const { return static_cast<T*>(row->at[place]) + first; }
};

static inline __device__ Chunk chunk_of_block(const Row* rows, int count) {
    const long long block = blockIdx.x;
    int low = 0, high = count - 1;
    while (low < high) {  // low ≤ the row of this block ≤ high
        const int middle = (low + high) / 2;
        if (rows[middle].end > block) high = middle;
        else low = middle + 1;
    }
    const Row* row = rows + low;
    const long long first = (block - (low ? row[-1].end : 0)) * CHUNK, left = row->count - first;
    return {row, first, left < CHUNK ? (int)left : CHUNK};
}
