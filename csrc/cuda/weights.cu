// Launcher of subset_weights.
#include "vectors.h"
#include "weights.cuh"
#include "workspace.h"

namespace ausam::cuda {
namespace {

void weigh_large_rows(const DeviceOf& device, const Tensor& like, const Scores& load,
                      const Weighing& w, int64_t count, int64_t n, int64_t k) {
  LargeRows rows{};
  rows.n = n;
  rows.k = k;
  rows.parts = static_cast<int>(blocks_for(n, kPart));
  rows.zeros = count * n;
  int64_t blocks = count * rows.parts;
  float* largest;
  Tensor memory = workspace(like, [&](auto take) {
    take(rows.key, count * n);
    take(rows.range, blocks);
    take(rows.zero, rows.zeros);  // how often each was chosen
    take(largest, blocks);
  });
  auto launch = [&](auto kernel, const auto&... arguments) {
    device.launch(kernel, blocks, kPartThreads, sizeof(PartMemory), rows, arguments...);
  };
  launch(load_scores<Scores>, load);
  launch(mark_kept, w, rows.zero);
  launch(find_largest, w, rows.zero, largest);
  launch(weigh, w, largest);
}

Tensor subset_weights(const Tensor& scores, const Tensor& positions, const Tensor& noise,
                      double s_min, double s_max) {
  check_weights(scores, positions, noise, s_min, s_max);
  STD_TORCH_CHECK(is_table(scores.scalar_type()), "scores: float32 or float64");
  NoGrad no_grad;
  Tensor x = torch::stable::contiguous(scores), at = torch::stable::contiguous(positions),
         e = torch::stable::contiguous(noise);
  DeviceOf device(x);
  int64_t n = x.size(x.dim() - 1), k = at.size(at.dim() - 1), rows = at.numel() / k;
  Tensor out = torch::stable::new_empty(at, at.sizes(), ScalarType::Float);
  Weighing w{};
  w.noise = static_cast<const float*>(e.data_ptr());
  w.positions = static_cast<const int64_t*>(at.data_ptr());
  // Taken in float64 and rounded once, as every backend does.
  w.s_min = static_cast<float>(s_min);
  w.span = static_cast<float>(s_max - s_min);
  w.share = static_cast<float>(static_cast<double>(k) / static_cast<double>(n));
  w.out = static_cast<float*>(out.data_ptr());
  Scores load{flat_floats(x)};
  if (n > kWeighRow) {
    weigh_large_rows(device, x, load, w, rows, n, k);
  } else {
    int64_t warps = std::clamp<int64_t>(blocks_for(n, 32 * (n > 1024 ? 4 : 1)), 1, kMaxWarps);
    device.launch(weigh_rows, rows, static_cast<int>(32 * warps),
                  offsetof(WeighMemory, of) + n * sizeof(WeighMemory{}.of[0]), load, w,
                  static_cast<int>(n), static_cast<int>(k));
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CUDA, m) {
  m.impl("subset_weights", TORCH_BOX(&subset_weights));
}

}  // namespace ausam::cuda
