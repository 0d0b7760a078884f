// CUDA C++ on a CPU: after including this header, g++ compiles a kernel as an ordinary function.
//
// Each thread of a block is a fiber: a function call with its own stack, which can be suspended and resumed. One fiber
// runs at a time, until a barrier makes it wait for its block, or a shuffle for its warp. Then the scheduler resumes
// another fiber. The blocks of a grid run one after another. On a GPU the order of threads between two barriers is
// undefined, so every order of the scheduler is possible there, and a result that depends on the order is an error of
// the kernel.
//
// Detected errors:
//
//   missing barrier          the result changes with the order of the threads (enum Order)
//   divergent barrier        reported as a deadlock, with the line where each thread waits
//   uninitialized memory     shared memory is NaN at the start of a block
//   index out of bounds      reported with the address, if the page beside the array is protected
//   misaligned access        reported: a GPU requires 16-byte loads to be aligned to 16 bytes
//   copy not waited for      an asynchronous copy writes shared memory when its thread waits, and not before
//
// As CuPy compiles with -ftz=true, float operations treat denormal operands and results as 0, with their sign. On an
// x86 CPU a flag of the register MXCSR does so, for double, too; -ftz=true leaves double alone. The difference is below
// 2.2e-308, where no kernel computes: a product of two floats is 0 or at least 2e-90. Copies keep denormals.
//
// Not detected: speed, bank conflicts, the rounding of a GPU's exp and similar functions, races between blocks.
#pragma once

#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <type_traits>
#include <unistd.h>
#include <utility>
#include <vector>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

struct uint3 { unsigned x, y, z; };
using dim3 = uint3;

// ---- Fibers: two implementations of the stack switch ----------------------------------------------------------------

namespace cuda_on_cpu {

#if defined(__x86_64__) && !defined(CUDA_ON_CPU_UCONTEXT)

using Context = void*;  // the stack pointer; the callee-saved registers are on the stack

}  // namespace cuda_on_cpu

// void cuda_on_cpu_switch(Context* from, const Context* to): push the registers, switch stacks, pop the registers.
asm(R"(
    .text
    .hidden cuda_on_cpu_switch
    .globl cuda_on_cpu_switch
cuda_on_cpu_switch:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov (%rsi), %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
)");
extern "C" void cuda_on_cpu_switch(void** from, void* const* to);

namespace cuda_on_cpu {

inline void switch_context(Context& from, const Context& to) { cuda_on_cpu_switch(&from, &to); }

// A context that starts in `entry`, with six registers to pop. The empty slot above stands for a return address,
// for the alignment of the stack.
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + size) - 2;
    *top = reinterpret_cast<void*>(entry);
    context = top - 6;
}

#else

}  // namespace cuda_on_cpu

#include <ucontext.h>

namespace cuda_on_cpu {

using Context = ucontext_t;

inline void switch_context(Context& from, const Context& to) { swapcontext(&from, &to); }

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}

#endif

// ---- A launch, and the threads of the current block -----------------------------------------------------------------

constexpr int WARP_SIZE = 32, MOST_THREADS = 1024, LANE_BYTES = 32;
constexpr size_t STACK = 64 << 10;
constexpr int POISON = 0xff;  // every byte of uninitialized memory: NaN as a float, -1 as an integer

enum Order { ROUND_ROBIN, FIRST_WARP_AHEAD, LAST_WARP_AHEAD, SHUFFLED };

struct Launch {
    uint3 grid, block;
    size_t shared;            // bytes of dynamic shared memory
    int order;
    const char* left_out_in;  // the barrier to delete: its file, or null
    int left_out_at;          // and line
};

enum Waiting { FOR_NOTHING, FOR_WARP, FOR_BLOCK, RETURNED };

struct Place {
    const char* operation;
    const char* file;
    int line;
    bool operator==(const Place& other) const {
        return line == other.line && (file == other.file || !std::strcmp(file, other.file));
    }
};

struct Fiber {
    Context context;
    uint3 thread;  // threadIdx
    int warp, lane;
    Waiting waiting;
    Place place;    // the line where the fiber waits
    unsigned mask;  // the lanes it waits for
    unsigned met;   // the lanes that took part in its last shuffle
};

