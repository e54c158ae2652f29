// Rows that many blocks share: their parts, and what is known of each.
#pragma once

#include "sample.cuh"

namespace ausam::cuda {

constexpr int kPart = 4096;     // scores of a row that one block takes
constexpr int kDigits = 3;      // of a key, from the upper bits down
constexpr int kBuckets = 2048;  // of the first two digits; the last has half as many

// Device memory of one call. Blocks of a row: blockIdx.x / parts is the row, blockIdx.x % parts the
// part.
struct LargeRows {
  int64_t n, k;
  int parts;             // ceil(n / kPart)
  int32_t* key;          // [rows, n]; holds the scores first
  Range* range;          // [rows, parts]
  int32_t* histogram;    // [rows, kDigits, kBuckets], zero
  int32_t* above;        // [rows, parts]
  int32_t* equal;        // [rows, parts]
  Threshold* threshold;  // [rows]
  __device__ int64_t row() const { return blockIdx.x / parts; }
  __device__ int part() const { return blockIdx.x % parts; }
  __device__ int64_t first() const { return int64_t{part()} * kPart; }
  __device__ int size() const { return static_cast<int>(Min{}(n - first(), int64_t{kPart})); }
  __device__ int32_t* keys() const { return key + row() * n + first(); }
  __device__ int32_t* digits(int digit) const {
    return histogram + (row() * kDigits + digit) * kBuckets;
  }
};

template <class Load>
__global__ void load_scores(LargeRows rows, Load load) {
  Range range{infinity(), -infinity()};
  for (int j = threadIdx.x; j < rows.size(); j += blockDim.x) {
    float score = load(rows.row() * rows.n + rows.first() + j);
    widen(range, score);
    rows.keys()[j] = __float_as_int(score);
  }
  range = {reduce(range.low, Min{}), reduce(range.high, Max{})};
  if (threadIdx.x == 0) rows.range[blockIdx.x] = range;
}

// The range of a whole row, from those of its parts.
__device__ inline Range range_of(const LargeRows& rows) {
  Range range{infinity(), -infinity()};
  for (int p = threadIdx.x; p < rows.parts; p += blockDim.x) {
    Range part = rows.range[rows.row() * rows.parts + p];
    range.low = Min{}(range.low, part.low);
    range.high = Max{}(range.high, part.high);
  }
  return {reduce(range.low, Min{}), reduce(range.high, Max{})};
}

}  // namespace ausam::cuda
