// Sliced variance of the PSF's norms (vSAM Eq. 8).
#pragma once

#include "block.cuh"
#include "vectors.cuh"

namespace ausam::cuda {

// NaN last, as torch.sort has it
__device__ inline bool before(double a, double b) { return a < b || (a == a && b != b); }

// Unbiased, in two passes: the first takes the mean out, the second has nothing to cancel.
__device__ inline double variance(const double* x, int64_t n) {
  double mean = 0, sum = 0;
  for (int64_t j = 0; j < n; ++j) mean += x[j];
  mean /= static_cast<double>(n);
  for (int64_t j = 0; j < n; ++j) sum += (x[j] - mean) * (x[j] - mean);
  return sum / static_cast<double>(n - 1);
}

// One block. `workspace` holds 2 n doubles; `out` has the dtype of the norms. Sorts by rank, which
// costs n^2 comparisons and no barrier: n is the window of a controller. All sums have the order of
// csrc/cpu/variance.cpp.
__global__ void sliced_variance_kernel(Floats norms, int64_t n, int64_t slices, double* workspace,
                                       void* out) {
  double *value = workspace, *sorted = workspace + n;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
    value[i] = norms.is_double() ? norms.at<double>(i) : norms.at<float>(i);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    int64_t rank = 0;
    for (int64_t j = 0; j < n; ++j)
      rank += before(value[j], value[i]) || (j < i && !before(value[i], value[j]));
    sorted[rank] = value[i];
  }
  __syncthreads();
  // The first n % slices slices are one longer, as in torch.tensor_split.
  int64_t size = n / slices, longer = n % slices;
  for (int64_t m = threadIdx.x; m < slices; m += blockDim.x) {
    int64_t first = m * size + (m < longer ? m : longer);
    value[m] = variance(sorted + first, size + (m < longer));
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  double sum = 0;
  for (int64_t m = 0; m < slices; ++m) sum += value[m];
  sum /= static_cast<double>(slices);
  if (norms.is_double())
    *static_cast<double*>(out) = sum;
  else
    *static_cast<float*>(out) = static_cast<float>(sum);
}

}  // namespace ausam::cuda
