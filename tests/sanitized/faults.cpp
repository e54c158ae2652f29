// Mistakes of a CPU kernel, for test_sanitized.py: each is made where the first element is not 0.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <climits>
#include <cstdint>

namespace {

using torch::stable::Tensor;

bool broken(const Tensor& t) { return *static_cast<const int32_t*>(t.data_ptr()) != 0; }

void overrun_(Tensor t) {
  auto* x = static_cast<int32_t*>(t.data_ptr());
  int64_t n = t.numel() + broken(t);
  for (int64_t i = 1; i < n; ++i) x[i] = 1;
}

void read_before_(Tensor t) {
  auto* x = static_cast<int32_t*>(t.data_ptr());
  x[1] = x[broken(t) ? -1 : 0];
}

void overflow_(Tensor t) {
  auto* x = static_cast<int32_t*>(t.data_ptr());
  x[1] = x[0] + INT_MAX;
}

void misaligned_(Tensor t) {
  auto* bytes = static_cast<unsigned char*>(t.data_ptr());
  *reinterpret_cast<int64_t*>(bytes + (broken(t) ? 4 : 0)) = 0;
}

}  // namespace

STABLE_TORCH_LIBRARY(ausam_faults, m) {
  m.def("overrun_(Tensor(a!) t) -> ()");
  m.def("read_before_(Tensor(a!) t) -> ()");
  m.def("overflow_(Tensor(a!) t) -> ()");
  m.def("misaligned_(Tensor(a!) t) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ausam_faults, CPU, m) {
  m.impl("overrun_", TORCH_BOX(&overrun_));
  m.impl("read_before_", TORCH_BOX(&read_before_));
  m.impl("overflow_", TORCH_BOX(&overflow_));
  m.impl("misaligned_", TORCH_BOX(&misaligned_));
}
