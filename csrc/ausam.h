// What every operator shares: dtype dispatch, dense views of tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace ausam {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// bfloat16 and float16 are computed in float32.
template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline bool is_index(ScalarType t) { return t == ScalarType::Int || t == ScalarType::Long; }
inline bool is_table(ScalarType t) { return t == ScalarType::Float || t == ScalarType::Double; }
inline bool is_floating(ScalarType t) {
  return is_table(t) || t == ScalarType::BFloat16 || t == ScalarType::Half;
}

// Calls f with a value of the C++ type that `type` names.
template <class F>
auto dispatch_table(ScalarType type, F&& f) {
  STD_TORCH_CHECK(is_table(type), "expected float32 or float64");
  return type == ScalarType::Double ? f(double{}) : f(float{});
}

template <class F>
auto dispatch_index(ScalarType type, F&& f) {
  STD_TORCH_CHECK(is_index(type), "expected int32 or int64");
  return type == ScalarType::Int ? f(int32_t{}) : f(int64_t{});
}

template <class F>
auto dispatch_floating(ScalarType type, F&& f) {
  STD_TORCH_CHECK(is_floating(type), "expected float32, float64, bfloat16 or float16");
  switch (type) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(torch::headeronly::BFloat16{});
    case ScalarType::Half:
      return f(torch::headeronly::Half{});
    default:
      return f(float{});
  }
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  auto x = a.sizes(), y = b.sizes();
  return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
}

// Both without a call of the dispatcher, which takes as long as a small kernel.
inline Tensor packed(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline Tensor empty_on_cpu(const std::vector<int64_t>& sizes, ScalarType type) {
  auto dims = static_cast<int64_t>(sizes.size());
  std::vector<int64_t> strides(sizes);
  int64_t stride = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  AtenTensorHandle made;
  auto failed = aoti_torch_empty_strided(
      dims, sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
      aoti_torch_device_type_cpu(), 0, &made);
  STD_TORCH_CHECK(!failed, "no memory for ", stride, " elements");
  return Tensor(made);
}

// Copies made by a kernel are not recorded, whatever its arguments require.
class NoGrad {
 public:
  NoGrad() : enabled_(aoti_torch_grad_mode_is_enabled()) {
    aoti_torch_grad_mode_set_enabled(false);
  }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(enabled_); }
  NoGrad(const NoGrad&) = delete;

 private:
  bool enabled_;
};

// One-dimensional memory with a stride: tables and per-sample vectors need no copy.
template <class T>
struct Vector {
  T* data;
  int64_t stride;
  T& operator[](int64_t i) const { return data[i * stride]; }
};

template <class T>
Vector<T> vector_of(const Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), t.numel() > 1 ? t.stride(0) : 1};
}

// Of no memory if there is no tensor.
template <class T>
Vector<T> vector_of(const std::optional<Tensor>& t) {
  return t ? vector_of<T>(*t) : Vector<T>{nullptr, 0};
}

}  // namespace ausam
