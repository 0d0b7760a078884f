// cublasLt's functions on the CPU; they check every argument. Used by tests/backend/test_cublas_lt.py.
#include "cublas.cpp"
#include <cstdint>
#include <initializer_list>

enum Kind { HANDLE = 101, OPERATION, LAYOUT, PREFERENCE, KINDS };

struct Object { int kind; };
struct LtHandle : Object {};
struct Operation : Object { int compute, scale, transpose[2]; unsigned epilogue; void* vector; };
struct Layout : Object { int type; uint64_t rows, columns; int64_t leading; };
struct Preference : Object { uint64_t workspace; unsigned reductions, aligned[4]; };

struct Algorithm {  // the problem for which it was selected, and the size of its workspace; 64 bytes
  int m, n, k, epilogue; unsigned aligned[5]; unsigned workspace; int operations, types[2], compute; char rest[8];
};
struct HeuristicResult { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };
static_assert(sizeof(Algorithm) == 64 && sizeof(HeuristicResult) == 96, "as in cublasLt.h");

extern "C" {
int lt_alive[4], lt_created, lt_queries, lt_products;  // lt_alive: handles, operations, layouts, preferences
int lt_query_status, lt_query_count = 1, lt_query_state, lt_product_status;  // return values set by tests
void *lt_stream, *lt_workspace;
}

template <class T> T* make(T object, int kind) {
  ++lt_created, ++lt_alive[kind - HANDLE];
  T* created = new T(object);
  created->kind = kind;
  return created;
}
static int destroy(Object* object, int kind) {  // the memory is not freed, so that a use after destruction is detected
  if (!object || object->kind != kind) return 7;
  --lt_alive[kind - HANDLE];
  object->kind = 0;
  return 0;
}
static bool has_kind(Object* object, int kind) { return object && object->kind == kind; }

extern "C" int cublasLtCreate(Object** h) { *h = make(LtHandle(), HANDLE); return 0; }
extern "C" int cublasLtDestroy(Object* h) { return destroy(h, HANDLE); }
extern "C" int cublasLtMatmulDescCreate(Object** d, int compute, int scale) {
  *d = make(Operation{{}, compute, scale, {0, 0}, 1, nullptr}, OPERATION);
  return 0;
}
extern "C" int cublasLtMatmulDescDestroy(Object* d) { return destroy(d, OPERATION); }
extern "C" int cublasLtMatrixLayoutCreate(Object** l, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  *l = make(Layout{{}, type, rows, columns, leading}, LAYOUT);
  return 0;
}
extern "C" int cublasLtMatrixLayoutDestroy(Object* l) { return destroy(l, LAYOUT); }
extern "C" int cublasLtMatmulPreferenceCreate(Object** p) {
  *p = make(Preference{{}, 0, 7, {256, 256, 256, 256}}, PREFERENCE);
  return 0;
}
extern "C" int cublasLtMatmulPreferenceDestroy(Object* p) { return destroy(p, PREFERENCE); }

extern "C" int cublasLtMatmulDescSetAttribute(Operation* d, int attribute, const void* value, size_t size) {
  if (!has_kind(d, OPERATION) || !value) return 7;
  void* to = attribute == 3 || attribute == 4 ? (void*)&d->transpose[attribute - 3]
             : attribute == 7                 ? (void*)&d->epilogue
             : attribute == 8                 ? (void*)&d->vector
                                              : nullptr;
  if (!to || size != (attribute == 8 ? 8 : 4)) return 7;
  std::memcpy(to, value, size);
  return 0;
}
extern "C" int cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* value, size_t size) {
  if (!has_kind(p, PREFERENCE) || !value) return 7;
  void* to = attribute == 1                     ? (void*)&p->workspace
             : attribute == 3                   ? (void*)&p->reductions
             : attribute >= 5 && attribute <= 8 ? (void*)&p->aligned[attribute - 5]
                                                : nullptr;
  if (!to || size != (attribute == 1 ? 8 : 4)) return 7;
  std::memcpy(to, value, size);
  return 0;
}

static bool valid(Layout* x, uint64_t rows, uint64_t columns) {
  return has_kind(x, LAYOUT) && rows && columns && x->rows == rows && x->columns == columns &&
         x->leading >= (int64_t)rows;
}

