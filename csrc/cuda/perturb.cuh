// SAM's ascent (AUSAM Eq. 2, vSAM Eq. 2) and the way back.
#pragma once

#include "norm.cuh"

namespace ausam::cuda {

// norm = sqrt(sum of sums), or `sums` itself if it is the norm already; scale = rho / (norm +
// 1e-12), 0 if the norm is zero or not finite. One block.
template <class N>
__global__ void finish_norm(const double* sums, int64_t n, bool is_norm, double rho, N* norm,
                            double* scale) {
  double value = is_norm ? *sums : sqrt(sum_of(sums, n));
  if (threadIdx.x > 0) return;
  *norm = static_cast<N>(value);
  *scale = value > 0 && value - value == 0 ? rho / (value + 1e-12) : 0;
}

// backup = w, w += scale * g (adaptive: scale * w^2 g); `list`: w, g, backup. Backwards: the norm's
// kernel read the end of g last, and the L2 cache may still hold it.
template <class T, class A>
__global__ void __launch_bounds__(kListThreads, kListBlocks)
    ascend(const __grid_constant__ List<3> list, bool adaptive, const double* scale) {
  Piece piece = piece_of(list, gridDim.x - 1 - blockIdx.x);
  auto* w = static_cast<T*>(list.data[0][piece.tensor]) + piece.begin;
  auto* g = static_cast<const T*>(list.data[1][piece.tensor]) + piece.begin;
  auto* backup = static_cast<T*>(list.data[2][piece.tensor]) + piece.begin;
  A s = static_cast<A>(*scale);
  for_each_pack<T>(piece.size, aligned(w, g, backup), [&](auto width, int i) {
    auto param = load(w + i, width);
    auto grad = load(g + i, width);  // before the store: nvcc cannot know that it is not to g
    store(backup + i, param, width);
    if (s == 0) return;
    for (int j = 0; j < width.value; ++j) {
      A x = static_cast<A>(param.value[j]), step = static_cast<A>(grad.value[j]);
      if (adaptive) step = x * x * step;
      param.value[j] = static_cast<T>(x + s * step);
    }
    store(w + i, param, width);
  });
}

// w = backup, as bytes; `list`: w, backup
__global__ void __launch_bounds__(kListThreads, kListBlocks)
    copy_bytes(const __grid_constant__ List<2> list) {
  Piece piece = piece_of(list, blockIdx.x);
  auto* w = static_cast<unsigned char*>(list.data[0][piece.tensor]) + piece.begin;
  auto* backup = static_cast<const unsigned char*>(list.data[1][piece.tensor]) + piece.begin;
  for_each_pack<unsigned char>(piece.size, aligned(w, backup), [&](auto width, int i) {
    store(w + i, load(backup + i, width), width);
  });
}

}  // namespace ausam::cuda
