// Lists of tensors in one launch: a table of pointers in the kernel's arguments, blocks dealt out
// over all tensors.
#pragma once

#include "block.cuh"

namespace ausam::cuda {

// The table has to fit the arguments of a kernel: 4 KB, 32 KB from CUDA 12.1 on.
#if defined(CUDART_VERSION) && CUDART_VERSION >= 12010
constexpr int kMaxTensors = 640;
#else
constexpr int kMaxTensors = 90;
#endif
constexpr int kListThreads = 512;
// Blocks that a multiprocessor has registers for at once: as many as its threads allow, but three
// of four on Blackwell.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900
constexpr int kListBlocks = 4;
#elif __CUDA_ARCH__ == 750
constexpr int kListBlocks = 2;
#else
constexpr int kListBlocks = 3;
#endif

// `depth` lists of tensors that go together, each a dense block of memory.
template <int depth>
struct List {
  void* data[depth][kMaxTensors];
  int64_t size[kMaxTensors];             // elements
  int32_t first_block[kMaxTensors + 1];  // of each tensor
  int32_t tensors;
  int64_t chunk;  // elements that a block takes
};

// The elements of one tensor that a block takes.
struct Piece {
  int tensor;
  int64_t begin;
  int size;
};

template <int depth>
__device__ Piece piece_of(const List<depth>& list, int block) {
  int low = 0, high = list.tensors;  // the last tensor whose first block is not after this one
  while (high - low > 1) {
    int middle = (low + high) / 2;
    (block < list.first_block[middle] ? high : low) = middle;
  }
  int64_t begin = (block - list.first_block[low]) * list.chunk;
  int64_t left = list.size[low] - begin;
  return {low, begin, static_cast<int>(left < list.chunk ? left : list.chunk)};
}

// Elements that are loaded or stored at once.
template <class T, int width>
struct alignas(width * sizeof(T)) Pack {
  T value[width];
};

template <int width>
struct Width {
  static constexpr int value = width;
};

template <class T, class W>
__device__ Pack<T, W::value> load(const T* p, W) {
  return *reinterpret_cast<const Pack<T, W::value>*>(p);
}

template <class T, class W>
__device__ void store(T* p, const Pack<T, W::value>& pack, W) {
  *reinterpret_cast<Pack<T, W::value>*>(p) = pack;
}

template <class... T>
__device__ bool aligned(const T*... p) {
  return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}

// Calls f(width, i) until all elements are covered: 16 bytes at a time if the pointers allow it.
template <class T, class F>
__device__ void for_each_pack(int size, bool is_aligned, F f) {
  using Wide = Width<16 / sizeof(T)>;
  int packed = is_aligned ? size / Wide::value * Wide::value : 0;
  for (int i = threadIdx.x * Wide::value; i < packed; i += blockDim.x * Wide::value) f(Wide{}, i);
  for (int i = packed + threadIdx.x; i < size; i += blockDim.x) f(Width<1>{}, i);
}

// sum + x^2, rounded once.
__device__ inline double add_square(double sum, double x) { return fma(x, x, sum); }

// Most GPUs have few units for float64, and a conversion to it keeps them as long as a product
// does. So |x| * 2^-896 and |x| * 2^896 are put together from the bits of x: their product is x^2,
// for infinity and NaN too. (What is below 2^-126 counts as 0.)
__device__ inline double add_square(double sum, float x) {
  int bits = __float_as_int(x) & 0x7fffffff, high = bits >> 3, low = bits << 29;
  int raised = bits < 0x00800000 ? high : high + 0x70000000;
  return fma(__hiloint2double(high, low), __hiloint2double(raised, low), sum);
}

constexpr int kSumBytes = kListThreads * sizeof(double);  // of shared memory

// The sum over the threads of a block, in a fixed order, for its first warp, which adds all of
// them: if each warp reduced its own first, that would be four times as many instructions of
// float64.
__device__ inline double sum_of_block(double value) {
  double* of_thread = &shared_memory<double>();
  __syncthreads();  // the last call's values have been read
  of_thread[threadIdx.x] = value;
  __syncthreads();
  double sum = 0;
  if (warp() > 0) return sum;
  for (int w = 0; w < kListThreads / 32; ++w) sum += of_thread[w * 32 + lane()];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

// By one block, in an order that depends only on its size, for its first warp.
__device__ inline double sum_of(const double* partial, int64_t n) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
  return sum_of_block(sum);
}

}  // namespace ausam::cuda
