// Kernels with a mistake each, and without it: the emulation has to tell them apart. They work in
// place on one int per thread of one block, unless said otherwise.
#include "../../csrc/cuda/block.cuh"

using namespace ausam::cuda;

namespace {

// data[0] = the sum. The mistake: no barrier between the steps.
template <bool broken>
__global__ void tree_sum(int* data) {
  int *partial = &shared_memory<int>(), t = threadIdx.x;
  partial[t] = data[t];
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) partial[t] += partial[t + half];
    if (!broken) __syncthreads();
  }
  if (t == 0) data[0] = partial[0];
}

// Inclusive sums. The mistake: totals of warps are read without a barrier.
template <bool broken>
__global__ void scan(int* data) {
  int *totals = &shared_memory<int>(), sum = data[threadIdx.x];
  for (int step = 1; step < 32; step *= 2) {
    int other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane() >= step) sum += other;
  }
  if (lane() == 31) totals[warp()] = sum;
  if (!broken) __syncthreads();
  for (int w = 0; w < warp(); ++w) sum += totals[w];
  data[threadIdx.x] = sum;
}

// Sorts. The mistake: between steps within a warp, nothing waits.
template <bool broken>
__global__ void bitonic_sort(int* data) {
  int *key = &shared_memory<int>(), t = threadIdx.x, n = 2 * blockDim.x;
  key[t] = data[t];
  key[t + n / 2] = data[t + n / 2];
  for (int size = 2; size <= n; size *= 2)
    for (int step = size / 2; step > 0; step /= 2) {
      if (!broken || step > 32) __syncthreads();
      int i = 2 * t - (t & (step - 1)), j = i + step;
      bool up = (i & size) == 0;
      if ((key[i] > key[j]) == up) {
        int swapped = key[i];
        key[i] = key[j];
        key[j] = swapped;
      }
    }
  __syncthreads();
  data[t] = key[t];
  data[t + n / 2] = key[t + n / 2];
}

// The mistake: the block waits at two barriers.
template <bool broken>
__global__ void divergent_barrier(int* data) {
  if (broken && threadIdx.x < 96)
    __syncthreads();
  else
    __syncthreads();
  data[threadIdx.x] = 1;
}

// The mistake: a thread returns before a barrier.
template <bool broken>
__global__ void early_return(int* data) {
  if (broken && threadIdx.x >= 96) return;
  __syncthreads();
  data[threadIdx.x] = 1;
}

// The mistake: half a warp shuffles in the name of the whole.
template <bool broken>
__global__ void lane_missing(int* data) {
  unsigned mask = broken ? kAllLanes : 0xffff;
  if (lane() < 16) data[threadIdx.x] = __shfl_xor_sync(mask, data[threadIdx.x], 1);
}

template <bool broken>
__global__ void not_in_own_mask(int* data) {
  data[threadIdx.x] = __any_sync(broken ? 0xffff : kAllLanes, data[threadIdx.x]);
}

template <bool broken>
__global__ void reads_beyond_mask(int* data) {
  if (lane() < 16) data[threadIdx.x] = __shfl_sync(0xffff, data[threadIdx.x], broken ? 16 : 15);
}

template <bool broken>
__global__ void unwritten_shared(int* data) {
  int* x = &shared_memory<int>();
  if (!broken || threadIdx.x != 7) x[threadIdx.x] = 1;
  __syncthreads();
  data[threadIdx.x] = x[threadIdx.x];
}

// Lanes read what their neighbours have written. The mistake: half of them only have waited for it.
template <bool broken>
__global__ void within_warp(int* data) {
  int *x = &shared_memory<int>(), t = threadIdx.x;
  x[t] = data[t];
  if (broken)
    __syncwarp(lane() < 16 ? 0xffff : 0xffff0000);
  else
    __syncwarp();
  data[t] = x[t ^ 16];
}

template <bool broken>
__global__ void outside_shared(int* data) {
  int *x = &shared_memory<int>(), t = threadIdx.x;
  x[broken ? t + 1 : t] = data[t];
  __syncthreads();
  data[t] = x[t];
}

template <bool broken>
__global__ void outside_global(int* data) {
  data[threadIdx.x + broken] = 1;
}

// Two ints at once, which have to be aligned to their size.
template <bool broken>
__global__ void misaligned(int* data) {
  struct alignas(8) Pair {
    int x, y;
  };
  if (threadIdx.x < 2) reinterpret_cast<Pair*>(data + broken)[threadIdx.x].x = 1;
}

// How many threads there are, in data[0]. The mistake: not atomic.
template <bool broken>
__global__ void count_threads(int* data) {
  if (threadIdx.x == 0) data[0] = 0;
  __syncthreads();
  if (broken)
    ++data[0];
  else
    atomicAdd(data, 1);
}

// All threads write the same. The mistake: not by relaxed stores.
template <bool broken>
__global__ void one_place(int* data) {
  if (broken)
    data[0] = 1;
  else
    *const_cast<volatile int*>(data) = 1;
}

// Several blocks. The mistake: a block reads what another one writes.
template <bool broken>
__global__ void across_blocks(int* data) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
  data[i] = data[broken ? (i + 1) % n : i] + 1;
}

int run(void (*kernel)(int*), int blocks, int threads, size_t shared, int* data) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  return cudaLaunchKernelEx(&config, kernel, data);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

#define KERNEL(name)                                                                         \
  EXPORT int name##_kernel(bool broken, int blocks, int threads, size_t shared, int* data) { \
    return run(broken ? name<true> : name<false>, blocks, threads, shared, data);            \
  }
KERNEL(tree_sum)
KERNEL(scan)
KERNEL(bitonic_sort)
KERNEL(divergent_barrier)
KERNEL(early_return)
KERNEL(lane_missing)
KERNEL(not_in_own_mask)
KERNEL(reads_beyond_mask)
KERNEL(unwritten_shared)
KERNEL(within_warp)
KERNEL(outside_shared)
KERNEL(outside_global)
KERNEL(misaligned)
KERNEL(count_threads)
KERNEL(one_place)
KERNEL(across_blocks)

EXPORT int opt_in(int bytes) {
  return cudaFuncSetAttribute(tree_sum<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}
