// Put in front of every file of this folder. No header of the toolkit is needed, so that NVRTC alone compiles them.
//
// House rules: one thread per item in a one-dimensional grid, no shared memory, no order between threads that a result
// depends on. So the same source, compiled for the processor with threads in any order, must give the same bits.
// Sums of floats follow the cloud's order; compile without fused multiply-add (--fmad=false), as the host computes.

typedef unsigned long long u64;
typedef unsigned char u8;

#define KERNEL extern "C" __global__ void
#define THREAD ((int)(blockIdx.x * blockDim.x + threadIdx.x))

// Columns of a grid carry a border of one, as altermoma.ops.column_kernels lays them out: cell (x, y, z) is bit z + 1 of
// mask (x + 1) * (Y + 2) + y + 1.
static __device__ __forceinline__ int bits_below(u64 mask, int bit) { return __popcll(mask & ((1ull << bit) - 1ull)); }
