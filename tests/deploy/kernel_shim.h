// The little of CUDA that the kernels use, for a processor: one thread after the other, in an order that is shuffled.
#include <math.h>
#include <stdint.h>
#include <algorithm>
#include <numeric>
using std::max;
using std::min;
#define __global__
#define __device__
#define __forceinline__ inline
struct Index { unsigned x; };
static thread_local Index blockIdx, blockDim, threadIdx;
template <class T> static T atomicMin(T *at, T value) { T old = *at; *at = min(old, value); return old; }
template <class T> static T atomicMax(T *at, T value) { T old = *at; *at = max(old, value); return old; }
template <class T> static T atomicAdd(T *at, T value) { T old = *at; *at += value; return old; }
static inline unsigned long long atomicOr(unsigned long long *at, unsigned long long value) {
    unsigned long long old = *at; *at |= value; return old;
}
static inline unsigned long long atomicAnd(unsigned long long *at, unsigned long long value) {
    unsigned long long old = *at; *at &= value; return old;
}
static inline int __popcll(unsigned long long mask) { return __builtin_popcountll(mask); }

// Blocks of 256 threads, as the driver is asked for; every thread of every block, in an order that jumps about.
template <class F> static void run_all(int threads, unsigned seed, F kernel) {
    uint64_t count = 256ull * max((threads + 255) / 256, 1), step = 1;
    if (seed) for (step = 2654435761ull * seed % count | 1; std::gcd(step, count) != 1;) step += 2;
    blockDim.x = 256;
    for (uint64_t i = 0, thread = 0; i < count; i++, thread = (thread + step) % count) {
        blockIdx.x = thread / 256;
        threadIdx.x = thread % 256;
        kernel();
    }
}