// The values that the lanes of a warp write for a shuffle, and those that they read after it.
struct Warp { unsigned char brought[WARP_SIZE][LANE_BYTES], found[WARP_SIZE][LANE_BYTES]; };

inline Launch launch;
inline void (*kernel)(void** arguments);
inline void** arguments;
inline Fiber fibers[MOST_THREADS];
struct Copy { void* to; const void* from; bool zeros; };
inline std::vector<Copy> copies[MOST_THREADS];  // the asynchronous copies of each thread that it has not waited for
inline Warp warps[MOST_THREADS / WARP_SIZE];
inline int threads;
inline Fiber* running;
inline uint3 block_index;
inline Context scheduler;
inline char* dynamic_shared;
inline char message[1000];  // the error, or empty
inline void* fault_address;

// Stop this thread and the launch.
[[noreturn]] inline void fail() {
    switch_context(running->context, scheduler);
    __builtin_unreachable();
}

#define CUDA_ON_CPU_FAIL(format, ...) \
    (std::snprintf(cuda_on_cpu::message, sizeof cuda_on_cpu::message, \
                   "thread (%u, %u, %u) of block (%u, %u, %u): " format, \
                   cuda_on_cpu::running->thread.x, cuda_on_cpu::running->thread.y, cuda_on_cpu::running->thread.z, \
                   cuda_on_cpu::block_index.x, cuda_on_cpu::block_index.y, cuda_on_cpu::block_index.z, __VA_ARGS__), \
     cuda_on_cpu::fail())

inline void wait(Waiting waiting, Place place, unsigned mask = 0) {
    running->waiting = waiting;
    running->place = place;
    running->mask = mask;
    switch_context(running->context, scheduler);
}

inline bool left_out(const Place& place) {
    return launch.left_out_in && place.line == launch.left_out_at && std::strstr(place.file, launch.left_out_in);
}

// Write this lane's value, and wait for all lanes of the mask.
inline void meet(unsigned mask, const void* value, size_t size, Place place) {
    if (!(mask >> running->lane & 1))
        CUDA_ON_CPU_FAIL("%s at %s:%d with the mask 0x%x, in which its own lane, %d, is not", place.operation,
                         place.file, place.line, mask, running->lane);
    std::memcpy(warps[running->warp].brought[running->lane], value, size);
    wait(FOR_WARP, place, mask);
}

// After `meet`: the value of a lane. For a lane that did not take part the value is undefined on a GPU, here NaN.
template <class T> T found(int lane) {
    static_assert(sizeof(T) <= LANE_BYTES);
    T value;
    std::memset(&value, POISON, sizeof value);
    if (running->met >> lane & 1) std::memcpy(&value, warps[running->warp].found[lane], sizeof value);
    return value;
}

// ---- The scheduler --------------------------------------------------------------------------------------------------

// Resume the lanes of this warp whose mask is complete.
inline bool release_warp(int warp) {
    bool released = false;
    Fiber* lanes = fibers + warp * WARP_SIZE;
    const int count = threads - warp * WARP_SIZE < WARP_SIZE ? threads - warp * WARP_SIZE : WARP_SIZE;
    for (int first = 0; first < count; ++first) {
        if (lanes[first].waiting != FOR_WARP) continue;
        const unsigned mask = lanes[first].mask;
        unsigned here = 0, missing = 0;
        for (int lane = 0; lane < count; ++lane) {
            const Fiber& fiber = lanes[lane];
            if (!(mask >> lane & 1) || fiber.waiting == RETURNED) continue;
            const bool same = fiber.waiting == FOR_WARP && fiber.mask == mask && fiber.place == lanes[first].place;
            (same ? here : missing) |= 1u << lane;
        }
        if (missing) continue;
        for (int lane = 0; lane < count; ++lane) {
            if (!(here >> lane & 1)) continue;
            std::memcpy(warps[warp].found[lane], warps[warp].brought[lane], LANE_BYTES);
            lanes[lane].met = here;
            lanes[lane].waiting = FOR_NOTHING;
        }
        released = true;
    }
    return released;
}

