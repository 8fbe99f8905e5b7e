// The little of CUDA that the kernels use, for a processor: one thread after the other, in an order that is shuffled.
#include <math.h>
#include <stdint.h>
#include <algorithm>
#include <numeric>
#include <random>
#include <vector>
using std::max;
using std::min;
#define __global__
#define __device__
#define __forceinline__ inline
struct Index { unsigned x; };
static thread_local Index blockIdx, blockDim, threadIdx;
template <class T> static T atomicMin(T *at, T value) { T old = *at; *at = min(old, value); return old; }
template <class T> static T atomicMax(T *at, T value) { T old = *at; *at = max(old, value); return old; }
static inline unsigned long long atomicOr(unsigned long long *at, unsigned long long value) {
    unsigned long long old = *at; *at |= value; return old;
}
static inline unsigned long long atomicAnd(unsigned long long *at, unsigned long long value) {
    unsigned long long old = *at; *at &= value; return old;
}
static inline int __popcll(unsigned long long mask) { return __builtin_popcountll(mask); }

// Blocks of 256 threads, as the driver is asked for; every thread of every block, in any order.
template <class F> static void run_all(int threads, unsigned seed, F kernel) {
    int blocks = max((threads + 255) / 256, 1);
    std::vector<int> order((size_t)blocks * 256);
    std::iota(order.begin(), order.end(), 0);
    if (seed) std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    blockDim.x = 256;
    for (int thread : order) {
        blockIdx.x = thread / 256;
        threadIdx.x = thread % 256;
        kernel();
    }
}
