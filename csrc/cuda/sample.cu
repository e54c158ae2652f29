// Launchers of subset_sample and adlp_sample.
#include "sample.cuh"
#include "sample_large.cuh"
#include "vectors.h"
#include "workspace.h"

namespace ausam::cuda {
namespace {

template <class Load>
void sample_large_rows(const DeviceOf& device, const Tensor& like, const Load& load,
                       const float* noise, int64_t count, int64_t n, int64_t k, float s_min,
                       float span, int64_t* out) {
  LargeSample s{};
  LargeRows& rows = s.rows;
  rows.n = n;
  rows.k = k;
  rows.parts = static_cast<int>(blocks_for(n, kPart));
  int64_t blocks = count * rows.parts, sizes = count * kDigits * kDigitValues;
  rows.zeros = sizes + blocks + 1;
  Tensor memory = workspace(like, [&](auto take) {
    take(rows.key, count * n);
    take(rows.range, blocks);
    take(rows.zero, rows.zeros);
    take(s.prefix, count * kDigits);
  });
  s.histogram = rows.zero;
  s.published = s.histogram + sizes;
  s.tickets = s.published + blocks;
  auto launch = [&](auto kernel, const auto&... arguments) {
    device.launch(kernel, blocks, kPartThreads, sizeof(LargeMemory), arguments...);
  };
  launch(load_scores<Load>, rows, load);
  launch(make_keys, s, noise, s_min, span);
  launch(narrow, s, 1);
  launch(narrow, s, 2);
  launch(choose, s, out);
}

// Positions and ranks are counted in 32 bits.
void check_length(const Tensor& rows) {
  STD_TORCH_CHECK(rows.size(rows.dim() - 1) <= UINT32_MAX, "a row of ", rows.size(rows.dim() - 1),
                  " scores: at most 2^32 - 1 on CUDA");
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
  if (n > kBlockRow)
    sample_large_rows(device, like, load, e, rows, n, k, low, span, positions);
  else
    device.launch(sample_rows<Load>, rows, 32 * static_cast<int>(blocks_for(n, kWarp)),
                  sizeof(RowMemory), load, e, static_cast<int>(n), static_cast<int>(k), low, span,
                  positions);
  return out;
}

Tensor subset_sample(const Tensor& scores, int64_t k, double s_min, double s_max,
                     const Tensor& noise) {
  check_sample(scores, noise, k, s_min, s_max);
  STD_TORCH_CHECK(is_table(scores.scalar_type()), "scores: float32 or float64");
  check_length(scores);
  NoGrad no_grad;
  Tensor x = torch::stable::contiguous(scores), e = torch::stable::contiguous(noise);
  return sample(x, e, k, s_min, s_max, Scores{flat_floats(x)});
}

Tensor adlp_sample(const Tensor& total, const Tensor& count, const Tensor& index, int64_t k,
                   double s_min, double s_max, const Tensor& noise, std::optional<Tensor> invalid,
                   std::optional<Tensor> tried) {
  check_table(total, count, index, invalid, tried);
  check_sample(index, noise, k, s_min, s_max);
  check_length(index);
  NoGrad no_grad;
  Tensor idx = torch::stable::contiguous(index), e = torch::stable::contiguous(noise);
  auto visits = vector_of<const int32_t>(count);
  auto marks = vector_of<const uint8_t>(tried);
  Means means{floats_of(total),   visits.data,         visits.stride, total.numel(),
              flat_integers(idx), counter_of(invalid), marks.data,    marks.stride};
  return sample(idx, e, k, s_min, s_max, means);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CUDA, m) {
  m.impl("subset_sample", TORCH_BOX(&subset_sample));
  m.impl("adlp_sample", TORCH_BOX(&adlp_sample));
}

}  // namespace ausam::cuda