// Run each of `count` threads from `first` on until it waits. Returns whether any thread ran.
inline bool step(int first, int count) {
    static uint32_t random = 1;
    int turn[MOST_THREADS];
    for (int i = 0; i < count; ++i) turn[i] = first + (launch.order == LAST_WARP_AHEAD ? count - 1 - i : i);
    if (launch.order == SHUFFLED)
        for (int i = count - 1; i > 0; --i) {
            random = random * 1664525 + 1013904223;
            std::swap(turn[i], turn[(random >> 8) % (i + 1)]);
        }
    bool moved = false;
    for (int i = 0; i < count; ++i) {
        running = &fibers[turn[i]];
        if (running->waiting != FOR_NOTHING) continue;
        moved = true;
        switch_context(scheduler, running->context);
        if (*message) return false;
    }
    for (int warp = first / WARP_SIZE; warp * WARP_SIZE < first + count; ++warp) moved |= release_warp(warp);
    return moved;
}

// No thread can run: report where each thread waits.
inline void explain_deadlock() {
    int used = std::snprintf(message, sizeof message, "block (%u, %u, %u): deadlock:", block_index.x, block_index.y,
                             block_index.z);
    bool told[MOST_THREADS] = {};
    const char* separator = "";
    for (int i = 0; i < threads; ++i) {
        if (told[i]) continue;
        const Fiber& fiber = fibers[i];
        int count = 0;
        for (int j = i; j < threads; ++j) {
            const bool same = fibers[j].waiting == fiber.waiting &&
                              (fiber.waiting == RETURNED ||
                               (fibers[j].mask == fiber.mask && fibers[j].place == fiber.place));
            told[j] |= same;
            count += same;
        }
        const size_t room = sizeof message - used;
        if (fiber.waiting == RETURNED)
            used += std::snprintf(message + used, room, "%s %d returned", separator, count);
        else
            used += std::snprintf(message + used, room, "%s %d of %d threads wait in %s at %s:%d", separator, count,
                                  threads, fiber.place.operation, fiber.place.file, fiber.place.line);
        if (used >= (int)sizeof message) return;
        separator = ",";
    }
}

// Resume all threads if those that have not returned wait at one barrier. Returns whether there are any.
inline bool release_block() {
    const Fiber* waiting = nullptr;
    for (int i = 0; i < threads; ++i) {
        if (fibers[i].waiting == RETURNED) continue;
        if (!waiting) waiting = &fibers[i];
        if (fibers[i].waiting != FOR_BLOCK || !(fibers[i].place == waiting->place)) {
            explain_deadlock();
            return false;
        }
    }
    for (int i = 0; i < threads; ++i)
        if (fibers[i].waiting == FOR_BLOCK) fibers[i].waiting = FOR_NOTHING;
    return waiting;
}

inline void thread_main() {
    kernel(arguments);
    running->waiting = RETURNED;
    switch_context(running->context, scheduler);
}

// Static shared memory: variables in a section of their own, whose bounds are linker symbols.
extern "C" {
extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
}

inline void run_block(char* stacks) {
    std::memset(__start_cuda_shared, POISON, __stop_cuda_shared - __start_cuda_shared);
    const size_t rounded = (launch.shared + 15) / 16 * 16;
    std::memset(dynamic_shared, POISON, rounded);
    const uint3 block = launch.block;
    for (int i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.thread = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
        fiber.warp = i / WARP_SIZE;
        fiber.lane = i % WARP_SIZE;
        fiber.waiting = FOR_NOTHING;
        fiber.mask = 0;
        copies[i].clear();
        prepare(fiber.context, stacks + i * STACK, STACK, thread_main);
    }
    // Round robin and shuffled: all threads run in turn. Else one warp runs to a barrier of the block, or to its end,
    // before the next warp starts.
    const bool ahead = launch.order == FIRST_WARP_AHEAD || launch.order == LAST_WARP_AHEAD;
    const int size = ahead ? WARP_SIZE : threads, groups = (threads + size - 1) / size;
    do {
        for (int i = 0; i < groups && !*message; ++i) {
            const int first = size * (launch.order == LAST_WARP_AHEAD ? groups - 1 - i : i);
            while (step(first, threads - first < size ? threads - first : size)) {}
        }
    } while (!*message && release_block());
    for (size_t i = launch.shared; i < rounded && !*message; ++i)  // the bytes before the protected page
        if ((unsigned char)dynamic_shared[i] != POISON)
            std::snprintf(message, sizeof message, "block (%u, %u, %u): wrote past the end of its %zu bytes of dynamic "
                          "shared memory", block_index.x, block_index.y, block_index.z, launch.shared);
}

