// permute: a value of a random permutation for each position, in one launch.
#include "../permutation.h"
#include "launch.h"

namespace ausam::cuda {
namespace {

constexpr int kPermuteThreads = 256;

__global__ void permute_kernel(Permutation p, const int64_t* position, int64_t length,
                               int64_t* out) {
  int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (j >= length) return;
  int64_t x = position[j];
  // What is outside may never come back.
  out[j] = x >= 0 && x < p.n ? p.walk(p.pass(x)) : -1;
}

Tensor permute(const Tensor& position, int64_t n, std::vector<int64_t> keys) {
  check_permute(position, n, keys);
  NoGrad no_grad;
  DeviceOf device(position);
  Tensor x = packed(position);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  int64_t length = x.numel();
  device.launch(permute_kernel, blocks_for(length, kPermuteThreads), kPermuteThreads, 0,
                permutation_of(n, keys), static_cast<const int64_t*>(x.data_ptr()), length,
                static_cast<int64_t*>(out.data_ptr()));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CUDA, m) { m.impl("permute", TORCH_BOX(&permute)); }

}  // namespace ausam::cuda
