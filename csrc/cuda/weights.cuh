// subset_weights: how much a chosen sample weighs, given the keys of those not chosen.
//
// One block takes a row of up to kWeighRow scores in one launch; several share a longer one, in
// four:
//
//   load_scores    scores, and their range in every part of the row (large_rows.cuh)
//   mark_kept      which of the row were chosen
//   find_largest   the largest key in every part that was not
//   weigh          the weights
#pragma once

#include "large_rows.cuh"

namespace ausam::cuda {

constexpr int kWeighRow = 4096;  // as fit the shared memory of every architecture

struct Weighing {
  const float* noise;        // [rows, n]
  const int64_t* positions;  // [rows, k]
  float s_min, span, share;
  float* out;  // [rows, k]
};

// A position outside the row is neither read nor written, and weighs NaN.
__device__ inline bool in_row(int64_t position, int64_t n) { return position >= 0 && position < n; }

// The larger of t and a key, which may be NaN, or -0, of which fmaxf() may make a t of -0.
__device__ inline float larger(float t, float s, float noise) {
  float key = s / noise;
  return key > t ? key : t;
}

struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// The weight of a sample whose chance is s, if t is the largest key that was not kept.
__device__ inline float weight_for(float s, float t, float share) {
  float p = -expm1f(-(s / t));
  constexpr float kLeast = 8.673617379884035e-19f;  // 2^-60
  return share / (p > kLeast ? p : kLeast);
}

struct WeighMemory {
  Range ranges[kMaxWarps];
  float largest[kMaxWarps];
  struct {
    float score;
    int32_t kept;   // how often it was chosen
  } of[kWeighRow];  // as many as the row has
};

__global__ void weigh_rows(Scores load, Weighing w, int n, int k) {
  auto& memory = shared_memory<WeighMemory>();
  int64_t row = blockIdx.x;
  const float* noise = w.noise + row * n;
  const int64_t* positions = w.positions + row * k;
  Range range = Range::none();
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    float score = load(row * n + j);
    range.add(score);
    memory.of[j] = {score, 0};
  }
  range = reduce(range, Merge{}, memory.ranges);  // a barrier too
  for (int i = threadIdx.x; i < k; i += blockDim.x)
    if (in_row(positions[i], n)) atomicAdd(&memory.of[positions[i]].kept, 1);
  __syncthreads();
  float t = 0;
  for (int j = threadIdx.x; j < n; j += blockDim.x)
    if (!memory.of[j].kept)
      t = larger(t, weight_of(memory.of[j].score, range, w.s_min, w.span), noise[j]);
  t = reduce(t, Max{}, memory.largest);
  for (int i = threadIdx.x; i < k; i += blockDim.x) {
    int64_t at = positions[i];
    float weight = __int_as_float(0x7fc00000);
    if (in_row(at, n))
      weight = weight_for(weight_of(memory.of[at].score, range, w.s_min, w.span), t, w.share);
    w.out[row * k + i] = weight;
  }
}

struct PartMemory {
  Range ranges[kMaxWarps];
  float largest[kMaxWarps];
};

// Calls f(i) for the positions that a block takes, counted from the first of all rows.
template <class F>
__device__ void for_each_position(const LargeRows& rows, const Part& part, F f) {
  for (int64_t i = part.first + threadIdx.x; i < part.first + kPart && i < rows.k; i += blockDim.x)
    f(part.row * rows.k + i);
}

// `kept`, of all rows: how often each was chosen; zero before
__global__ void mark_kept(LargeRows rows, Weighing w, uint32_t* kept) {
  Part part = rows.part(blockIdx.x);
  for_each_position(rows, part, [&](int64_t i) {
    int64_t at = w.positions[i];
    if (in_row(at, rows.n)) atomicAdd(kept + part.row * rows.n + at, 1);
  });
}

__global__ void find_largest(LargeRows rows, Weighing w, const uint32_t* kept, float* largest) {
  auto& memory = shared_memory<PartMemory>();
  Part part = rows.part(blockIdx.x);
  Range range = range_of(rows, part.row, memory.ranges);
  float t = 0;
  for_each_score(rows, part, [&](int, int64_t at) {
    float s = weight_of(__uint_as_float(rows.key[at]), range, w.s_min, w.span);
    if (!kept[at]) t = larger(t, s, w.noise[at]);
  });
  t = reduce(t, Max{}, memory.largest);
  if (threadIdx.x == 0) largest[blockIdx.x] = t;
}

__global__ void weigh(LargeRows rows, Weighing w, const float* largest) {
  auto& memory = shared_memory<PartMemory>();
  Part part = rows.part(blockIdx.x);
  Range range = range_of(rows, part.row, memory.ranges);
  float t = 0;
  for (int p = threadIdx.x; p < rows.parts; p += blockDim.x)
    t = fmaxf(t, largest[part.row * rows.parts + p]);
  t = reduce(t, Max{}, memory.largest);
  for_each_position(rows, part, [&](int64_t i) {
    int64_t at = w.positions[i];
    float weight = __int_as_float(0x7fc00000);
    if (in_row(at, rows.n)) {
      float score = __uint_as_float(rows.key[part.row * rows.n + at]);
      weight = weight_for(weight_of(score, range, w.s_min, w.span), t, w.share);
    }
    w.out[i] = weight;
  });
}

}  // namespace ausam::cuda
