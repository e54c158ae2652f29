// Launcher of subset_weights.
#include "launch.h"
#include "weights.cuh"

namespace ausam::cuda {
namespace {

constexpr int kPartThreads = 512;  // of a block that has a part of a row

Tensor bytes_like(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {&bytes, 1}, ScalarType::Byte);
}

template <class T>
void weigh_large_rows(const DeviceOf& device, const Tensor& like, const Scores<T>& load,
                      const Weighing& w, int64_t count, int64_t n, int64_t k) {
  LargeRows rows{};
  rows.n = n;
  rows.k = k;
  rows.parts = static_cast<int>(blocks_for(n, kPart));
  int64_t blocks = count * rows.parts;
  Tensor scores = bytes_like(like, count * n * sizeof(float)),
         ranges = bytes_like(like, blocks * sizeof(Range)),
         kept = bytes_like(like, count * n * sizeof(int32_t)),
         largest = bytes_like(like, blocks * sizeof(float));
  torch::stable::zero_(kept);
  rows.key = static_cast<int32_t*>(scores.data_ptr());
  rows.range = static_cast<Range*>(ranges.data_ptr());
  auto* marks = static_cast<int32_t*>(kept.data_ptr());
  auto* keys = static_cast<float*>(largest.data_ptr());
  device.launch(load_scores<Scores<T>>, blocks, kPartThreads, kScratch, rows, load);
  device.launch(mark_kept, blocks, kPartThreads, kScratch, rows, w, marks);
  device.launch(find_largest, blocks, kPartThreads, kScratch, rows, w, marks, keys);
  device.launch(weigh, blocks, kPartThreads, kScratch, rows, w, keys);
}

Tensor subset_weights(const Tensor& scores, const Tensor& positions, const Tensor& noise,
                      double s_min, double s_max) {
  check_weights(scores, positions, noise, s_min, s_max);
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
  return dispatch_table(x.scalar_type(), [&](auto t) {
    Scores<decltype(t)> load{static_cast<const decltype(t)*>(x.data_ptr())};
    if (n > kBlockRow) {
      weigh_large_rows(device, x, load, w, rows, n, k);
    } else {
      int64_t warps = std::clamp<int64_t>(blocks_for(n, 32 * (n > 1024 ? 4 : 1)), 1, kMaxWarps);
      device.launch(weigh_rows<decltype(t)>, rows, static_cast<int>(32 * warps),
                    kScratch + n * (sizeof(float) + sizeof(int32_t)), load, w, static_cast<int>(n),
                    static_cast<int>(k));
    }
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CUDA, m) {
  m.impl("subset_weights", TORCH_BOX(&subset_weights));
}

}  // namespace ausam::cuda
