// Vectors of which a kernel learns the dtype only when it runs. All threads take the same branch,
// and one kernel takes the place of one for every pair or triple of dtypes.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace ausam::cuda {

// int32 or int64
struct Integers {
  const void* data;
  int64_t stride;
  bool wide;
  __device__ int64_t operator[](int64_t j) const {
    return wide ? static_cast<const int64_t*>(data)[j * stride]
                : static_cast<const int32_t*>(data)[j * stride];
  }
};

struct Floats {
  const void* data;
  int64_t stride;
  torch::headeronly::ScalarType type;
  template <class T>
  __device__ T at(int64_t j) const {
    return static_cast<const T*>(data)[j * stride];
  }
  __device__ bool is_double() const { return type == torch::headeronly::ScalarType::Double; }
  // Of any of the four dtypes but float64.
  __device__ float as_float(int64_t j) const {
    switch (type) {
      case torch::headeronly::ScalarType::BFloat16:
        return at<torch::headeronly::BFloat16>(j);
      case torch::headeronly::ScalarType::Half:
        return at<torch::headeronly::Half>(j);
      default:
        return at<float>(j);
    }
  }
};

}  // namespace ausam::cuda
