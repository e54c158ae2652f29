// subset_sample and adlp_sample: AUSAM Eq. 7 and 8 over rows, bit for bit as
// ausam_ext/reference.py.
//
// One block takes a row of up to kBlockRow scores in one launch; sample_large.cuh has longer ones.
#pragma once

#include "block.cuh"

namespace ausam::cuda {

constexpr int kBlockRow = 4096;  // keys that fit the shared memory of every architecture

// Where scores come from: given...
template <class T>
struct Scores {
  const T* scores;  // [rows, n]
  __device__ float operator()(int64_t at) const { return static_cast<float>(scores[at]); }
};

// ...or gathered as means over visits (Eq. 6): 0 / 0, which is NaN, where never visited, and 0
// where no visit had a finite DLP.
template <class T, class I>
struct Means {
  const T* total;        // [num_samples], with a stride
  const int32_t* count;  // [num_samples], with a stride
  int64_t total_stride, count_stride, num_samples;
  const I* index;        // [rows, n]
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
    return static_cast<float>(total[i * total_stride] / static_cast<T>(visits));
  }
};

__device__ inline bool is_finite(float x) { return (__float_as_int(x) & 0x7f800000) != 0x7f800000; }

constexpr float kMaxFloat = 3.402823466e+38f;

struct Range {
  float low, high;  // low > high where no score is finite
};

struct Min {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

struct Max {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

__device__ inline float infinity() { return __int_as_float(0x7f800000); }

// Adds a score to a range.
__device__ inline void widen(Range& range, float score) {
  if (!is_finite(score)) return;
  range.low = Min{}(range.low, score);
  range.high = Max{}(range.high, score);
}

// A key as an integer of the same order. NaN (from a NaN in the noise) counts as -inf, and -0 as 0.
__device__ inline int32_t ordered(float key) {
  key = key == key ? __fadd_rn(key, 0.0f) : -infinity();
  int32_t bits = __float_as_int(key);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// The weight s of one score (Eq. 8), one rounding per operation.
__device__ inline float weight_of(float score, Range range, float s_min, float span) {
  if (!(range.low < range.high)) return s_min;
  float width = Min{}(__fsub_rn(range.high, range.low), kMaxFloat);
  float g = is_finite(score) ? score : range.high;
  float ratio = __fdiv_rn(Min{}(__fsub_rn(g, range.low), kMaxFloat), width);
  return __fadd_rn(__fmul_rn(ratio, span), s_min);
}

// The key s / e of one score.
__device__ inline int32_t key_of(float score, float noise, Range range, float s_min, float span) {
  return ordered(__fdiv_rn(weight_of(score, range, s_min, span), noise));
}

// The chosen keys: those above `key`, and of those equal to it the first `ties`.
struct Threshold {
  int32_t key;
  int ties;
};

// Writes the positions, `first` + 0 ... n - 1, of the chosen among n keys in ascending order.
__device__ inline void emit(const int32_t* key, int n, Threshold t, int64_t first, int64_t* out) {
  for (int start = 0; start < n; start += blockDim.x) {
    int j = start + threadIdx.x;
    bool inside = j < n;
    bool tie = inside && key[j] == t.key;
    Rank ties = rank(tie);
    bool chosen = (inside && key[j] > t.key) || (tie && ties.before < t.ties);
    Rank taken = rank(chosen);
    if (chosen) out[taken.before] = first + j;
    out += taken.total;
    t.ties -= ties.total;
  }
}

// Eq. 6 to 8 for a row in one block: scores, their range, keys, the k largest by bisection (counts
// of the keys above a value, as in csrc/cpu/select.h), positions.
template <class Load>
__global__ void sample_rows(Load load, const float* noise, int n, int k, float s_min, float span,
                            int64_t* out) {
  int32_t* key = shared_memory<int32_t>(kScratch);  // [n]; holds the scores first
  int64_t row = blockIdx.x;
  noise += row * n;
  Range range{infinity(), -infinity()};
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    float score = load(row * n + j);
    widen(range, score);
    key[j] = __float_as_int(score);
  }
  range = {reduce(range.low, Min{}), reduce(range.high, Max{})};
  int32_t least = 0x7fffffff, most = -0x7fffffff - 1;
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    key[j] = key_of(__int_as_float(key[j]), noise[j], range, s_min, span);
    least = Min{}(least, key[j]);
    most = Max{}(most, key[j]);
  }
  // More than k - 1 keys are above `low`, fewer than k above `high`. These barriers also publish
  // the keys.
  int64_t low = int64_t{reduce(least, Min{})} - 1, high = reduce(most, Max{});
  Threshold t{};
  for (bool found = false; !found;) {
    bool last = high - low <= 1;
    t.key = static_cast<int32_t>(last ? high : (low + high) >> 1);
    int above = 0;
    for (int start = 0; start < n; start += blockDim.x) {
      int j = start + threadIdx.x;
      above += __syncthreads_count(j < n && key[j] > t.key);
    }
    t.ties = k - above;
    found = last || above == k;
    (above > k ? low : high) = t.key;
  }
  emit(key, n, t, 0, out + row * k);
}

}  // namespace ausam::cuda
