// subset_sample and adlp_sample: Eq. 7 and 8 over the last dimension, rows independent.
#include <cmath>

#include "select.h"
#include "table.h"

namespace ausam::cpu {
namespace {

constexpr int64_t kLargeRow = 32768;  // from here on one row is shared by all threads
constexpr int64_t kRowGrain = 4096;   // elements of small rows that a thread takes at least
constexpr int64_t kMaxParts = 64;
constexpr int kBucketBits = 16;

int64_t bucket_of(int32_t key) { return (int64_t{key} - INT32_MIN) >> (32 - kBucketBits); }

// Small rows: a thread takes whole rows, everything stays in its L1 or L2 cache.
template <class Load>
void sample_small_rows(const Load& load, const float* noise, int64_t rows, int64_t n, int64_t k,
                       float s_min, float span, int64_t* out) {
  int64_t grain = std::max<int64_t>(1, kRowGrain / n);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> score(n);
    std::vector<int32_t> key(n);
    std::vector<int64_t> chosen(n + 1);
    for (int64_t row = begin; row < end; ++row) {
      load(row, 0, n, score.data());
      keys_of(score.data(), noise + row * n, n, range_of(score.data(), n), s_min, span, key.data());
      take(key.data(), n, threshold_of(key.data(), n, k), 0, chosen.data());
      std::copy(chosen.begin(), chosen.begin() + k, out + row * k);
    }
  });
}

// A large row: no sort. A histogram over the keys' upper bits finds the bucket of the k-th largest
// key, and only that bucket is searched.
template <class Load>
void sample_large_row(const Load& load, int64_t row, const float* noise, int64_t n, int64_t k,
                      float s_min, float span, int64_t* out) {
  int64_t parts = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, kMaxParts);
  auto first = [&](int64_t p) { return n * p / parts; };
  auto for_each_part = [&](auto&& f) {
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) f(p, first(p), first(p + 1) - first(p));
    });
  };

  std::vector<float> score(n);
  std::vector<Range> ranges(parts);
  for_each_part([&](int64_t p, int64_t at, int64_t size) {
    load(row, at, at + size, score.data() + at);
    ranges[p] = range_of(score.data() + at, size);
  });
  Range range;
  for (auto& r : ranges) range.merge(r);

  std::vector<int32_t> key(n);
  std::vector<std::vector<int64_t>> histogram(parts);
  for_each_part([&](int64_t p, int64_t at, int64_t size) {
    keys_of(score.data() + at, noise + at, size, range, s_min, span, key.data() + at);
    histogram[p].assign(1 << kBucketBits, 0);
    for (int64_t j = at; j < at + size; ++j) ++histogram[p][bucket_of(key[j])];
  });

  // Walk down from the largest keys to the bucket that holds the k-th.
  int64_t rank = k;
  int64_t bucket = (1 << kBucketBits) - 1;
  for (;; --bucket) {
    int64_t size = 0;
    for (auto& h : histogram) size += h[bucket];
    if (rank <= size) break;
    rank -= size;
  }
  std::vector<std::vector<int32_t>> found(parts);
  for_each_part([&](int64_t p, int64_t at, int64_t size) {
    found[p].reserve(histogram[p][bucket]);
    for (int64_t j = at; j < at + size; ++j)
      if (bucket_of(key[j]) == bucket) found[p].push_back(key[j]);
  });
  std::vector<int32_t> candidates;
  for (auto& f : found) candidates.insert(candidates.end(), f.begin(), f.end());
  Threshold t = threshold_of(candidates.data(), candidates.size(), rank);

  std::vector<int64_t> above(parts), equal(parts);
  for_each_part([&](int64_t p, int64_t at, int64_t size) {
    above[p] = count_above(key.data() + at, size, t.key);
    equal[p] = count_equal(key.data() + at, size, t.key);
  });
  std::vector<int64_t> offset(parts), ties(parts);
  for (int64_t p = 0, taken = 0, left = t.ties; p < parts; ++p) {
    offset[p] = taken;
    ties[p] = std::min(left, equal[p]);
    left -= ties[p];
    taken += above[p] + ties[p];
  }
  for_each_part([&](int64_t p, int64_t at, int64_t size) {
    int64_t count = above[p] + ties[p];
    std::vector<int64_t> chosen(count + 1);
    take(key.data() + at, size, {t.key, ties[p]}, at, chosen.data());
    std::copy(chosen.begin(), chosen.begin() + count, out + offset[p]);
  });
}

// load(row, begin, end, score) writes the scores of a row's elements, NaN for those never visited.
template <class Load>
Tensor sample(const Tensor& like, const Tensor& noise, int64_t k, double s_min, double s_max,
              const Load& load) {
  int64_t n = like.size(like.dim() - 1), rows = n == 0 ? 0 : like.numel() / n;
  std::vector<int64_t> shape(like.sizes().begin(), like.sizes().end());
  shape.back() = k;
  Tensor out = torch::stable::new_empty(like, {shape.data(), shape.size()}, ScalarType::Long);
  auto* positions = static_cast<int64_t*>(out.data_ptr());
  auto* e = static_cast<const float*>(noise.data_ptr());
  // Taken in float64 and rounded once, as every backend does.
  auto low = static_cast<float>(s_min), span = static_cast<float>(s_max - s_min);
  if (n < kLargeRow)
    sample_small_rows(load, e, rows, n, k, low, span, positions);
  else
    for (int64_t row = 0; row < rows; ++row)
      sample_large_row(load, row, e + row * n, n, k, low, span, positions + row * k);
  return out;
}

Tensor subset_sample(const Tensor& scores, int64_t k, double s_min, double s_max,
                     const Tensor& noise) {
  check_sample(scores, noise, k, s_min, s_max);
  NoGrad no_grad;
  Tensor x = torch::stable::contiguous(scores), e = torch::stable::contiguous(noise);
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
  Tensor idx = torch::stable::contiguous(index), e = torch::stable::contiguous(noise);
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
            // 0 / 0, which is NaN, where never visited
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
