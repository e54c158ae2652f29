// The norm of a list of tensors.
#pragma once

#include "list.cuh"

namespace ausam::cuda {

// partial[block] = ||g||^2 of a piece, or || |w| g ||^2 for the adaptive perturbation; `list`: w, g
template <class T, class A>
__global__ void __launch_bounds__(kListThreads, kListBlocks)
    squared_norms(const __grid_constant__ List<2> list, bool adaptive, double* partial) {
  Piece piece = piece_of(list, blockIdx.x);
  auto* w = static_cast<const T*>(list.data[0][piece.tensor]) + piece.begin;
  auto* g = static_cast<const T*>(list.data[1][piece.tensor]) + piece.begin;
  double sum = 0;
  for_each_pack<T>(piece.size, aligned(w, g), [&](auto width, int i) {
    auto grad = load(g + i, width);
    auto param = grad;
    if (adaptive) param = load(w + i, width);
    for (int j = 0; j < width.value; ++j) {
      A x = static_cast<A>(grad.value[j]);
      if (adaptive) x *= static_cast<A>(param.value[j]);
      sum = add_square(sum, x);
    }
  });
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

}  // namespace ausam::cuda