inline void on_signal(int signal, siginfo_t* information, void*) {
    if (!running) {  // not in a kernel: the default action
        std::signal(signal, SIG_DFL);
        return;
    }
    if (signal == SIGILL)  // the trap of -fsanitize=undefined
        CUDA_ON_CPU_FAIL("%s", "a misaligned address, an index outside an array, a division by zero, or an overflow of "
                         "a signed integer");
    fault_address = information->si_addr;
    CUDA_ON_CPU_FAIL("%s", "memory access out of bounds");
}

// Within the scope of this object, denormal operands (bit 6) and results (bit 15) of float operations are 0.
struct FlushDenormals {
#ifdef __SSE__
    const unsigned before = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(before | 1 << 15 | 1 << 6); }
    ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

// Run all blocks of a kernel. Returns null, or the error.
inline const char* run(void (*function)(void**), const Launch& how, void** values) {
    kernel = function;
    arguments = values;
    launch = how;
    threads = how.block.x * how.block.y * how.block.z;
    *message = 0;
    fault_address = nullptr;

    static char* stacks = (char*)mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    const size_t page = sysconf(_SC_PAGESIZE), room = (how.shared + page - 1) / page * page;
    char* pages = (char*)mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + room, page, PROT_NONE);  // a protected page follows dynamic shared memory
    dynamic_shared = pages + room - (how.shared + 15) / 16 * 16;

    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    struct sigaction ours = {}, theirs[4];
    ours.sa_sigaction = on_signal;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER;  // the handler does not return: it switches stacks
    for (int i = 0; i < 4; ++i) sigaction(signals[i], &ours, &theirs[i]);

    const FlushDenormals flush_denormals;
    for (unsigned z = 0; z < how.grid.z && !*message; ++z)
        for (unsigned y = 0; y < how.grid.y && !*message; ++y)
            for (unsigned x = 0; x < how.grid.x && !*message; ++x) {
                block_index = {x, y, z};
                run_block(stacks);
            }

    running = nullptr;
    for (int i = 0; i < 4; ++i) sigaction(signals[i], &theirs[i], nullptr);
    munmap(pages, room + page);
    return *message ? message : nullptr;
}

}  // namespace cuda_on_cpu

// ---- The language ---------------------------------------------------------------------------------------------------

#define CUDA_ON_CPU
#define __global__
#define __device__
#define __constant__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("cuda_shared")))
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(cuda_on_cpu::dynamic_shared)

#define threadIdx (cuda_on_cpu::running->thread)
#define blockIdx (cuda_on_cpu::block_index)
#define blockDim (cuda_on_cpu::launch.block)
#define gridDim (cuda_on_cpu::launch.grid)
constexpr int warpSize = cuda_on_cpu::WARP_SIZE;

// As default arguments, __builtin_FILE and __builtin_LINE are those of the caller.
#define CUDA_ON_CPU_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_ON_CPU_CALLER) {
    const cuda_on_cpu::Place place = {"__syncthreads", file, line};
    if (!cuda_on_cpu::left_out(place)) cuda_on_cpu::wait(cuda_on_cpu::FOR_BLOCK, place);
}

inline void __syncwarp(unsigned mask = ~0u, CUDA_ON_CPU_CALLER) {
    const cuda_on_cpu::Place place = {"__syncwarp", file, line};
    if (!cuda_on_cpu::left_out(place)) cuda_on_cpu::meet(mask, "", 0, place);
}

// Shuffles: a lane reads the value of another lane of its group of `width` lanes, or its own if the other is outside.
template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CUDA_ON_CPU_CALLER) {
    cuda_on_cpu::meet(mask, &value, sizeof value, {"__shfl_sync", file, line});
    return cuda_on_cpu::found<T>((cuda_on_cpu::running->lane & ~(width - 1)) + (lane & (width - 1)));
}

