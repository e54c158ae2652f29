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
constexpr int64_t kListChunk = 16384;  // elements that a block takes
constexpr int64_t kByteChunk = 65536;  // likewise where bytes are copied

// `depth` lists of tensors that go together, each a dense block of memory.
template <int depth>
struct List {
  void* data[depth][kMaxTensors];
  int64_t size[kMaxTensors];             // elements
  int32_t first_block[kMaxTensors + 1];  // of each tensor
  int32_t tensors;
  int64_t chunk;  // elements that a block takes
};

// The elements of one tensor that this block takes.
struct Piece {
  int tensor;
  int64_t begin;
  int size;
};

template <int depth>
__device__ Piece piece_of(const List<depth>& list) {
  int low = 0, high = list.tensors;  // the last tensor whose first block is not after this one
  while (high - low > 1) {
    int middle = (low + high) / 2;
    (static_cast<int>(blockIdx.x) < list.first_block[middle] ? high : low) = middle;
  }
  int64_t begin = (blockIdx.x - list.first_block[low]) * list.chunk;
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

// Calls f(width, i) until all elements are covered: 16 bytes at a time where the pointers allow it.
template <class T, class F>
__device__ void for_each_pack(int size, bool is_aligned, F f) {
  using Wide = Width<16 / sizeof(T)>;
  int packed = is_aligned ? size / Wide::value * Wide::value : 0;
  for (int i = threadIdx.x * Wide::value; i < packed; i += blockDim.x * Wide::value) f(Wide{}, i);
  for (int i = packed + threadIdx.x; i < size; i += blockDim.x) f(Width<1>{}, i);
}

// sum + x^2 in one instruction, as most GPUs have few units for float64. (The build fuses none by
// itself. The square of a float32 is exact either way.)
template <class A>
__device__ double add_square(double sum, A x) {
  return fma(static_cast<double>(x), static_cast<double>(x), sum);
}

struct AddDoubles {
  __device__ double operator()(double a, double b) const { return a + b; }
};

// By one block, in an order that depends on its size alone.
__device__ inline double sum_of(const double* partial, int64_t n) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
  return reduce(sum, AddDoubles{});
}

}  // namespace ausam::cuda
