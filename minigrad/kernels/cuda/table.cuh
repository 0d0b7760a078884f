// Many arrays in one launch. A model has hundreds of parameters, most of them so small that to launch a kernel takes
// longer than the kernel; so a kernel that is for all of them finds them in a table in device memory:
//
//   a row     is one parameter: where its arrays begin, how many numbers each has, and numbers that go with it
//   a chunk   is CHUNK neighbouring numbers of a row, or what is left at its end; a row without numbers has none
//   a block   has one chunk: those of row 0 come first, then those of row 1, and so on
//
// rows[r].end counts the chunks of the rows 0 to r, so block b is in the first row whose end is beyond b. It is found by
// halving: among 200 rows by 8 reads, which most blocks find in the cache, before 4096 numbers are worked on.
//
// minigrad/kernels/cuda/table.py fills the table.      grid   rows[last].end        block   256
#pragma once

constexpr int CHUNK = 4096;

struct Row {
    void* at[4];
    long long count, end;
    float numbers[8];
};

// What a block works on: `count` numbers of each array of a row, from number `first` on.
struct Chunk {
    const Row* row;
    long long first;
    int count;

    template <class T> __device__ T* array(int place) const { return static_cast<T*>(row->at[place]) + first; }
};

static inline __device__ Chunk chunk_of_block(const Row* rows, int count) {
    const long long block = blockIdx.x;
    int low = 0, high = count - 1;
    while (low < high) {  // the row is one of low to high
        const int middle = (low + high) / 2;
        if (rows[middle].end > block) high = middle;
        else low = middle + 1;
    }
    const Row* row = rows + low;
    const long long first = (block - (low ? row[-1].end : 0)) * CHUNK, left = row->count - first;
    return {row, first, left < CHUNK ? (int)left : CHUNK};
}
