// subset_sample and adlp_sample for rows that many blocks share: no sort, five launches whatever
// the length.
//
//   load_scores  scores, and their range in every part of the row (large_rows.cuh)
//   make_keys    keys; histogram of their upper 11 bits
//   narrow       which upper bits the k-th largest key has; histogram of the next 11
//   narrow       likewise for the last 10
//   choose       the threshold, and positions
//
// Each but the last needs to know of the whole row what the one before it found, and a block cannot
// wait for one that may not have started: not fewer than five. They move 8, 12, 4, 4 and 4 bytes a
// score (float32), and 8 a chosen one.
#pragma once

#include "keys.cuh"
#include "large_rows.cuh"

namespace ausam::cuda {

constexpr int kDigits = 3;                  // of a key, from the upper bits down
constexpr int kDigitValues = 8 * kBuckets;  // of the first two digits; the last has half as many

__device__ constexpr int digit_shift(int digit) { return digit == 0 ? 21 : digit == 1 ? 10 : 0; }
__device__ constexpr uint32_t digit_mask(int digit) { return digit == 2 ? 0x3ff : 0x7ff; }

// The digits of the k-th largest key that are known, and its rank among the keys that begin so.
struct Prefix {
  uint32_t bits, rank;
};

struct LargeSample {
  LargeRows rows;
  Prefix* prefix;       // [rows, kDigits]: before each digit
  uint32_t* histogram;  // [rows, kDigits, kDigitValues], zero
  uint32_t* published;  // [rows, parts], zero: what each part has of the chosen
  uint32_t* tickets;    // [1], zero
  __device__ uint32_t* digits(int64_t row, int digit) const {
    return histogram + (row * kDigits + digit) * kDigitValues;
  }
};

struct LargeMemory {
  Range ranges[kMaxWarps];
  Chosen chosen[kMaxWarps], earlier[kMaxWarps];
  uint32_t ticket;
  alignas(16) uint32_t sums[kBuckets];
  uint32_t histogram[kDigitValues];
};

__device__ inline void clear(uint32_t* histogram) {
  for (int b = threadIdx.x; b < kDigitValues; b += blockDim.x) histogram[b] = 0;
}

// Adds the counts of a block to those of the row.
__device__ inline void merge(const uint32_t* histogram, uint32_t* into) {
  __syncthreads();
  for (int b = threadIdx.x; b < kDigitValues; b += blockDim.x)
    if (histogram[b]) atomicAdd(into + b, histogram[b]);
}

__device__ inline void count_digit(uint32_t key, int digit, uint32_t* histogram) {
  atomicAdd(histogram + (key >> digit_shift(digit) & digit_mask(digit)), 1);
}

__global__ void make_keys(LargeSample s, const float* noise, float s_min, float span) {
  auto& memory = shared_memory<LargeMemory>();
  Part part = s.rows.part(blockIdx.x);
  clear(memory.histogram);
  Range range = range_of(s.rows, part.row, memory.ranges);  // a barrier
  for_each_score(s.rows, part, [&](int, int64_t at) {
    float score = __uint_as_float(s.rows.key[at]);
    uint32_t key = key_of(weight_of(score, range, s_min, span), noise[at]);
    s.rows.key[at] = key;
    count_digit(key, 0, memory.histogram);
  });
  merge(memory.histogram, s.digits(part.row, 0));
}

// One digit more of the k-th largest key. One barrier.
__device__ inline Prefix next(const LargeSample& s, int64_t row, int digit, uint32_t* sums) {
  Prefix p =
      digit == 0 ? Prefix{0, static_cast<uint32_t>(s.rows.k)} : s.prefix[row * kDigits + digit];
  const uint32_t* sizes = s.digits(row, digit);
  if (threadIdx.x < kBuckets) sums[threadIdx.x] = Eight(sizes + 8 * threadIdx.x).sum();
  __syncthreads();
  Bucket b = bucket_of(sums, p.rank);
  b = Eight(sizes + 8 * b.at).find(8 * b.at, b.rank);
  return {p.bits | static_cast<uint32_t>(b.at) << digit_shift(digit), b.rank};
}

// Finds the digit before `digit`, and counts that one in the keys which have all before it.
__global__ void narrow(LargeSample s, int digit) {
  auto& memory = shared_memory<LargeMemory>();
  Part part = s.rows.part(blockIdx.x);
  clear(memory.histogram);
  Prefix p = next(s, part.row, digit - 1, memory.sums);  // a barrier
  if (part.number == 0 && threadIdx.x == 0) s.prefix[part.row * kDigits + digit] = p;
  uint32_t known = ~uint32_t{0} << digit_shift(digit - 1);
  for_each_score(s.rows, part, [&](int, int64_t at) {
    uint32_t key = s.rows.key[at];
    if ((key & known) == p.bits) count_digit(key, digit, memory.histogram);
  });
  merge(memory.histogram, s.digits(part.row, digit));
}

// The parts of a row tell each other what they have of the chosen, in one word. A part waits only
// for those before it, whose blocks drew their tickets earlier and so run already: whatever the
// order in which blocks start, none waits for ever.
constexpr uint32_t kPublished = 1u << 31;
static_assert(kPart < 1 << 13);

__device__ inline void publish(volatile uint32_t* word, Chosen c) {
  *word = kPublished | c.above << 13 | c.equal;
}

__device__ inline Chosen wait_for(const volatile uint32_t* word) {
  uint32_t w = *word;
  while (!(w & kPublished)) w = *word;
  return {w >> 13 & 0x1fff, w & 0x1fff};
}

__global__ void choose(LargeSample s, int64_t* out) {
  auto& memory = shared_memory<LargeMemory>();
  if (threadIdx.x == 0) memory.ticket = atomicAdd(s.tickets, 1);
  __syncthreads();
  Part part = s.rows.part(memory.ticket);
  uint32_t key[kPartEach] = {};  // kNoKey
  for_each_score(s.rows, part, [&](int i, int64_t at) { key[i] = s.rows.key[at]; });
  Prefix p = next(s, part.row, kDigits - 1, memory.sums);
  Threshold t{p.bits, p.rank};
  Chosen all, before = count_before(count(key, t), memory.chosen, all);
  volatile uint32_t* published = s.published + part.row * s.rows.parts;
  if (threadIdx.x == 0) publish(published + part.number, all);
  Chosen earlier{};
  for (int q = threadIdx.x; q < part.number; q += blockDim.x)
    earlier = Add{}(earlier, wait_for(published + q));
  before = Add{}(before, reduce(earlier, Add{}, memory.earlier));
  emit(key, t, before, part.first + warp() * kPartWarp, out + part.row * s.rows.k);
}

}  // namespace ausam::cuda
