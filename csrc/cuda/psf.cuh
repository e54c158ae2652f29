// The sharpness part of SAM's gradient, PSF = g_SAM - g_SGD (vSAM Eq. 5, 11), and its reuse (Eq.
// 17).
#pragma once

#include "list.cuh"

namespace ausam::cuda {

// psf = grad - psf; both squared norms of the pieces of tensors from `norm_from` on; `list`: psf,
// grad
template <class T, class A>
__global__ void __launch_bounds__(kListThreads, kListBlocks)
    capture(const __grid_constant__ List<2> list, int norm_from, double* psf_partial,
            double* sgd_partial) {
  Piece piece = piece_of(list, blockIdx.x);
  auto* psf = static_cast<T*>(list.data[0][piece.tensor]) + piece.begin;
  auto* grad = static_cast<const T*>(list.data[1][piece.tensor]) + piece.begin;
  bool norms = piece.tensor >= norm_from;
  double psf_sum = 0, sgd_sum = 0;
  for_each_pack<T>(piece.size, aligned(psf, grad), [&](auto width, int i) {
    auto p = load(psf + i, width);
    auto g = load(grad + i, width);
    for (int j = 0; j < width.value; ++j) {
      A sgd = static_cast<A>(p.value[j]);
      p.value[j] = static_cast<T>(static_cast<A>(g.value[j]) - sgd);
      if (!norms) continue;
      sgd_sum = add_square(sgd_sum, sgd);
      psf_sum = add_square(psf_sum, static_cast<A>(p.value[j]));
    }
    store(psf + i, p, width);
  });
  psf_sum = sum_of_block(psf_sum);
  sgd_sum = sum_of_block(sgd_sum);
  if (threadIdx.x > 0) return;
  psf_partial[blockIdx.x] = psf_sum;
  sgd_partial[blockIdx.x] = sgd_sum;
}

// scale *= min(1, norm / limit), with the norm from the parts of its square; whole if the limit
// is 0 or a value is not a number. One block.
__global__ void bound(const double* sums, int64_t n, const double* limit, double* scale) {
  double share = sqrt(sum_of(sums, n)) / *limit;
  if (threadIdx.x == 0 && share < 1) *scale *= share;
}

// grad += scale * psf. A scale of 0 touches nothing, even if psf is not finite; `list`: grad,
// psf. Backwards, as ascend.
template <class T, class A, class S>
__global__ void __launch_bounds__(kListThreads, kListBlocks)
    reuse(const __grid_constant__ List<2> list, const S* scale, double given) {
  A s = static_cast<A>(scale ? static_cast<double>(*scale) : given);
  if (s == 0) return;
  Piece piece = piece_of(list, gridDim.x - 1 - blockIdx.x);
  auto* grad = static_cast<T*>(list.data[0][piece.tensor]) + piece.begin;
  auto* psf = static_cast<const T*>(list.data[1][piece.tensor]) + piece.begin;
  for_each_pack<T>(piece.size, aligned(grad, psf), [&](auto width, int i) {
    auto g = load(grad + i, width);
    auto p = load(psf + i, width);
    for (int j = 0; j < width.value; ++j)
      g.value[j] = static_cast<T>(static_cast<A>(g.value[j]) + s * static_cast<A>(p.value[j]));
    store(grad + i, g, width);
  });
}

}  // namespace ausam::cuda
