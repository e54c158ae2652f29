// Rows that many blocks share: their parts, and what is known of each.
#pragma once

#include "scores.cuh"

namespace ausam::cuda {

constexpr int kPartThreads = 512;                // of a block
constexpr int kPartEach = 8;                     // scores of a thread
constexpr int kPartWarp = 32 * kPartEach;        // of a warp, side by side
constexpr int kPart = kPartThreads * kPartEach;  // of a row that one block takes

// What one block takes.
struct Part {
  int64_t row, first;  // first: position in the row
  int number;          // of the part in the row
};

// Device memory of one call.
struct LargeRows {
  int64_t n, k;
  int parts;       // ceil(n / kPart)
  uint32_t* key;   // [rows, n]; holds the scores first
  Range* range;    // [rows, parts]
  uint32_t* zero;  // [zeros], for the kernels after load_scores
  int64_t zeros;
  __device__ Part part(int64_t block) const {
    int number = static_cast<int>(block % parts);
    return {block / parts, int64_t{number} * kPart, number};
  }
};

// Calls f(i, at) for the scores of a thread: `at` counts from the first of all rows.
template <class F>
__device__ void for_each_score(const LargeRows& rows, const Part& part, F f) {
  int64_t j = part.first + warp() * kPartWarp + lane();
  for (int i = 0; i < kPartEach; ++i, j += 32)
    if (j < rows.n) f(i, part.row * rows.n + j);
}

// First of all kernels: scores, and their range in every part.
template <class Load>
__global__ void load_scores(LargeRows rows, Load load) {
  auto* ranges = &shared_memory<Range>();
  int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows.zeros; i += threads)
    rows.zero[i] = 0;
  Range range = Range::none();
  for_each_score(rows, rows.part(blockIdx.x), [&](int, int64_t at) {
    float score = load(at);
    range.add(score);
    rows.key[at] = __float_as_uint(score);
  });
  range = reduce(range, Merge{}, ranges);
  if (threadIdx.x == 0) rows.range[blockIdx.x] = range;
}

// The range of a whole row. One barrier.
__device__ inline Range range_of(const LargeRows& rows, int64_t row, Range* partial) {
  Range range = Range::none();
  for (int p = threadIdx.x; p < rows.parts; p += blockDim.x)
    range = Merge{}(range, rows.range[row * rows.parts + p]);
  return reduce(range, Merge{}, partial);
}

}  // namespace ausam::cuda
