// subset_sample and adlp_sample: AUSAM Eq. 7 and 8 over rows, bit for bit as
// ausam_ext/reference.py.
//
// One block takes a row of up to kBlockRow scores in one launch; sample_large.cuh has longer ones.
#pragma once

#include "keys.cuh"

namespace ausam::cuda {

constexpr int kEach = 4;           // keys of a thread
constexpr int kWarp = 32 * kEach;  // of a warp
constexpr int kBlockRow = kMaxWarps * kWarp;
constexpr int kRounds = 4;  // of 8 bits, until all keys that are left are equal

// The smallest and the largest key.
struct Extent {
  uint32_t least, most;
};

struct Widen {
  __device__ Extent operator()(Extent a, Extent b) const {
    return {min(a.least, b.least), max(a.most, b.most)};
  }
};

struct RowMemory {
  Range ranges[kMaxWarps];
  Extent extents[kMaxWarps];
  Chosen chosen[kMaxWarps];
  alignas(16) uint32_t histogram[kRounds][kBuckets];  // zero
};

// The k-th largest key of a block. Every round deals the keys that it may be among out to buckets
// of equal width and keeps one of those; most rows take two or three.
__device__ inline Threshold threshold_of(const uint32_t (&key)[kEach], uint32_t k,
                                         RowMemory& memory) {
  Extent e{~0u, 0};
  for (int i = 0; i < kEach; ++i)
    if (key[i] != kNoKey) e = Widen{}(e, {key[i], key[i]});
  e = reduce(e, Widen{}, memory.extents);
  for (int round = 0;; ++round) {
    int shift = max(0, 24 - __clz(static_cast<int>(e.most - e.least)));
    for (int i = 0; i < kEach; ++i)
      if (e.least <= key[i] && key[i] <= e.most)
        atomicAdd(memory.histogram[round] + ((key[i] - e.least) >> shift), 1);
    __syncthreads();
    Bucket b = bucket_of(memory.histogram[round], k);
    e.least += static_cast<uint32_t>(b.at) << shift;
    if (b.rank == b.size) return {e.least - 1, 0};
    if (shift == 0) return {e.least, b.rank};
    e.most = e.least + ((1u << shift) - 1);
    k = b.rank;
  }
}

// Scores, their range, keys, the k largest, positions. Four to seven barriers, mostly five.
template <class Load>
__global__ void sample_rows(Load load, const float* noise, int n, int k, float s_min, float span,
                            int64_t* out) {
  auto& memory = shared_memory<RowMemory>();
  for (int i = threadIdx.x; i < kRounds * kBuckets; i += blockDim.x)
    memory.histogram[i / kBuckets][i % kBuckets] = 0;
  int first = warp() * kWarp;
  int64_t row = blockIdx.x, at = row * n + first;
  float score[kEach], e[kEach];
  Range range = Range::none();
  for (int i = 0, j = lane(); i < kEach; ++i, j += 32) {
    bool inside = first + j < n;
    score[i] = inside ? load(at + j) : infinity();
    e[i] = inside ? noise[at + j] : 1;
    range.add(score[i]);
  }
  range = reduce(range, Merge{}, memory.ranges);
  uint32_t key[kEach];
  for (int i = 0, j = lane(); i < kEach; ++i, j += 32)
    key[i] = first + j < n ? key_of(weight_of(score[i], range, s_min, span), e[i]) : kNoKey;
  Threshold t = threshold_of(key, k, memory);
  Chosen all;
  Chosen before = count_before(count(key, t), memory.chosen, all);
  emit(key, t, before, first, out + row * k);
}

}  // namespace ausam::cuda
