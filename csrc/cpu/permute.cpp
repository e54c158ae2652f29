// permute: a value of a random permutation for each position.
#include <atomic>

#include "../permutation.h"

namespace ausam::cpu {
namespace {

constexpr int64_t kGrain = 8192;  // positions that a thread takes at least

AUSAM_SIMD bool all_inside(const int64_t* position, int64_t length, int64_t n) {
  bool inside = true;
  for (int64_t j = 0; j < length; ++j) inside &= (position[j] >= 0) & (position[j] < n);
  return inside;
}

// Round by round for a block: the rounds of one value wait for each other.
AUSAM_SIMD void pass_all(const Permutation& p, const int64_t* position, int64_t length,
                         int64_t* out) {
  constexpr int64_t kBlock = 256;
  uint32_t low[kBlock], top[kBlock];
  for (int64_t begin = 0; begin < length; begin += kBlock) {
    int64_t size = std::min(kBlock, length - begin);
    for (int64_t j = 0; j < size; ++j) {
      auto x = p.split(position[begin + j]);
      low[j] = x.low, top[j] = x.top;
    }
    for (int r = 0; r < kPermutationKeys; r += 2)
      for (int64_t j = 0; j < size; ++j) {
        auto x = p.rounds({low[j], top[j]}, r);
        low[j] = x.low, top[j] = x.top;
      }
    for (int64_t j = 0; j < size; ++j) out[begin + j] = p.join({low[j], top[j]});
  }
}

Tensor permute(const Tensor& position, int64_t n, std::vector<int64_t> keys) {
  check_permute(position, n, keys);
  NoGrad no_grad;
  Permutation p = permutation_of(n, keys);
  Tensor x = packed(position), out = empty_on_cpu({x.numel()}, ScalarType::Long);
  auto* from = static_cast<const int64_t*>(x.data_ptr());
  auto* to = static_cast<int64_t*>(out.data_ptr());
  std::atomic<bool> inside{true};
  torch::stable::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    // What is outside may never come back.
    if (!all_inside(from + begin, end - begin, n)) return inside.store(false);
    pass_all(p, from + begin, end - begin, to + begin);
    for (int64_t j = begin; j < end; ++j) to[j] = p.walk(to[j]);
  });
  STD_TORCH_CHECK(inside, "position: some are not below n");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CPU, m) { m.impl("permute", TORCH_BOX(&permute)); }

}  // namespace ausam::cpu
