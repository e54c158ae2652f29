// Eq. 7 and 8 for one row: scores -> weights -> keys of the exponential race -> the k largest.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "simd.h"

namespace ausam::cpu {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMax = std::numeric_limits<float>::max();

// Smallest and largest finite score; low > high when there is none.
struct Range {
  float low = kInf, high = -kInf;
  void merge(Range other) {
    low = std::min(low, other.low);
    high = std::max(high, other.high);
  }
};

AUSAM_SIMD inline Range range_of(const float* score, int64_t n) {
  Range r;
  for (int64_t j = 0; j < n; ++j) {
    bool visited = std::abs(score[j]) <= kMax;
    r.low = std::min(r.low, visited ? score[j] : kInf);
    r.high = std::max(r.high, visited ? score[j] : -kInf);
  }
  return r;
}

AUSAM_SIMD inline bool all_visited(const float* score, int64_t n) {
  bool all = true;
  for (int64_t j = 0; j < n; ++j) all &= std::abs(score[j]) <= kMax;
  return all;
}

// A key as an integer of the same order. NaN (from a NaN in the noise) counts as -inf, and -0 as 0.
inline int32_t ordered(float key) {
  key = key == key ? key + 0.0f : -kInf;
  int32_t bits;
  std::memcpy(&bits, &key, sizeof bits);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// The weight s of Eq. 8, in float32 and in exactly this order of operations (the build forbids
// fused multiply-add). Not visited scores as `range.high`; `width` is that of a range which has
// one.
AUSAM_SIMD_PART float weight_of(float score, Range range, float width, float s_min, float span) {
  float g = std::abs(score) <= kMax ? score : range.high;
  return std::min(g - range.low, kMax) / width * span + s_min;
}

// key[j] = s_j / e_j.
AUSAM_SIMD inline void keys_of(const float* score, const float* noise, int64_t n, Range range,
                               float s_min, float span, int32_t* key) {
  if (!(range.low < range.high)) {
    for (int64_t j = 0; j < n; ++j) key[j] = ordered(s_min / noise[j]);
    return;
  }
  float width = std::min(range.high - range.low, kMax);
  for (int64_t j = 0; j < n; ++j)
    key[j] = ordered(weight_of(score[j], range, width, s_min, span) / noise[j]);
}

AUSAM_SIMD inline int64_t count_above(const int32_t* key, int64_t n, int32_t at) {
  int64_t above = 0;
  for (int64_t j = 0; j < n; ++j) above += key[j] > at;
  return above;
}

AUSAM_SIMD inline int64_t count_equal(const int32_t* key, int64_t n, int32_t at) {
  int64_t equal = 0;
  for (int64_t j = 0; j < n; ++j) equal += key[j] == at;
  return equal;
}

// The chosen keys: those above `key`, and of those equal to it the first `ties`.
struct Threshold {
  int32_t key;
  int64_t ties;
};

// Bisection by counting: a vector loop without branches, where partitioning would mispredict half
// of its comparisons. It ends as soon as a value separates the k largest, after about log2(n) + 3
// counts.
AUSAM_SIMD inline Threshold threshold_of(const int32_t* key, int64_t n, int64_t k) {
  auto [min, max] = std::minmax_element(key, key + n);
  int64_t low = int64_t{*min} - 1,
          high = *max;  // more than k - 1 keys above low, fewer than k above high
  while (high - low > 1) {
    int64_t middle = (low + high) >> 1;
    int64_t above = count_above(key, n, static_cast<int32_t>(middle));
    if (above == k) return {static_cast<int32_t>(middle), 0};
    (above > k ? low : high) = middle;
  }
  auto at = static_cast<int32_t>(high);
  return {at, k - count_above(key, n, at)};
}

// Writes the chosen positions, `first` + 0 ... n - 1, in ascending order and returns their number.
// Without a branch, which half of all keys would mispredict: one slot past the last is written.
inline int64_t take(const int32_t* key, int64_t n, Threshold t, int64_t first, int64_t* out) {
  int64_t taken = 0;
  for (int64_t j = 0; j < n; ++j) {
    bool tie = key[j] == t.key;
    out[taken] = first + j;
    taken += (key[j] > t.key) | (tie & (t.ties > 0));
    t.ties -= tie;
  }
  return taken;
}

}  // namespace ausam::cpu
