// Eq. 7 and 8 for one row: scores -> weights -> keys of the exponential race -> the k largest.
//
// Every step is a loop without branches, which the compiler turns into vectors.
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

// In lanes: the compiler may not reorder the minima of one.
AUSAM_SIMD inline Range range_of(const float* score, int64_t n) {
  constexpr int kLanes = 16;
  float low[kLanes], high[kLanes];
  std::fill_n(low, kLanes, kInf);
  std::fill_n(high, kLanes, -kInf);
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes)
    for (int l = 0; l < kLanes; ++l) {
      bool visited = std::abs(score[j + l]) <= kMax;
      low[l] = std::min(low[l], visited ? score[j + l] : kInf);
      high[l] = std::max(high[l], visited ? score[j + l] : -kInf);
    }
  Range r;
  for (int l = 0; l < kLanes; ++l) r.merge({low[l], high[l]});
  for (; j < n; ++j)
    if (std::abs(score[j]) <= kMax) r.merge({score[j], score[j]});
  return r;
}

AUSAM_SIMD inline bool all_visited(const float* score, int64_t n) {
  bool all = true;
  for (int64_t j = 0; j < n; ++j) all &= std::abs(score[j]) <= kMax;
  return all;
}

// A key as an integer of the same order. NaN (from a NaN in the noise) counts as -inf, and -0 as 0.
AUSAM_SIMD_PART int32_t ordered(float key) {
  key = key == key ? key : -kInf;
  key += 0.0f;
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

// Smallest and largest key.
struct Keys {
  int32_t least, most;
  void merge(Keys other) {
    least = std::min(least, other.least);
    most = std::max(most, other.most);
  }
};

AUSAM_SIMD_PART Keys extent(const int32_t* key, int64_t n) {
  int32_t least = key[0], most = key[0];
  for (int64_t j = 0; j < n; ++j) {
    least = std::min(least, key[j]);
    most = std::max(most, key[j]);
  }
  return {least, most};
}

// Counts in 32 bits, of which a vector holds twice as many.
AUSAM_SIMD_PART int64_t above(const int32_t* key, int64_t n, int32_t at) {
  constexpr int64_t kPart = int64_t{1} << 30;
  int64_t total = 0;
  for (int64_t begin = 0; begin < n; begin += kPart) {
    int32_t count = 0;
    for (int64_t j = begin, end = std::min(n, begin + kPart); j < end; ++j) count += key[j] > at;
    total += count;
  }
  return total;
}

// The chosen keys: those above `key`, and of those equal to it the first `ties`.
struct Threshold {
  int32_t key;
  int64_t ties;
};

// Bisection by counting: `count(x)` is how many keys are above x. It ends as soon as a value
// separates the k largest, after about log2(n) + 3 counts.
template <class Count>
AUSAM_SIMD_PART Threshold bisect(Keys keys, int64_t k, const Count& count) {
  int64_t low = int64_t{keys.least} - 1,
          high = keys.most;  // more than k - 1 keys above low, fewer than k above high
  while (high - low > 1) {
    int64_t middle = (low + high) >> 1;
    int64_t found = count(static_cast<int32_t>(middle));
    if (found == k) return {static_cast<int32_t>(middle), 0};
    (found > k ? low : high) = middle;
  }
  auto at = static_cast<int32_t>(high);
  return {at, k - count(at)};
}

AUSAM_SIMD inline Threshold threshold_of(const int32_t* key, int64_t n, int64_t k) {
  return bisect(extent(key, n), k, [=](int32_t at) { return above(key, n, at); });
}

AUSAM_SIMD inline Keys extent_of(const int32_t* key, int64_t n) { return extent(key, n); }

AUSAM_SIMD inline int64_t count_above(const int32_t* key, int64_t n, int32_t at) {
  return above(key, n, at);
}

// Writes the chosen positions, `first` + 0 ... n - 1, in ascending order, `count` of them.
AUSAM_SIMD inline void take(const int32_t* key, int64_t n, Threshold t, int64_t first,
                            int64_t count, int64_t* out) {
  constexpr int64_t kBlock = 64;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    int64_t size = std::min(kBlock, n - begin);
    uint8_t chosen[kBlock];
    for (int64_t j = 0; j < size; ++j) chosen[j] = key[begin + j] > t.key;
    if (t.ties > 0)
      for (int64_t j = 0; j < size; ++j) {
        bool tie = key[begin + j] == t.key && t.ties > 0;
        chosen[j] |= tie;
        t.ties -= tie;
      }
    // Without a branch, which half of all keys would mispredict: what is not chosen is written too,
    // and written over.
    int64_t spare[kBlock];
    int64_t* to = count >= kBlock ? out : spare;
    int64_t taken = 0;
    for (int64_t j = 0; j < size; ++j) {
      to[taken] = first + begin + j;
      taken += chosen[j];
    }
    if (to == spare) std::copy(spare, spare + taken, out);
    out += taken;
    count -= taken;
  }
}

}  // namespace ausam::cpu
