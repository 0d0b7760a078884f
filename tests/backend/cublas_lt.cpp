// cublasLt on the CPU, which checks every argument: for tests/backend/test_cublas_lt.py.
#include "cublas.cpp"
#include <cstdint>

enum Kind { HANDLE = 101, OPERATION, LAYOUT, PREFERENCE, KINDS };

struct Thing { int kind; };
struct LtHandle : Thing {};
struct Operation : Thing { int compute, scale, transpose[2]; unsigned epilogue; void* vector; };
struct Layout : Thing { int type; uint64_t rows, columns; int64_t leading; };
struct Preference : Thing { uint64_t workspace; unsigned reductions, aligned[4]; };

struct Algorithm {  // what it was chosen for, and what it needs: 64 bytes
  int m, n, k, epilogue; unsigned aligned[5]; unsigned workspace; int operations, types[2], compute; char rest[8];
};
struct Found { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };
static_assert(sizeof(Algorithm) == 64 && sizeof(Found) == 96, "as in cublasLt.h");

extern "C" {
int lt_alive[4], lt_made, lt_asked, lt_products;  // handles, operations, layouts, preferences
int lt_answer, lt_count = 1, lt_state, lt_status;  // of the question: status, algorithms, state; of the product: status
void *lt_stream, *lt_workspace;
}

template <class T> T* make(T thing, int kind) {
  ++lt_made, ++lt_alive[kind - HANDLE];
  T* made = new T(thing);
  made->kind = kind;
  return made;
}
static int unmake(Thing* thing, int kind) {  // what it was stays readable: it is nothing any more
  if (!thing || thing->kind != kind) return 7;
  --lt_alive[kind - HANDLE];
  thing->kind = 0;
  return 0;
}
static bool is(Thing* thing, int kind) { return thing && thing->kind == kind; }

extern "C" int cublasLtCreate(Thing** h) { *h = make(LtHandle(), HANDLE); return 0; }
extern "C" int cublasLtDestroy(Thing* h) { return unmake(h, HANDLE); }
extern "C" int cublasLtMatmulDescCreate(Thing** d, int compute, int scale) {
  *d = make(Operation{{}, compute, scale, {0, 0}, 1, nullptr}, OPERATION);
  return 0;
}
extern "C" int cublasLtMatmulDescDestroy(Thing* d) { return unmake(d, OPERATION); }
extern "C" int cublasLtMatrixLayoutCreate(Thing** l, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  *l = make(Layout{{}, type, rows, columns, leading}, LAYOUT);
  return 0;
}
extern "C" int cublasLtMatrixLayoutDestroy(Thing* l) { return unmake(l, LAYOUT); }
extern "C" int cublasLtMatmulPreferenceCreate(Thing** p) {
  *p = make(Preference{{}, 0, 7, {256, 256, 256, 256}}, PREFERENCE);
  return 0;
}
extern "C" int cublasLtMatmulPreferenceDestroy(Thing* p) { return unmake(p, PREFERENCE); }

extern "C" int cublasLtMatmulDescSetAttribute(Operation* d, int attribute, const void* value, size_t size) {
  if (!is(d, OPERATION) || !value) return 7;
  void* to = attribute == 3 || attribute == 4 ? (void*)&d->transpose[attribute - 3]
             : attribute == 7                 ? (void*)&d->epilogue
             : attribute == 8                 ? (void*)&d->vector
                                              : nullptr;
  if (!to || size != (attribute == 8 ? 8 : 4)) return 7;
  std::memcpy(to, value, size);
  return 0;
}
extern "C" int cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* value, size_t size) {
  if (!is(p, PREFERENCE) || !value) return 7;
  void* to = attribute == 1                     ? (void*)&p->workspace
             : attribute == 3                   ? (void*)&p->reductions
             : attribute >= 5 && attribute <= 8 ? (void*)&p->aligned[attribute - 5]
                                                : nullptr;
  if (!to || size != (attribute == 1 ? 8 : 4)) return 7;
  std::memcpy(to, value, size);
  return 0;
}

static bool fits(Layout* x, uint64_t rows, uint64_t columns) {
  return is(x, LAYOUT) && rows && columns && x->rows == rows && x->columns == columns && x->leading >= (int64_t)rows;
}

