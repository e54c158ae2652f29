// The table of per-sample statistics: its checks, and what happens to an index outside it.
#pragma once

#include <atomic>
#include <optional>

#include "../ausam.h"

namespace ausam::cpu {

inline void check_table(const Tensor& total, const Tensor& count, const Tensor& index,
                        const std::optional<Tensor>& invalid) {
  STD_TORCH_CHECK(is_table(total.scalar_type()) && total.dim() == 1, "total: one float dimension");
  STD_TORCH_CHECK(count.scalar_type() == ScalarType::Int && same_shape(count, total),
                  "count: int32 of the shape of total");
  STD_TORCH_CHECK(is_index(index.scalar_type()), "index: int32 or int64");
  STD_TORCH_CHECK(total.is_cpu() && count.is_cpu() && index.is_cpu(), "all tensors on the CPU");
  if (invalid)
    STD_TORCH_CHECK(
        invalid->scalar_type() == ScalarType::Int && invalid->dim() == 0 && invalid->is_cpu(),
        "invalid: int32 of no dimension, on the CPU");
}

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
