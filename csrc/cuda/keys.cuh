// Keys of the exponential race (Eq. 7), and which of them are the k largest.
//
// A warp has keys that lie side by side in a row: key[i] of a lane is number 32 i + lane.
#pragma once

#include "scores.cuh"

namespace ausam::cuda {

constexpr uint32_t kNoKey = 0;  // past the end of a row: below all keys

// The key s / e as an integer of the same order. NaN (from a NaN in the noise) counts as -inf, and
// -0 as 0.
__device__ inline uint32_t key_of(float weight, float noise) {
  float key = weight / noise;
  uint32_t bits = __float_as_uint(key == key ? key + 0.0f : -infinity());
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The chosen keys: those above `key`, and of those equal to it the first `ties`.
struct Threshold {
  uint32_t key, ties;
};

// How many keys are above a threshold's, and how many equal it.
struct Chosen {
  uint32_t above, equal;
};

struct Add {
  __device__ Chosen operator()(Chosen a, Chosen b) const {
    return {a.above + b.above, a.equal + b.equal};
  }
};

// Of a warp; all its lanes get the result.
template <int each>
__device__ Chosen count(const uint32_t (&key)[each], Threshold t) {
  Chosen c{};
  for (int i = 0; i < each; ++i) {
    c.above += __popc(__ballot_sync(kAllLanes, key[i] > t.key));
    c.equal += __popc(__ballot_sync(kAllLanes, key[i] == t.key));
  }
  return c;
}

// Of the warps before this one; `all`: of the block. One barrier.
__device__ inline Chosen count_before(Chosen mine, Chosen* partial, Chosen& all) {
  if (lane() == 0) partial[warp()] = mine;
  __syncthreads();
  Chosen before{};
  all = {};
  for (int w = 0; w < warps(); ++w) {
    if (w == warp()) before = all;
    all = Add{}(all, partial[w]);
  }
  return before;
}

// Writes the positions of a warp's chosen keys, of which `first` is the first key's, in ascending
// order; `before`: in the row before them.
template <int each>
__device__ void emit(const uint32_t (&key)[each], Threshold t, Chosen before, int64_t first,
                     int64_t* out) {
  uint32_t lower = (1u << lane()) - 1;
  for (int i = 0; i < each; ++i) {
    uint32_t above = __ballot_sync(kAllLanes, key[i] > t.key);
    uint32_t equal = __ballot_sync(kAllLanes, key[i] == t.key);
    uint32_t ties = before.equal + __popc(equal & lower);
    if (key[i] > t.key || (key[i] == t.key && ties < t.ties))
      out[before.above + __popc(above & lower) + min(ties, t.ties)] = first + 32 * i + lane();
    before =
        Add{}(before, {static_cast<uint32_t>(__popc(above)), static_cast<uint32_t>(__popc(equal))});
  }
}

constexpr int kBuckets = 256;

// The bucket of the k-th largest key, how many keys are in it, and which of them it is.
struct Bucket {
  int at;
  uint32_t size, rank;
};

// Sizes of eight buckets side by side, aligned to 16 bytes.
struct Eight {
  uint32_t size[8];
  __device__ explicit Eight(const uint32_t* from) {
    auto* four = reinterpret_cast<const uint4*>(from);
    for (int i = 0; i < 2; ++i) {
      uint4 v = four[i];
      size[4 * i] = v.x;
      size[4 * i + 1] = v.y;
      size[4 * i + 2] = v.z;
      size[4 * i + 3] = v.w;
    }
  }
  __device__ uint32_t sum() const {
    uint32_t s = 0;
    for (int i = 0; i < 8; ++i) s += size[i];
    return s;
  }
  // Which has the key of a rank; `first`: the number of the first.
  __device__ Bucket find(int first, uint32_t rank) const {
    Bucket b{first, size[0], rank};
    bool found = false;
    for (int i = 7; i >= 0; --i) {
      if (found) continue;
      found = b.rank <= size[i];
      if (found)
        b = {first + i, size[i], b.rank};
      else
        b.rank -= size[i];
    }
    return b;
  }
};

// Which of kBuckets, by one warp, whose lanes all get the result.
__device__ inline Bucket bucket_of(const uint32_t* sizes, uint32_t rank) {
  int first = 8 * (31 - lane());  // from the largest keys down
  Eight mine(sizes + first);
  uint32_t upto = mine.sum(), before = upto;
  for (int by = 1; by < 32; by *= 2) {
    uint32_t other = __shfl_up_sync(kAllLanes, upto, by);
    if (lane() >= by) upto += other;
  }
  before = upto - before;
  Bucket b = mine.find(first, rank - before);
  int from = __ffs(__ballot_sync(kAllLanes, rank <= upto)) - 1;
  return {__shfl_sync(kAllLanes, b.at, from), __shfl_sync(kAllLanes, b.size, from),
          __shfl_sync(kAllLanes, b.rank, from)};
}

}  // namespace ausam::cuda
