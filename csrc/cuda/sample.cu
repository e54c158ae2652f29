// Launchers of subset_sample and adlp_sample.
#include "launch.h"
#include "sample.cuh"
#include "sample_large.cuh"

namespace ausam::cuda {
namespace {

constexpr int kLargeThreads = 512;  // for large rows
constexpr int64_t kKeysPerThread = 4;

// Memory of one call, from torch's allocator; freed in the order of the stream.
template <class T>
T* allocate(const Tensor& like, int64_t n, std::vector<Tensor>& held) {
  int64_t bytes = n * static_cast<int64_t>(sizeof(T));
  held.push_back(torch::stable::new_empty(like, {&bytes, 1}, ScalarType::Byte));
  return static_cast<T*>(held.back().data_ptr());
}

template <class Load>
void sample_large_rows(const DeviceOf& device, const Tensor& like, const Load& load,
                       const float* noise, int64_t count, int64_t n, int64_t k, float s_min,
                       float span, int64_t* out) {
  std::vector<Tensor> held;
  LargeRows rows{};
  rows.n = n;
  rows.k = k;
  rows.parts = static_cast<int>(blocks_for(n, kPart));
  int64_t blocks = count * rows.parts;
  rows.key = allocate<int32_t>(like, count * n, held);
  rows.range = allocate<Range>(like, blocks, held);
  rows.histogram = allocate<int32_t>(like, count * kDigits * kBuckets, held);
  torch::stable::zero_(held.back());
  rows.above = allocate<int32_t>(like, blocks, held);
  rows.equal = allocate<int32_t>(like, blocks, held);
  rows.threshold = allocate<Threshold>(like, count, held);
  constexpr size_t kHistogram = kScratch + (kBuckets + 2) * sizeof(int32_t);
  device.launch(load_scores<Load>, blocks, kLargeThreads, kScratch, rows, load);
  device.launch(make_keys, blocks, kLargeThreads, kHistogram, rows, noise, s_min, span);
  device.launch(narrow<1>, blocks, kLargeThreads, kHistogram, rows);
  device.launch(narrow<2>, blocks, kLargeThreads, kHistogram, rows);
  device.launch(count_chosen, blocks, kLargeThreads, kHistogram, rows);
  device.launch(emit_parts, blocks, kLargeThreads, kScratch, rows, out);
}

template <class Load>
Tensor sample(const Tensor& like, const Tensor& noise, int64_t k, double s_min, double s_max,
              const Load& load) {
  DeviceOf device(like);
  int64_t n = like.size(like.dim() - 1), rows = like.numel() / n;
  std::vector<int64_t> shape(like.sizes().begin(), like.sizes().end());
  shape.back() = k;
  Tensor out = torch::stable::new_empty(like, {shape.data(), shape.size()}, ScalarType::Long);
  auto* positions = static_cast<int64_t*>(out.data_ptr());
  auto* e = static_cast<const float*>(noise.data_ptr());
  // Taken in float64 and rounded once, as every backend does.
  auto low = static_cast<float>(s_min), span = static_cast<float>(s_max - s_min);
  if (n > kBlockRow) {
    sample_large_rows(device, like, load, e, rows, n, k, low, span, positions);
    return out;
  }
  // Up to four keys a thread: small rows leave room for other blocks, and long ones have few
  // rounds.
  int64_t warps =
      std::clamp<int64_t>(blocks_for(n, 32 * (n > 1024 ? kKeysPerThread : 1)), 1, kMaxWarps);
  device.launch(sample_rows<Load>, rows, static_cast<int>(32 * warps),
                kScratch + n * sizeof(int32_t), load, e, static_cast<int>(n), static_cast<int>(k),
                low, span, positions);
  return out;
}

Tensor subset_sample(const Tensor& scores, int64_t k, double s_min, double s_max,
                     const Tensor& noise) {
  check_sample(scores, noise, k, s_min, s_max);
  NoGrad no_grad;
  Tensor x = torch::stable::contiguous(scores), e = torch::stable::contiguous(noise);
  return dispatch_table(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    return sample(x, e, k, s_min, s_max, Scores<T>{static_cast<const T*>(x.data_ptr())});
  });
}

Tensor adlp_sample(const Tensor& total, const Tensor& count, const Tensor& index, int64_t k,
                   double s_min, double s_max, const Tensor& noise, std::optional<Tensor> invalid,
                   std::optional<Tensor> tried) {
  check_table(total, count, index, invalid, tried);
  check_sample(index, noise, k, s_min, s_max);
  NoGrad no_grad;
  Tensor idx = torch::stable::contiguous(index), e = torch::stable::contiguous(noise);
  return dispatch_index(idx.scalar_type(), [&](auto i) {
    return dispatch_table(total.scalar_type(), [&](auto t) {
      using T = decltype(t);
      using I = decltype(i);
      auto sums = vector_of<const T>(total);
      auto visits = vector_of<const int32_t>(count);
      auto marks = vector_of<const uint8_t>(tried);
      Means<T, I> means{sums.data,           visits.data,   sums.stride,
                        visits.stride,       total.numel(), static_cast<const I*>(idx.data_ptr()),
                        counter_of(invalid), marks.data,    marks.stride};
      return sample(idx, e, k, s_min, s_max, means);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CUDA, m) {
  m.impl("subset_sample", TORCH_BOX(&subset_sample));
  m.impl("adlp_sample", TORCH_BOX(&adlp_sample));
}

}  // namespace ausam::cuda