template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUDA_ON_CPU_CALLER) {
    cuda_on_cpu::meet(mask, &value, sizeof value, {"__shfl_xor_sync", file, line});
    const int own = cuda_on_cpu::running->lane, lane = own ^ bits;
    return cuda_on_cpu::found<T>(lane / width <= own / width ? lane : own);
}

template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, CUDA_ON_CPU_CALLER) {
    cuda_on_cpu::meet(mask, &value, sizeof value, {"__shfl_down_sync", file, line});
    const int own = cuda_on_cpu::running->lane;
    return cuda_on_cpu::found<T>(own % width + distance < (unsigned)width ? own + distance : own);
}

template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, CUDA_ON_CPU_CALLER) {
    cuda_on_cpu::meet(mask, &value, sizeof value, {"__shfl_up_sync", file, line});
    const int own = cuda_on_cpu::running->lane;
    return cuda_on_cpu::found<T>((unsigned)(own % width) >= distance ? own - distance : own);
}

template <class T> T atomicAdd(T* address, std::common_type_t<T> value) {
    const T before = *address;
    *address = before + value;
    return before;
}

template <class T> T __ldg(const T* address) { return *address; }

using std::isinf;
using std::max;
using std::min;
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }

template <class To, class From> To cuda_on_cpu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return cuda_on_cpu_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu_bits<float>(x); }
inline int __float_as_int(float x) { return cuda_on_cpu_bits<int>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu_bits<float>(x); }

// Vector types, aligned as on a GPU.
#define CUDA_ON_CPU_VECTORS(type, name) \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; }; \
    struct alignas(4 * sizeof(type)) name##4 { type x, y, z, w; }; \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_ON_CPU_VECTORS(float, float)
CUDA_ON_CPU_VECTORS(int, int)
CUDA_ON_CPU_VECTORS(unsigned, uint)

// float16: 5 bits of exponent, 10 of fraction; below 2⁻¹⁴ integer multiples of 2⁻²⁴. (A GPU has instructions for these
// casts. bfloat16 is in minigrad/kernels/cuda/stored.cuh.)
struct __half { uint16_t bits; };
inline float __half2float(__half x) {
    const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? std::ldexp(float(1024 + fraction), exponent - 25)
                                      : std::ldexp(float(fraction), -24);
    return x.bits >> 15 ? -size : size;
}
inline __half __float2half(float x) {
    const uint16_t sign = __float_as_uint(x) >> 31 << 15;
    const float size = std::fabs(x);
    if (x != x) return {0x7fff};
    if (size >= 65536) return {(uint16_t)(sign | 0x7c00)};  // infinity; values from 65520 on round to it below
    int exponent = -13;
    if (size >= 0x1p-14f) std::frexp(size, &exponent);
    const int units = (int)std::nearbyint(std::ldexp(size, 11 - exponent));  // 11 bits, the first implicit
    return {(uint16_t)(sign | ((exponent + 13) * 1024 + units))};
}

// Tensor cores: the functions that minigrad/kernels/cuda/mma.cuh implements by instructions, with the register layout
// documented there. `Number` is BFloat16 or Half.
template <class Number>
void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, Number, CUDA_ON_CPU_CALLER) {
    struct Registers { unsigned a[4], b[2]; };
    const Registers mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    cuda_on_cpu::meet(~0u, &mine, sizeof mine, {"multiply", file, line});
    const int g = cuda_on_cpu::running->lane / 4, t = cuda_on_cpu::running->lane % 4;
    for (int k = 0; k < 16; ++k) {
        const int holder = k % 8 / 2, half = k / 8;  // t of the lane that has column k of A, and row k of B
        const auto number = [k](unsigned pair) {
            const uint16_t bits = pair >> k % 2 * 16;
            Number number;
            std::memcpy(&number, &bits, 2);
            return (float)number;
        };
        const auto rows = cuda_on_cpu::found<Registers>(4 * g + holder);
        for (int j = 0; j < 2; ++j) {
            const auto column = cuda_on_cpu::found<Registers>(4 * (2 * t + j) + holder);
            c[j] += number(rows.a[2 * half]) * number(column.b[half]);
            c[2 + j] += number(rows.a[2 * half + 1]) * number(column.b[half]);
        }
    }
}

