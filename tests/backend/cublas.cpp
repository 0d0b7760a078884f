// cublasGemmStridedBatchedEx on the CPU, from pointers, sizes and strides. Used by tests/backend/test_cublas.py.
#include <cstring>

struct BFloat16 {  // the upper 16 bits of a float
  unsigned short bits;
  operator float() const { unsigned all = bits << 16; float x; std::memcpy(&x, &all, 4); return x; }
  BFloat16(float x) { unsigned all; std::memcpy(&all, &x, 4); bits = (all + 0x7fff + (all >> 16 & 1)) >> 16; }
};

struct Handle { void* stream; void* workspace; size_t size; int math; };

extern "C" int cublasCreate_v2(Handle** h) { *h = new Handle(); return 0; }
extern "C" int cublasDestroy_v2(Handle* h) { delete h; return 0; }
extern "C" int cublasSetMathMode(Handle* h, int mode) { h->math = mode; return 0; }
extern "C" int cublasSetStream_v2(Handle* h, void* s) { h->stream = s; h->workspace = nullptr; return 0; }
extern "C" int cublasSetWorkspace_v2(Handle* h, void* w, size_t n) { h->workspace = w; h->size = n; return n ? 0 : 7; }

template <class T, class S, class R>  // element types of A and B, of the scalars, and of C
void gemm(int ta, int tb, int m, int n, int k, const void* one, const void* a, int lda, long long sa, const void* b,
          int ldb, long long sb, const void* zero, void* c, int ldc, long long sc, int batch) {
  const T *A = (T*)a, *B = (T*)b;
  R* C = (R*)c;
  for (int i = 0; i < batch; ++i, A += sa, B += sb, C += sc)
    for (int row = 0; row < m; ++row)
      for (int column = 0; column < n; ++column) {  // column-major: element (row, column) is at row + column * ld
        double sum = 0;
        for (int l = 0; l < k; ++l)
          sum += double(A[ta ? l + (long long)row * lda : row + (long long)l * lda]) *
                 B[tb ? column + (long long)l * ldb : l + (long long)column * ldb];
        C[row + (long long)column * ldc] = R(S(*(S*)one * sum + *(S*)zero));
      }
}

extern "C" int cublasGemmStridedBatchedEx(
    Handle* h, int ta, int tb, int m, int n, int k, const void* one, const void* A, int At, int lda, long long sa,
    const void* B, int Bt, int ldb, long long sb, const void* zero, void* C, int Ct, int ldc, long long sc, int batch,
    int compute, int algorithm) {
  if (!h || At != Bt || algorithm != -1 || !batch || sa < 0 || sb < 0) return 7;
  if ((Ct == 2 || Ct == 14) && h->math != 16) return 14;  // else split-k may add partial sums in 16 bits
  if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7;  // as the cuBLAS manual requires
  const auto product = At == 0 && Ct == 0 && (compute == 68 || compute == 77) ? gemm<float, float, float>
                       : At == 1 && Ct == 1 && compute == 70                  ? gemm<double, double, double>
                       : At == 2 && Ct == 2 && compute == 68                  ? gemm<_Float16, float, _Float16>
                       : At == 2 && Ct == 0 && compute == 68                  ? gemm<_Float16, float, float>
                       : At == 14 && Ct == 14 && compute == 68                ? gemm<BFloat16, float, BFloat16>
                       : At == 14 && Ct == 0 && compute == 68                 ? gemm<BFloat16, float, float>
                                                                              : nullptr;
  if (!product) return 15;
  product(ta, tb, m, n, k, one, A, lda, sa, B, ldb, sb, zero, C, ldc, sc, batch);
  return 0;
}
