// subset_sample and adlp_sample: Eq. 7 and 8 over the last dimension, rows independent.
#include <cmath>
#include <memory>
#include <numeric>

#include "select.h"
#include "table.h"

namespace ausam::cpu {
namespace {

constexpr int64_t kLargeRow = 32768;  // from here on one row is shared by all threads
constexpr int64_t kRowGrain = 4096;   // elements of small rows that a thread takes at least
constexpr int64_t kMaxParts = 64;

// Memory for a row.
struct Row {
  explicit Row(int64_t n) : score(new float[n]), key(new int32_t[n]) {}
  std::unique_ptr<float[]> score;
  std::unique_ptr<int32_t[]> key;
};

// Small rows: a thread takes whole rows, everything stays in its L1 or L2 cache.
template <class Load>
void sample_small_rows(const Load& load, const float* noise, int64_t rows, int64_t n, int64_t k,
                       float s_min, float span, int64_t* out) {
  int64_t grain = std::max<int64_t>(1, kRowGrain / n);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    Row memory(n);
    float* score = memory.score.get();
    int32_t* key = memory.key.get();
    for (int64_t row = begin; row < end; ++row) {
      load(row, 0, n, score);
      keys_of(score, noise + row * n, n, range_of(score, n), s_min, span, key);
      take(key, n, threshold_of(key, n, k), 0, k, out + row * k);
    }
  });
}

// A large row: every step is shared by all threads.
template <class Load>
void sample_large_row(const Load& load, int64_t row, const float* noise, int64_t n, int64_t k,
                      float s_min, float span, Row& memory, int64_t* out) {
  float* score = memory.score.get();
  int32_t* key = memory.key.get();
  int64_t parts = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, kMaxParts);
  auto for_each_part = [&](auto&& f) {
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        int64_t at = n * p / parts;
        f(p, at, n * (p + 1) / parts - at);
      }
    });
  };

  Range ranges[kMaxParts], range;
  for_each_part([&](int64_t p, int64_t at, int64_t size) {
    load(row, at, at + size, score + at);
    ranges[p] = range_of(score + at, size);
  });
  for (int64_t p = 0; p < parts; ++p) range.merge(ranges[p]);

  Keys extents[kMaxParts];
  for_each_part([&](int64_t p, int64_t at, int64_t size) {
    keys_of(score + at, noise + at, size, range, s_min, span, key + at);
    extents[p] = extent_of(key + at, size);
  });
  Keys keys = extents[0];
  for (int64_t p = 1; p < parts; ++p) keys.merge(extents[p]);

  int64_t above[kMaxParts], above_less[kMaxParts];  // of each part
  auto count = [&](int32_t x, int64_t* counts) {
    for_each_part(
        [&](int64_t p, int64_t at, int64_t size) { counts[p] = count_above(key + at, size, x); });
    return std::accumulate(counts, counts + parts, int64_t{0});
  };
  Threshold t = bisect(keys, k, [&](int32_t x) { return count(x, above); });

  // Where each part writes, and how many of the ties are its.
  int64_t ties[kMaxParts] = {}, offset[kMaxParts];
  count(t.key, above);
  if (t.ties > 0) count(t.key - 1, above_less);
  for (int64_t p = 0, taken = 0, left = t.ties; p < parts; ++p) {
    offset[p] = taken;
    if (left > 0) ties[p] = std::min(left, above_less[p] - above[p]);
    left -= ties[p];
    taken += above[p] + ties[p];
  }
  for_each_part([&](int64_t p, int64_t at, int64_t size) {
    take(key + at, size, {t.key, ties[p]}, at, above[p] + ties[p], out + offset[p]);
  });
}

// load(row, begin, end, score) writes the scores of a row's elements, NaN for those never visited.
template <class Load>
Tensor sample(const Tensor& like, const Tensor& noise, int64_t k, double s_min, double s_max,
              const Load& load) {
  int64_t n = like.size(like.dim() - 1), rows = n == 0 ? 0 : like.numel() / n;
  std::vector<int64_t> shape(like.sizes().begin(), like.sizes().end());
  shape.back() = k;
  Tensor out = empty_on_cpu(shape, ScalarType::Long);
  auto* positions = static_cast<int64_t*>(out.data_ptr());
  auto* e = static_cast<const float*>(noise.data_ptr());
  // Taken in float64 and rounded once, as every backend does.
  auto low = static_cast<float>(s_min), span = static_cast<float>(s_max - s_min);
  if (n < kLargeRow) {
    sample_small_rows(load, e, rows, n, k, low, span, positions);
    return out;
  }
  Row memory(n);
  for (int64_t row = 0; row < rows; ++row)
    sample_large_row(load, row, e + row * n, n, k, low, span, memory, positions + row * k);
  return out;
}

Tensor subset_sample(const Tensor& scores, int64_t k, double s_min, double s_max,
                     const Tensor& noise) {
  check_sample(scores, noise, k, s_min, s_max);
  NoGrad no_grad;
  Tensor x = packed(scores), e = packed(noise);
  return dispatch_table(x.scalar_type(), [&](auto t) {
    auto* g = static_cast<const decltype(t)*>(x.data_ptr());
    int64_t n = x.size(x.dim() - 1);
    return sample(x, e, k, s_min, s_max,
                  [=](int64_t row, int64_t begin, int64_t end, float* score) {
                    for (int64_t j = begin; j < end; ++j)
                      *score++ = static_cast<float>(g[row * n + j]);
                  });
  });
}

Tensor adlp_sample(const Tensor& total, const Tensor& count, const Tensor& index, int64_t k,
                   double s_min, double s_max, const Tensor& noise, std::optional<Tensor> invalid,
                   std::optional<Tensor> tried) {
  check_table(total, count, index, invalid, tried);
  check_sample(index, noise, k, s_min, s_max);
  NoGrad no_grad;
  Tensor idx = packed(index), e = packed(noise);
  int64_t n = idx.size(idx.dim() - 1), num_samples = total.numel();
  return dispatch_index(idx.scalar_type(), [&](auto i_) {
    auto* i = static_cast<const decltype(i_)*>(idx.data_ptr());
    report_outside(Vector<const decltype(i_)>{i, 1}, idx.numel(), num_samples, invalid);
    return dispatch_table(total.scalar_type(), [&](auto t_) {
      auto sums = vector_of<const decltype(t_)>(total);
      auto visits = vector_of<const int32_t>(count);
      auto marks = vector_of<const uint8_t>(tried);
      return sample(
          idx, e, k, s_min, s_max, [=](int64_t row, int64_t begin, int64_t end, float* score) {
            auto* at = i + row * n + begin;
            // 0 / 0, which is NaN, if never visited
            for (int64_t j = 0; j < end - begin; ++j)
              score[j] = is_outside(at[j], num_samples)
                             ? std::numeric_limits<float>::quiet_NaN()
                             : static_cast<float>(sums[at[j]] / visits[at[j]]);
            if (!marks.data || all_visited(score, end - begin)) return;
            for (int64_t j = 0; j < end - begin; ++j)  // apart: the loop above waits for no branch
              if (!(std::abs(score[j]) <= kMax) && !is_outside(at[j], num_samples) &&
                  visits[at[j]] == 0 && marks[at[j]])
                score[j] = 0;
          });
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CPU, m) {
  m.impl("subset_sample", TORCH_BOX(&subset_sample));
  m.impl("adlp_sample", TORCH_BOX(&adlp_sample));
}

}  // namespace ausam::cpu