template <bool TRANSPOSED>
void load_tiles(unsigned (&tiles)[4], const void* address, CUDA_ON_CPU_CALLER) {
    struct Row { uint16_t at[8]; };
    if ((uintptr_t)address % 16) CUDA_ON_CPU_FAIL("load_tiles at %s:%d of a row at a misaligned address", file, line);
    Row mine;
    std::memcpy(&mine, address, sizeof mine);
    cuda_on_cpu::meet(~0u, &mine, sizeof mine, {"load_tiles", file, line});
    const int g = cuda_on_cpu::running->lane / 4, t = cuda_on_cpu::running->lane % 4;
    for (int tile = 0; tile < 4; ++tile) {
        unsigned pair[2];
        for (int i = 0; i < 2; ++i) {
            const int row = TRANSPOSED ? 2 * t + i : g, column = TRANSPOSED ? g : 2 * t + i;
            pair[i] = cuda_on_cpu::found<Row>(8 * tile + row).at[column];
        }
        tiles[tile] = pair[0] | pair[1] << 16;
    }
}

inline void copy_async(void* to, const void* from, bool zeros, CUDA_ON_CPU_CALLER) {
    if (((uintptr_t)to | (uintptr_t)from) % 16)
        CUDA_ON_CPU_FAIL("copy_async at %s:%d with a misaligned address", file, line);
    cuda_on_cpu::copies[cuda_on_cpu::running - cuda_on_cpu::fibers].push_back({to, from, zeros});
}
inline void wait_for_copies() {
    auto& copies = cuda_on_cpu::copies[cuda_on_cpu::running - cuda_on_cpu::fibers];
    for (const auto& copy : copies) {
        if (copy.zeros) std::memset(copy.to, 0, 16);
        else std::memcpy(copy.to, copy.from, 16);
    }
    copies.clear();
}

// ---- For the runner: a kernel's signature as a string, and a function that unpacks its arguments --------------------

struct BFloat16;  // of minigrad/kernels/cuda/stored.cuh
struct Half;

namespace cuda_on_cpu {

// "f4" for float, "*f4" for float*, "*cf4" for const float*; B is bfloat16, V any other type.
template <class T> void describe(char*& text) {
    using Plain = std::remove_cv_t<std::remove_pointer_t<T>>;
    if constexpr (std::is_pointer_v<T>) *text++ = '*';
    if (std::is_const_v<std::remove_pointer_t<T>>) *text++ = 'c';
    *text++ = std::is_same_v<Plain, BFloat16> ? 'B'
              : std::is_floating_point_v<Plain> || std::is_same_v<Plain, Half> ? 'f'
              : std::is_same_v<Plain, bool>     ? 'b'
              : !std::is_integral_v<Plain>      ? 'V'
              : std::is_signed_v<Plain>         ? 'i'
                                                : 'u';
    if constexpr (std::is_void_v<Plain>) text += std::sprintf(text, "0 ");
    else text += std::sprintf(text, "%zu ", sizeof(Plain));
}

template <class... P> const char* signature(void (*)(P...)) {
    static char text[8 * sizeof...(P) + 1];
    char* end = text;
    (describe<P>(end), ...);
    return text;
}

template <auto function, class... P, size_t... I>
void unpack(void (*)(P...), void** values, std::index_sequence<I...>) {
    function(*static_cast<P*>(values[I])...);
}

template <auto function, class... P> constexpr auto unpacking(void (*)(P...)) {
    return [](void** values) { unpack<function>(function, values, std::index_sequence_for<P...>()); };
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_EXPORT extern "C" __attribute__((visibility("default")))
#define EXPORT_KERNEL(name) \
    CUDA_ON_CPU_EXPORT const char* signature_##name() { return cuda_on_cpu::signature(name); } \
    CUDA_ON_CPU_EXPORT const char* run_##name(const cuda_on_cpu::Launch* how, void** values) { \
        return cuda_on_cpu::run(cuda_on_cpu::unpacking<name>(name), *how, values); \
    }
CUDA_ON_CPU_EXPORT void* cuda_on_cpu_fault() { return cuda_on_cpu::fault_address; }
