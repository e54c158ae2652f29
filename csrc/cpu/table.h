// What happens to an index outside the table of per-sample statistics.
#pragma once

#include <atomic>
#include <optional>

#include "../checks.h"

namespace ausam::cpu {

constexpr int64_t kGrain = 32768;  // entries a thread takes at least

template <class I>
bool is_outside(I index, int64_t num_samples) {
  return index < 0 || index >= num_samples;
}

// Counts the entries outside the table in `invalid`, or refuses them; called before anything is
// written.
template <class I>
void report_outside(Vector<I> index, int64_t n, int64_t num_samples,
                    const std::optional<Tensor>& invalid) {
  std::atomic<int64_t> outside{0};
  torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    int64_t found = 0;
    for (int64_t j = begin; j < end; ++j) found += is_outside(index[j], num_samples);
    outside += found;
  });
  STD_TORCH_CHECK(outside == 0 || invalid, "index: ", outside.load(),
                  " entries are outside the table");
  if (invalid) *static_cast<int32_t*>(invalid->data_ptr()) += static_cast<int32_t>(outside);
}

}  // namespace ausam::cpu
