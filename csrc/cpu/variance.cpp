// Sliced variance of the PSF's norms (vSAM Eq. 8).
#include "../checks.h"

namespace ausam::cpu {
namespace {

// Unbiased, in two passes: the first takes the mean out, the second has nothing to cancel.
double variance(const double* x, int64_t n) {
  double mean = 0, sum = 0;
  for (int64_t j = 0; j < n; ++j) mean += x[j];
  mean /= n;
  for (int64_t j = 0; j < n; ++j) sum += (x[j] - mean) * (x[j] - mean);
  return sum / (n - 1);
}

Tensor sliced_variance(const Tensor& norms, int64_t slices) {
  check_variance(norms, slices);
  int64_t n = norms.numel();
  std::vector<double> sorted(n);
  dispatch_table(norms.scalar_type(), [&](auto t) {
    auto x = vector_of<const decltype(t)>(norms);
    for (int64_t j = 0; j < n; ++j) sorted[j] = x[j];
  });
  // NaN last, as torch.sort has it
  std::sort(sorted.begin(), sorted.end(),
            [](double a, double b) { return a < b || (a == a && b != b); });

  // The first N % M slices are one longer, as in torch.tensor_split.
  int64_t size = n / slices, longer = n % slices;
  double sum = 0;
  const double* slice = sorted.data();
  for (int64_t m = 0; m < slices; ++m) {
    int64_t length = size + (m < longer);
    sum += variance(slice, length);
    slice += length;
  }
  return torch::stable::full({}, sum / slices, norms.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CPU, m) {
  m.impl("sliced_variance", TORCH_BOX(&sliced_variance));
}

}  // namespace ausam::cpu
