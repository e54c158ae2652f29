// What a block of threads does together. Blocks are one-dimensional and whole warps. All shared
// memory is dynamic: a kernel names what it holds in one struct.
#pragma once

#include <cstdint>

namespace ausam::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxWarps = 32;
constexpr int kScratch = 16 * kMaxWarps;  // bytes of a kernel that only reduces

template <class T>
__device__ T& shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return *reinterpret_cast<T*>(memory);
}

__device__ inline int lane() { return threadIdx.x & 31; }
__device__ inline int warp() { return threadIdx.x >> 5; }
__device__ inline int warps() { return blockDim.x >> 5; }

// The value of the lane whose number differs in the bits of `by`.
template <class T>
__device__ T from_lane(T value, int by) {
  static_assert(sizeof(T) % sizeof(int) == 0);
  int* words = reinterpret_cast<int*>(&value);
  for (size_t i = 0; i < sizeof(T) / sizeof(int); ++i)
    words[i] = __shfl_xor_sync(kAllLanes, words[i], by);
  return value;
}

// Combines one value of every thread with `op`, in a fixed order; every thread gets the result.
// `op` must give the same bits for both orders of its arguments. One barrier; `partial` has a place
// for every warp, which no thread has used since the barrier before.
template <class T, class Op>
__device__ T reduce(T value, Op op, T* partial) {
  for (int by = 16; by > 0; by /= 2) value = op(value, from_lane(value, by));
  if (lane() == 0) partial[warp()] = value;
  __syncthreads();
  value = partial[0];
  for (int w = 1; w < warps(); ++w) value = op(value, partial[w]);
  return value;
}

// The same in the first kScratch bytes of shared memory, also several times in a row.
template <class T, class Op>
__device__ T reduce(T value, Op op) {
  static_assert(sizeof(T) * kMaxWarps <= kScratch);
  __syncthreads();  // the last call's partial results have been read
  return reduce(value, op, &shared_memory<T>());
}

}  // namespace ausam::cuda
