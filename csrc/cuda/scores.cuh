// Scores of samples, their range, and the weights of Eq. 8.
#pragma once

#include "block.cuh"
#include "vectors.cuh"

namespace ausam::cuda {

// Where scores come from: given...
struct Scores {
  Floats scores;  // [rows, n], float32 or float64
  __device__ float operator()(int64_t at) const {
    return scores.is_double() ? static_cast<float>(scores.at<double>(at)) : scores.at<float>(at);
  }
};

// ...or gathered as means over visits (Eq. 6): 0 / 0, which is NaN, if never visited, and 0
// if no visit had a finite DLP.
struct Means {
  Floats total;          // [num_samples], float32 or float64
  const int32_t* count;  // [num_samples], with a stride
  int64_t count_stride, num_samples;
  Integers index;        // [rows, n]
  int32_t* invalid;      // counts indices outside the table; may be null
  const uint8_t* tried;  // [num_samples], with a stride; may be null
  int64_t tried_stride;
  __device__ float operator()(int64_t at) const {
    int64_t i = index[at];
    if (i < 0 || i >= num_samples) {
      if (invalid) atomicAdd(invalid, 1);
      return __int_as_float(0x7fc00000);
    }
    int32_t visits = count[i * count_stride];
    if (visits == 0 && tried && tried[i * tried_stride]) return 0;
    return total.is_double() ? static_cast<float>(total.at<double>(i) / visits)
                             : total.at<float>(i) / static_cast<float>(visits);
  }
};

__device__ inline bool is_finite(float x) { return (__float_as_int(x) & 0x7f800000) != 0x7f800000; }

constexpr float kMaxFloat = 3.402823466e+38f;

__device__ inline float infinity() { return __int_as_float(0x7f800000); }

struct Range {
  float low, high;  // low > high if no score is finite
  __device__ static Range none() { return {infinity(), -infinity()}; }
  __device__ void add(float score) {
    if (is_finite(score)) *this = {fminf(low, score), fmaxf(high, score)};
  }
};

struct Merge {
  __device__ Range operator()(Range a, Range b) const {
    return {fminf(a.low, b.low), fmaxf(a.high, b.high)};
  }
};

// The weight s of one score (Eq. 8).
__device__ inline float weight_of(float score, Range range, float s_min, float span) {
  if (!(range.low < range.high)) return s_min;
  float width = fminf(range.high - range.low, kMaxFloat);
  float g = is_finite(score) ? score : range.high;
  return fminf(g - range.low, kMaxFloat) / width * span + s_min;
}

}  // namespace ausam::cuda