// Set `problem` to what the descriptors describe; return a cublasStatus_t.
static int problem_of(Operation* d, Layout* A, Layout* B, Layout* C, Layout* D, Algorithm& problem) {
  if (!has_kind(d, OPERATION)) return 7;
  for (Layout* x : {A, B, C, D})
    if (!has_kind(x, LAYOUT)) return 7;
  const uint64_t m = D->rows, n = D->columns, k = d->transpose[0] ? A->rows : A->columns;
  if (!valid(A, d->transpose[0] ? k : m, d->transpose[0] ? m : k)) return 7;
  if (!valid(B, d->transpose[1] ? n : k, d->transpose[1] ? k : n)) return 7;
  if (!valid(C, m, n) || !valid(D, m, n) || C->type != D->type || A->type != B->type || !d->vector) return 7;
  const bool half = A->type == 2 || A->type == 14;
  if (d->scale != 0 || !(d->compute == 68 || (d->compute == 77 && A->type == 0))) return 15;
  if (!(D->type == A->type && (half || D->type == 0)) && !(half && D->type == 0)) return 15;
  if (d->epilogue != 4 && d->epilogue != 512) return 15;
  problem = {(int)m, (int)n, (int)k, (int)d->epilogue, {}, 0, d->transpose[0] + 2 * d->transpose[1],
            {A->type, D->type}, d->compute, {}};
  return 0;
}

static unsigned alignment(const void* p) {
  const uintptr_t bits = (uintptr_t)p, lowest = bits & -bits;
  return lowest && lowest < 256 ? lowest : 256;
}

extern "C" int cublasLtMatmulAlgoGetHeuristic(LtHandle* h, Operation* d, Layout* A, Layout* B, Layout* C, Layout* D,
                                              Preference* p, int requested, HeuristicResult* found, int* count) {
  ++lt_queries;
  if (!has_kind(h, HANDLE) || !has_kind(p, PREFERENCE) || requested < 1 || p->reductions != 2) return 7;
  if (lt_query_status) return lt_query_status;
  Algorithm problem;
  if (int status = problem_of(d, A, B, C, D, problem)) return status;
  for (int i = 0; i < 4; ++i) problem.aligned[i] = p->aligned[i];
  problem.aligned[4] = alignment(d->vector);
  problem.workspace = 512 + 256 * (problem.m % 3);
  if (problem.workspace > p->workspace) lt_query_count = 0;
  *count = lt_query_count;
  if (lt_query_count) *found = {problem, problem.workspace, lt_query_state, 1, {}};
  return 0;
}

template <class T, class R>  // element types of A and B, and of D and the vector
void product(const Algorithm& s, const void* a, int64_t lda, const void* b, int64_t ldb, void* d, int64_t ldd,
             void* vector) {
  const T *A = (T*)a, *B = (T*)b;
  R *D = (R*)d, *v = (R*)vector;
  for (int column = 0; column < s.n; ++column) {
    double total = 0;
    for (int row = 0; row < s.m; ++row) {
      double sum = 0;
      for (int l = 0; l < s.k; ++l) {
        const double element = B[s.operations & 2 ? column + l * ldb : l + column * ldb];
        sum += double(A[s.operations & 1 ? l + row * lda : row + l * lda]) * element;
        total += row ? 0 : element;
      }
      D[row + column * ldd] = R(float(sum + (s.epilogue == 4 ? double(v[row]) : 0)));
    }
    if (s.epilogue == 512) v[column] = R(float(total));
  }
}

extern "C" int cublasLtMatmul(LtHandle* h, Operation* d, const float* one, const void* a, Layout* A, const void* b,
                              Layout* B, const float* zero, const void* c, Layout* C, void* out, Layout* D,
                              const Algorithm* algorithm, char* workspace, size_t size, void* stream) {
  if (lt_product_status) return lt_product_status;
  Algorithm problem;
  if (!has_kind(h, HANDLE) || !algorithm || *one != 1 || *zero != 0 || c != out || C != D) return 7;
  if (int status = problem_of(d, A, B, C, D, problem)) return status;
  const void* addresses[5] = {a, b, c, out, d->vector};
  for (int i = 0; i < 5; ++i) {
    if ((uintptr_t)addresses[i] % algorithm->aligned[i]) return 7;
    problem.aligned[i] = algorithm->aligned[i];
  }
  problem.workspace = algorithm->workspace;
  if (std::memcmp(&problem, algorithm, 56) || size < algorithm->workspace || !workspace) return 7;
  std::memset(workspace, 0xff, algorithm->workspace);
  const auto compute = A->type == 0    ? product<float, float>
                       : A->type == 2  ? D->type ? product<_Float16, _Float16> : product<_Float16, float>
                       : D->type       ? product<BFloat16, BFloat16>
                                       : product<BFloat16, float>;
  compute(*algorithm, a, A->leading, b, B->leading, out, D->leading, d->vector);
  ++lt_products, lt_stream = stream, lt_workspace = workspace;
  return 0;
}
