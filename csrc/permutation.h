// The permutation of ausam_ext/permutation.py, value by value: a Feistel network in 32-bit
// arithmetic, and cycle walking.
#pragma once

#include "checks.h"
#include "cpu/simd.h"

#ifdef __CUDACC__
#define AUSAM_EVERYWHERE __host__ __device__
#else
#define AUSAM_EVERYWHERE
#endif

namespace ausam {

constexpr int kPermutationKeys = 8;

struct Permutation {
  int64_t n;
  int low_bits;
  uint32_t tops;
  uint32_t key[kPermutationKeys];

  AUSAM_EVERYWHERE AUSAM_SIMD_PART static uint32_t hash(uint32_t x) {
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= x >> 15;
    x *= 0x735a2d97u;
    return x ^ x >> 15;
  }

  struct Halves {
    uint32_t low, top;
  };

  AUSAM_EVERYWHERE AUSAM_SIMD_PART Halves split(int64_t x) const {
    return {static_cast<uint32_t>(x) & ((1u << low_bits) - 1),
            static_cast<uint32_t>(x >> low_bits)};
  }

  AUSAM_EVERYWHERE AUSAM_SIMD_PART int64_t join(Halves x) const {
    return int64_t{x.top} << low_bits | x.low;
  }

  // Rounds r and r + 1.
  AUSAM_EVERYWHERE AUSAM_SIMD_PART Halves rounds(Halves x, int r) const {
    x.low ^= hash(x.top ^ key[r]) & ((1u << low_bits) - 1);
    x.top += static_cast<uint32_t>((uint64_t{hash(x.low ^ key[r + 1])} * tops) >> 32);
    x.top -= x.top >= tops ? tops : 0;
    return x;
  }

  // All rounds, which may lead out of the n.
  AUSAM_EVERYWHERE AUSAM_SIMD_PART int64_t pass(int64_t x) const {
    Halves halves = split(x);
    for (int r = 0; r < kPermutationKeys; r += 2) halves = rounds(halves, r);
    return join(halves);
  }

  // Back among the n, for what `pass` gave.
  AUSAM_EVERYWHERE AUSAM_SIMD_PART int64_t walk(int64_t x) const {
    while (x >= n) x = pass(x);
    return x;
  }
};

inline Permutation permutation_of(int64_t n, const std::vector<int64_t>& keys) {
  int bits = 0;  // of the largest value
  while ((n - 1) >> bits) ++bits;
  Permutation p{};
  p.n = n;
  p.low_bits = std::max(bits, 6) / 2;
  p.tops = static_cast<uint32_t>(std::max<int64_t>(8, ((n - 1) >> p.low_bits) + 1));
  std::transform(keys.begin(), keys.end(), p.key,
                 [](int64_t key) { return static_cast<uint32_t>(key); });
  return p;
}

inline void check_permute(const Tensor& position, int64_t n, const std::vector<int64_t>& keys) {
  STD_TORCH_CHECK(position.scalar_type() == ScalarType::Long && position.dim() == 1,
                  "position: int64 of one dimension");
  STD_TORCH_CHECK(n >= 1 && n <= int64_t{1} << 62, "n: from 1 to 2^62");
  STD_TORCH_CHECK(keys.size() == kPermutationKeys, "keys: ", kPermutationKeys);
  for (int64_t key : keys) STD_TORCH_CHECK(key >= 0 && key <= UINT32_MAX, "keys: 32 bits each");
}

}  // namespace ausam
