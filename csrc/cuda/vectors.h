// Tensors as the vectors of vectors.cuh.
#pragma once

#include "launch.h"
#include "vectors.cuh"

namespace ausam::cuda {

inline Integers integers_of(const Tensor& t) {
  return {t.data_ptr(), vector_of<int>(t).stride, t.scalar_type() == ScalarType::Long};
}

inline Floats floats_of(const Tensor& t) {
  return {t.data_ptr(), vector_of<float>(t).stride, t.scalar_type()};
}

// Contiguous, of any shape.
inline Integers flat_integers(const Tensor& t) {
  return {t.data_ptr(), 1, t.scalar_type() == ScalarType::Long};
}

inline Floats flat_floats(const Tensor& t) { return {t.data_ptr(), 1, t.scalar_type()}; }

}  // namespace ausam::cuda
