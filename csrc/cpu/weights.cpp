// subset_weights: how much a chosen sample weighs, given the keys of those not chosen.
#include "../checks.h"
#include "select.h"

namespace ausam::cpu {
namespace {

constexpr int64_t kLargeRow = 32768;  // from here on one row is shared by all threads
constexpr int64_t kRowGrain = 4096;   // elements of small rows that a thread takes at least
constexpr int64_t kGrain = 8192;      // elements of a large row
constexpr float kLeast = 0x1p-60f;    // probability that a weight is taken for

// s of Eq. 8 in place of the scores, and key[j] = s_j / e_j.
AUSAM_SIMD inline void race(float* s, const float* noise, int64_t n, Range range, float s_min,
                            float span, float* key) {
  bool wide = range.low < range.high;
  float width = std::min(range.high - range.low, kMax);
  for (int64_t j = 0; j < n; ++j) {
    s[j] = wide ? weight_of(s[j], range, width, s_min, span) : s_min;
    key[j] = s[j] / noise[j];
  }
}

// The largest key above 0, or 0: not NaN.
AUSAM_SIMD inline float largest(const float* key, int64_t n) {
  float t = 0;
  for (int64_t j = 0; j < n; ++j) t = key[j] > t ? key[j] : t;
  return t;
}

// Memory for a row.
struct Row {
  explicit Row(int64_t n) : s(n), key(n) {}
  std::vector<float> s, key;
};

template <class T>
void weigh(const T* scores, const int64_t* positions, const float* noise, int64_t n, int64_t k,
           float s_min, float span, Row& row, float* out) {
  float *s = row.s.data(), *key = row.key.data();
  // Small rows are one part.
  int64_t parts = n < kLargeRow ? 1 : std::clamp<int64_t>(n / kGrain, 1, 64);
  auto for_each_part = [&](int64_t size, auto&& f) {
    if (parts == 1) return f(0, 0, size);
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) f(p, size * p / parts, size * (p + 1) / parts);
    });
  };
  Range ranges[64];
  for_each_part(n, [&](int64_t p, int64_t begin, int64_t end) {
    std::transform(scores + begin, scores + end, s + begin,
                   [](T x) { return static_cast<float>(x); });
    ranges[p] = range_of(s + begin, end - begin);
  });
  Range range;
  for (int64_t p = 0; p < parts; ++p) range.merge(ranges[p]);
  for_each_part(n, [&](int64_t, int64_t begin, int64_t end) {
    race(s + begin, noise + begin, end - begin, range, s_min, span, key + begin);
  });
  for (int64_t i = 0; i < k; ++i) key[positions[i]] = 0;
  float largests[64];
  for_each_part(n, [&](int64_t p, int64_t begin, int64_t end) {
    largests[p] = largest(key + begin, end - begin);
  });
  float t = largest(largests, parts);
  auto share = static_cast<float>(static_cast<double>(k) / static_cast<double>(n));
  for_each_part(k, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float p = -std::expm1(-s[positions[i]] / t);
      out[i] = share / (p > kLeast ? p : kLeast);
    }
  });
}

Tensor subset_weights(const Tensor& scores, const Tensor& positions, const Tensor& noise,
                      double s_min, double s_max) {
  check_weights(scores, positions, noise, s_min, s_max);
  NoGrad no_grad;
  Tensor x = packed(scores), at = packed(positions), e = packed(noise);
  int64_t n = x.size(x.dim() - 1), k = at.size(at.dim() - 1), rows = at.numel() / k;
  auto* chosen = static_cast<const int64_t*>(at.data_ptr());
  for (int64_t i = 0; i < rows * k; ++i)
    STD_TORCH_CHECK(chosen[i] >= 0 && chosen[i] < n, "positions: ", chosen[i], " of ", n);
  Tensor out = torch::stable::new_empty(at, at.sizes(), ScalarType::Float);
  auto* weights = static_cast<float*>(out.data_ptr());
  auto* drawn = static_cast<const float*>(e.data_ptr());
  // Taken in float64 and rounded once, as every backend does.
  auto low = static_cast<float>(s_min), span = static_cast<float>(s_max - s_min);
  dispatch_table(x.scalar_type(), [&](auto t) {
    auto* g = static_cast<const decltype(t)*>(x.data_ptr());
    auto weigh_rows = [&](int64_t begin, int64_t end) {
      Row memory(n);
      for (int64_t row = begin; row < end; ++row)
        weigh(g + row * n, chosen + row * k, drawn + row * n, n, k, low, span, memory,
              weights + row * k);
    };
    if (n < kLargeRow)
      torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kRowGrain / n), weigh_rows);
    else
      weigh_rows(0, rows);
    return 0;
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CPU, m) {
  m.impl("subset_weights", TORCH_BOX(&subset_weights));
}

}  // namespace ausam::cpu
