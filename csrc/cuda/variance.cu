// Launcher of sliced_variance.
#include "variance.cuh"
#include "vectors.h"

namespace ausam::cuda {
namespace {

Tensor sliced_variance(const Tensor& norms, int64_t slices) {
  check_variance(norms, slices);
  DeviceOf device(norms);
  int64_t n = norms.numel(), doubles = 2 * n;
  Tensor workspace = torch::stable::new_empty(norms, {&doubles, 1}, ScalarType::Double);
  Tensor out = torch::stable::new_empty(norms, {});
  int threads = static_cast<int>(std::clamp<int64_t>(blocks_for(n, 32), 1, kMaxWarps) * 32);
  device.launch(sliced_variance_kernel, 1, threads, 0, floats_of(norms), n, slices,
                static_cast<double*>(workspace.data_ptr()), out.data_ptr());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CUDA, m) {
  m.impl("sliced_variance", TORCH_BOX(&sliced_variance));
}

}  // namespace ausam::cuda
