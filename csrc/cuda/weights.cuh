// subset_weights: how much a chosen sample stands for, given the keys of those not chosen.
//
// One block takes a row of up to kBlockRow scores in one launch; several share a longer one, in
// four:
//
//   load_scores    scores, and their range in every part of the row (large_rows.cuh)
//   mark_kept      which of the row were chosen
//   find_largest   the largest key in every part that was not
//   weigh          the weights
#pragma once

#include "large_rows.cuh"

namespace ausam::cuda {

struct Weighing {
  const float* noise;        // [rows, n]
  const int64_t* positions;  // [rows, k]
  float s_min, span, share;
  float* out;  // [rows, k]
};

// A position outside the row is neither read nor written, and weighs NaN.
__device__ inline bool in_row(int64_t position, int64_t n) { return position >= 0 && position < n; }

// The larger of t and a key, which may be NaN.
__device__ inline float larger(float t, float s, float noise) {
  float key = __fdiv_rn(s, noise);
  return key > t ? key : t;
}

// The weight of a sample whose chance is s, where t is the largest key that was not kept.
__device__ inline float weight_for(float s, float t, float share) {
  float p = -expm1f(-__fdiv_rn(s, t));
  constexpr float kLeast = 8.673617379884035e-19f;  // 2^-60
  return __fdiv_rn(share, p > kLeast ? p : kLeast);
}

template <class T>
__global__ void weigh_rows(Scores<T> load, Weighing w, int n, int k) {
  float* score = shared_memory<float>(kScratch);         // [n]
  int32_t* kept = shared_memory<int32_t>(kScratch) + n;  // [n]: how often it was chosen
  int64_t row = blockIdx.x;
  const float* noise = w.noise + row * n;
  const int64_t* positions = w.positions + row * k;
  Range range{infinity(), -infinity()};
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    score[j] = load(row * n + j);
    widen(range, score[j]);
    kept[j] = 0;
  }
  range = {reduce(range.low, Min{}), reduce(range.high, Max{})};  // a barrier too
  for (int i = threadIdx.x; i < k; i += blockDim.x)
    if (in_row(positions[i], n)) atomicAdd(kept + positions[i], 1);
  __syncthreads();
  float t = 0;
  for (int j = threadIdx.x; j < n; j += blockDim.x)
    if (!kept[j]) t = larger(t, weight_of(score[j], range, w.s_min, w.span), noise[j]);
  t = reduce(t, Max{});
  for (int i = threadIdx.x; i < k; i += blockDim.x) {
    int64_t at = positions[i];
    w.out[row * k + i] = in_row(at, n)
                             ? weight_for(weight_of(score[at], range, w.s_min, w.span), t, w.share)
                             : __int_as_float(0x7fc00000);
  }
}

__global__ void mark_kept(LargeRows rows, Weighing w, int32_t* kept) {
  for (int64_t i = rows.first() + threadIdx.x; i < rows.first() + kPart && i < rows.k;
       i += blockDim.x) {
    int64_t at = w.positions[rows.row() * rows.k + i];
    if (in_row(at, rows.n)) atomicAdd(kept + rows.row() * rows.n + at, 1);
  }
}

__global__ void find_largest(LargeRows rows, Weighing w, const int32_t* kept, float* largest) {
  Range range = range_of(rows);
  int64_t first = rows.row() * rows.n + rows.first();
  float t = 0;
  for (int j = threadIdx.x; j < rows.size(); j += blockDim.x) {
    float s = weight_of(__int_as_float(rows.keys()[j]), range, w.s_min, w.span);
    if (!kept[first + j]) t = larger(t, s, w.noise[first + j]);
  }
  t = reduce(t, Max{});
  if (threadIdx.x == 0) largest[blockIdx.x] = t;
}

__global__ void weigh(LargeRows rows, Weighing w, const float* largest) {
  Range range = range_of(rows);
  float t = 0;
  for (int p = threadIdx.x; p < rows.parts; p += blockDim.x)
    t = Max{}(t, largest[rows.row() * rows.parts + p]);
  t = reduce(t, Max{});
  for (int64_t i = rows.first() + threadIdx.x; i < rows.first() + kPart && i < rows.k;
       i += blockDim.x) {
    int64_t at = w.positions[rows.row() * rows.k + i];
    float weight = __int_as_float(0x7fc00000);
    if (in_row(at, rows.n)) {
      float score = __int_as_float(rows.key[rows.row() * rows.n + at]);
      weight = weight_for(weight_of(score, range, w.s_min, w.span), t, w.share);
    }
    w.out[rows.row() * rows.k + i] = weight;
  }
}

}  // namespace ausam::cuda
