// Device memory of one call: several arrays in one allocation.
#pragma once

#include "launch.h"

namespace ausam::cuda {

// `layout(take)` calls take(pointer, n) for every array, twice: for the size and for the pointers.
// The memory comes from torch's allocator and is freed in the order of the stream.
template <class Layout>
Tensor workspace(const Tensor& like, Layout layout) {
  uintptr_t next = 0;
  auto take = [&](auto*& pointer, int64_t n) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(next);
    next += (n * sizeof(*pointer) + 15) / 16 * 16;
  };
  layout(take);
  auto bytes = static_cast<int64_t>(next);
  Tensor memory = torch::stable::new_empty(like, {&bytes, 1}, ScalarType::Byte);
  next = reinterpret_cast<uintptr_t>(memory.data_ptr());
  layout(take);
  return memory;
}

}  // namespace ausam::cuda