// The problem that these descriptors state, or a status.
static int understood(Operation* d, Layout* A, Layout* B, Layout* C, Layout* D, Algorithm& stated) {
  if (!is(d, OPERATION) || !is(A, LAYOUT) || !is(B, LAYOUT) || !is(C, LAYOUT) || !is(D, LAYOUT)) return 7;
  const uint64_t m = D->rows, n = D->columns, k = d->transpose[0] ? A->rows : A->columns;
  if (!fits(A, d->transpose[0] ? k : m, d->transpose[0] ? m : k)) return 7;
  if (!fits(B, d->transpose[1] ? n : k, d->transpose[1] ? k : n)) return 7;
  if (!fits(C, m, n) || !fits(D, m, n) || C->type != D->type || A->type != B->type || !d->vector) return 7;
  const bool narrow = A->type == 2 || A->type == 14;
  if (d->scale != 0 || !(d->compute == 68 || (d->compute == 77 && A->type == 0))) return 15;
  if (!(D->type == A->type && (narrow || D->type == 0)) && !(narrow && D->type == 0)) return 15;
  if (d->epilogue != 4 && d->epilogue != 512) return 15;
  stated = {(int)m, (int)n, (int)k, (int)d->epilogue, {}, 0, d->transpose[0] + 2 * d->transpose[1],
            {A->type, D->type}, d->compute, {}};
  return 0;
}

static unsigned alignment(const void* p) {
  const uintptr_t bits = (uintptr_t)p, lowest = bits & -bits;
  return lowest && lowest < 256 ? lowest : 256;
}

extern "C" int cublasLtMatmulAlgoGetHeuristic(LtHandle* h, Operation* d, Layout* A, Layout* B, Layout* C, Layout* D,
                                              Preference* p, int wanted, Found* found, int* count) {
  ++lt_asked;
  if (!is(h, HANDLE) || !is(p, PREFERENCE) || wanted < 1 || p->reductions != 2) return 7;
  if (lt_answer) return lt_answer;
  Algorithm stated;
  if (int status = understood(d, A, B, C, D, stated)) return status;
  for (int i = 0; i < 4; ++i) stated.aligned[i] = p->aligned[i];
  stated.aligned[4] = alignment(d->vector);
  stated.workspace = 512 + 256 * (stated.m % 3);
  if (stated.workspace > p->workspace) lt_count = 0;
  *count = lt_count;
  if (lt_count) *found = {stated, stated.workspace, lt_state, 1, {}};
  return 0;
}

template <class T, class R>  // of A and B, of D and the vector
void product(const Algorithm& s, const void* a, int64_t lda, const void* b, int64_t ldb, void* d, int64_t ldd,
             void* vector) {
  const T *A = (T*)a, *B = (T*)b;
  R *D = (R*)d, *v = (R*)vector;
  for (int column = 0; column < s.n; ++column) {
    double total = 0;
    for (int row = 0; row < s.m; ++row) {
      double sum = 0;
      for (int l = 0; l < s.k; ++l) {
        const double right = B[s.operations & 2 ? column + l * ldb : l + column * ldb];
        sum += double(A[s.operations & 1 ? l + row * lda : row + l * lda]) * right;
        total += row ? 0 : right;
      }
      D[row + column * ldd] = R(float(sum + (s.epilogue == 4 ? double(v[row]) : 0)));
    }
    if (s.epilogue == 512) v[column] = R(float(total));
  }
}

extern "C" int cublasLtMatmul(LtHandle* h, Operation* d, const float* one, const void* a, Layout* A, const void* b,
                              Layout* B, const float* zero, const void* c, Layout* C, void* out, Layout* D,
                              const Algorithm* algorithm, char* workspace, size_t size, void* stream) {
  if (lt_status) return lt_status;
  Algorithm stated;
  if (!is(h, HANDLE) || !algorithm || *one != 1 || *zero != 0 || c != out || C != D) return 7;
  if (int status = understood(d, A, B, C, D, stated)) return status;
  const void* places[5] = {a, b, c, out, d->vector};
  for (int i = 0; i < 5; ++i) {
    if ((uintptr_t)places[i] % algorithm->aligned[i]) return 7;
    stated.aligned[i] = algorithm->aligned[i];
  }
  stated.workspace = algorithm->workspace;
  if (std::memcmp(&stated, algorithm, 56) || size < algorithm->workspace || !workspace) return 7;
  std::memset(workspace, 0xff, algorithm->workspace);
  const auto compute = A->type == 0    ? product<float, float>
                       : A->type == 2  ? D->type ? product<_Float16, _Float16> : product<_Float16, float>
                       : D->type       ? product<BFloat16, BFloat16>
                                       : product<BFloat16, float>;
  compute(*algorithm, a, A->leading, b, B->leading, out, D->leading, d->vector);
  ++lt_products, lt_stream = stream, lt_workspace = workspace;
  return 0;
}
