// subset_sample and adlp_sample for rows that many blocks share: no sort, six launches whatever the
// length.
//
//   load_scores    scores, and their range in every part of the row
//   make_keys      keys; histogram of their upper 11 bits
//   narrow<1>      which upper bits the k-th largest key has; histogram of the next 11
//   narrow<2>      likewise for the last 10
//   count_chosen   the threshold; chosen and equal keys in every part
//   emit_parts     positions
#pragma once

#include "large_rows.cuh"

namespace ausam::cuda {

__device__ constexpr int digit_shift(int digit) { return digit == 0 ? 21 : digit == 1 ? 10 : 0; }
__device__ constexpr int digit_mask(int digit) { return digit == 2 ? 0x3ff : 0x7ff; }

// Keys in the order of unsigned integers, which their digits are taken from.
__device__ inline uint32_t unsigned_of(int32_t key) {
  return static_cast<uint32_t>(key) ^ 0x80000000u;
}

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

// Adds the digit of every key for which `counted` holds to the row's histogram.
template <class Counted>
__device__ void count_digits(const LargeRows& rows, int digit, Counted counted) {
  int32_t* bucket = shared_memory<int32_t>(kScratch);
  for (int b = threadIdx.x; b < kBuckets; b += blockDim.x) bucket[b] = 0;
  __syncthreads();
  for (int j = threadIdx.x; j < rows.size(); j += blockDim.x) {
    uint32_t key = unsigned_of(rows.keys()[j]);
    if (counted(key)) atomicAdd(bucket + (key >> digit_shift(digit) & digit_mask(digit)), 1);
  }
  __syncthreads();
  for (int b = threadIdx.x; b < kBuckets; b += blockDim.x)
    if (bucket[b]) atomicAdd(rows.digits(digit) + b, bucket[b]);
}

__global__ void make_keys(LargeRows rows, const float* noise, float s_min, float span) {
  Range range = range_of(rows);
  noise += rows.row() * rows.n + rows.first();
  for (int j = threadIdx.x; j < rows.size(); j += blockDim.x)
    rows.keys()[j] = key_of(__int_as_float(rows.keys()[j]), noise[j], range, s_min, span);
  // Every thread counts the keys that it has written itself.
  count_digits(rows, 0, [](uint32_t) { return true; });
}

// The digits of the k-th largest key so far, and its rank among the keys that begin with them.
struct Prefix {
  uint32_t bits;
  int64_t rank;
};

// Walks down one histogram: which bucket holds the key of a rank. All threads get the result.
__device__ inline void descend(const int32_t* histogram, int digit, Prefix& prefix) {
  int32_t* bucket = shared_memory<int32_t>(kScratch);
  int32_t* chosen = bucket + kBuckets;  // [2]: the bucket, and how many keys are in those above
  int per_thread = kBuckets / blockDim.x;
  int top = kBuckets - 1 - threadIdx.x * per_thread;  // this thread's buckets, downwards
  int mine = 0;
  for (int b = top; b > top - per_thread; --b) {
    bucket[b] = histogram[b];
    mine += bucket[b];
  }
  // Keys in the buckets of the threads before: an exclusive scan.
  int before = mine;
  for (int step = 1; step < 32; step *= 2) {
    int other = __shfl_up_sync(kAllLanes, before, step);
    if (lane() >= step) before += other;
  }
  int32_t* totals = shared_memory<int32_t>();
  __syncthreads();
  if (lane() == 31) totals[warp()] = before;
  __syncthreads();
  for (int w = 0; w < warp(); ++w) before += totals[w];
  before -= mine;
  if (before < prefix.rank && prefix.rank <= before + mine) {
    int b = top;
    for (int above = before;; --b) {
      if (prefix.rank <= above + bucket[b]) {
        chosen[0] = b;
        chosen[1] = above;
        break;
      }
      above += bucket[b];
    }
  }
  __syncthreads();
  prefix.bits |= static_cast<uint32_t>(chosen[0]) << digit_shift(digit);
  prefix.rank -= chosen[1];
  __syncthreads();  // before the shared memory is used again
}

__device__ inline Prefix prefix_of(const LargeRows& rows, int digits) {
  Prefix prefix{0, rows.k};
  for (int d = 0; d < digits; ++d) descend(rows.digits(d), d, prefix);
  return prefix;
}

template <int digit>
__global__ void narrow(LargeRows rows) {
  Prefix prefix = prefix_of(rows, digit);
  uint32_t known = ~uint32_t{0} << digit_shift(digit - 1);
  count_digits(rows, digit, [=](uint32_t key) { return (key & known) == prefix.bits; });
}

__global__ void count_chosen(LargeRows rows) {
  Prefix prefix = prefix_of(rows, kDigits);
  Threshold t{static_cast<int32_t>(prefix.bits ^ 0x80000000u), static_cast<int>(prefix.rank)};
  int above = 0, equal = 0;
  for (int j = threadIdx.x; j < rows.size(); j += blockDim.x) {
    above += rows.keys()[j] > t.key;
    equal += rows.keys()[j] == t.key;
  }
  above = reduce(above, Add{});
  equal = reduce(equal, Add{});
  if (threadIdx.x > 0) return;
  rows.above[blockIdx.x] = above;
  rows.equal[blockIdx.x] = equal;
  if (rows.part() == 0) rows.threshold[rows.row()] = t;
}

__global__ void emit_parts(LargeRows rows, int64_t* out) {
  Threshold t = rows.threshold[rows.row()];
  int above = 0, equal = 0;  // in the parts before this one
  for (int p = threadIdx.x; p < rows.part(); p += blockDim.x) {
    above += rows.above[rows.row() * rows.parts + p];
    equal += rows.equal[rows.row() * rows.parts + p];
  }
  above = reduce(above, Add{});
  equal = reduce(equal, Add{});
  out += rows.row() * rows.k + above + Min{}(equal, t.ties);
  t.ties = Max{}(t.ties - equal, 0);
  emit(rows.keys(), rows.size(), t, rows.first(), out);
}

}  // namespace ausam::cuda
