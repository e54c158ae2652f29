// Launchers of dlp and adlp_update_.
#include "adlp.cuh"
#include "vectors.h"

namespace ausam::cuda {
namespace {

constexpr int kAdlpThreads = 256;
constexpr int kOrderedThreads = 256;

Tensor dlp(const Tensor& loss, const Tensor& loss_perturbed) {
  check_like(loss_perturbed, loss, "dlp: loss_perturbed and loss");
  STD_TORCH_CHECK(is_floating(loss.scalar_type()), "dlp: floating point");
  NoGrad no_grad;
  DeviceOf device(loss);
  Tensor a = torch::stable::contiguous(loss), b = torch::stable::contiguous(loss_perturbed);
  ScalarType type = a.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor out = torch::stable::new_empty(a, a.sizes(), type);
  int64_t n = out.numel();
  dispatch_table(type, [&](auto t) {
    using T = decltype(t);
    device.launch(dlp_kernel<T>, blocks_for(n, kAdlpThreads), kAdlpThreads, 0, flat_floats(a),
                  flat_floats(b), static_cast<T*>(out.data_ptr()), n);
  });
  return out;
}

void adlp_update_(Tensor total, Tensor count, const Tensor& index, const Tensor& loss,
                  const Tensor& loss_perturbed, std::optional<Tensor> invalid,
                  std::optional<Tensor> tried) {
  check_table(total, count, index, invalid, tried);
  check_visits(total, index, loss, loss_perturbed);
  DeviceOf device(total);
  dispatch_table(total.scalar_type(), [&](auto t) {
    using T = decltype(t);
    auto sums = vector_of<T>(total);
    auto visits = vector_of<int32_t>(count);
    auto marks = vector_of<uint8_t>(tried);
    int64_t n = index.numel();
    Visits<T> v{sums.data,
                visits.data,
                sums.stride,
                visits.stride,
                integers_of(index),
                floats_of(loss),
                floats_of(loss_perturbed),
                total.numel(),
                n,
                counter_of(invalid),
                marks.data,
                marks.stride};
    int64_t groups = blocks_for(n, 32);
    if (n <= kOrderedVisits)
      device.launch(update_in_order<T>, groups,
                    static_cast<int>(std::min<int64_t>(32 * groups, kOrderedThreads)),
                    sizeof(Search), v);
    else
      device.launch(update_by_atomics<T>, blocks_for(n, kAdlpThreads), kAdlpThreads, 0, v);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CUDA, m) {
  m.impl("dlp", TORCH_BOX(&dlp));
  m.impl("adlp_update_", TORCH_BOX(&adlp_update_));
}

}  // namespace ausam::cuda
