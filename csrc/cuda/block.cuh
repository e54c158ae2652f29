// What a block of threads does together. Blocks are one-dimensional and whole warps. All shared
// memory is dynamic: its first kScratch bytes belong to the functions here.
#pragma once

#include <cstdint>

namespace ausam::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxWarps = 32;
constexpr int kScratch = 16 * kMaxWarps;  // bytes

template <class T>
__device__ T* shared_memory(int byte = 0) {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory + byte);
}

__device__ inline int lane() { return threadIdx.x & 31; }
__device__ inline int warp() { return threadIdx.x >> 5; }
__device__ inline int warps() { return blockDim.x >> 5; }

// Combines one value of every thread with `op`, in a fixed order; every thread gets the result.
// `op` must give the same bits for both orders of its arguments.
template <class T, class Op>
__device__ T reduce(T value, Op op) {
  static_assert(sizeof(T) <= 16);
  T* partial = shared_memory<T>();
  for (int step = 16; step > 0; step /= 2)
    value = op(value, __shfl_xor_sync(kAllLanes, value, step));
  __syncthreads();  // the last call's partial results have been read
  if (lane() == 0) partial[warp()] = value;
  __syncthreads();
  value = partial[0];
  for (int w = 1; w < warps(); ++w) value = op(value, partial[w]);
  return value;
}

// How many threads before this one have the flag set, and how many in all.
struct Rank {
  int before, total;
};

__device__ inline Rank rank(bool flag) {
  int* partial = shared_memory<int>();
  unsigned votes = __ballot_sync(kAllLanes, flag);
  __syncthreads();
  if (lane() == 0) partial[warp()] = __popc(votes);
  __syncthreads();
  Rank r{__popc(votes & ((1u << lane()) - 1)), 0};
  for (int w = 0; w < warps(); ++w) {
    if (w < warp()) r.before += partial[w];
    r.total += partial[w];
  }
  return r;
}

}  // namespace ausam::cuda
