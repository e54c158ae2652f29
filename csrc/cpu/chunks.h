// A list of tensors as one range of work: cut into chunks of fixed size, so that one parallel loop
// covers all tensors and sums have the same order for every number of threads.
#pragma once

#include "../checks.h"
#include "../dense.h"
#include "simd.h"

namespace ausam::cpu {

constexpr int64_t kChunk = 16384;    // elements; 64 KB of float32 stay in the L2 cache
constexpr int64_t kGrainChunks = 2;  // chunks below which a second thread does not pay

struct Chunk {
  size_t tensor;
  int64_t begin, end;
};

inline std::vector<Chunk> cut(const std::vector<Tensor>& tensors) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < tensors.size(); ++i) {
    int64_t n = tensors[i].numel();
    for (int64_t begin = 0; begin < n; begin += kChunk)
      chunks.push_back({i, begin, std::min(n, begin + kChunk)});
  }
  return chunks;
}

// Calls f(i) for every chunk i. Small tensors share a thread: the grain counts elements, not
// chunks.
template <class F>
void for_each_chunk(const std::vector<Chunk>& chunks, F&& f) {
  int64_t elements = 0;
  for (auto& c : chunks) elements += c.end - c.begin;
  int64_t count = static_cast<int64_t>(chunks.size());
  int64_t grain = elements < kGrainChunks * kChunk ? count : 1;
  torch::stable::parallel_for(0, count, std::max<int64_t>(grain, 1), [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) f(i);
  });
}

// Sum of value(i)^2 in float64: no overflow for any float32, and as exact as the result's dtype.
// Eight independent sums, so that the compiler may use vectors without reordering.
template <class F>
AUSAM_SIMD_PART double sum_of_squares(int64_t begin, int64_t end, F&& value) {
  double lane[8] = {};
  int64_t i = begin;
  for (; i + 8 <= end; i += 8)
    for (int l = 0; l < 8; ++l) {
      double x = value(i + l);
      lane[l] += x * x;
    }
  for (int l = 0; i < end; ++i, ++l) {
    double x = value(i);
    lane[l] += x * x;
  }
  return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

inline Tensor scalar(double value, ScalarType type) { return torch::stable::full({}, value, type); }

}  // namespace ausam::cpu
