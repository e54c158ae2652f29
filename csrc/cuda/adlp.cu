// Launchers of dlp and adlp_update_.
#include "../checks.h"
#include "adlp.cuh"
#include "launch.h"

namespace ausam::cuda {
namespace {

constexpr int kAdlpThreads = 256;
constexpr int kOrderedThreads = 128;  // few, so that the search is spread over multiprocessors

Tensor dlp(const Tensor& loss, const Tensor& loss_perturbed) {
  check_like(loss_perturbed, loss, "dlp: loss_perturbed and loss");
  return dispatch_floating(loss.scalar_type(), [&](auto l) {
    using L = decltype(l);
    using A = acc_t<L>;
    NoGrad no_grad;
    DeviceOf device(loss);
    Tensor a = torch::stable::contiguous(loss), b = torch::stable::contiguous(loss_perturbed);
    Tensor out = torch::stable::new_empty(
        a, a.sizes(), std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
    int64_t n = out.numel();
    device.launch(dlp_kernel<L, A>, blocks_for(n, kAdlpThreads), kAdlpThreads, 0,
                  static_cast<const L*>(a.data_ptr()), static_cast<const L*>(b.data_ptr()),
                  static_cast<A*>(out.data_ptr()), n);
    return out;
  });
}

void adlp_update_(Tensor total, Tensor count, const Tensor& index, const Tensor& loss,
                  const Tensor& loss_perturbed, std::optional<Tensor> invalid,
                  std::optional<Tensor> tried) {
  check_table(total, count, index, invalid, tried);
  check_visits(total, index, loss, loss_perturbed);
  DeviceOf device(total);
  dispatch_table(total.scalar_type(), [&](auto t) {
    dispatch_index(index.scalar_type(), [&](auto i) {
      dispatch_floating(loss.scalar_type(), [&](auto l) {
        using T = decltype(t);
        using I = decltype(i);
        using L = decltype(l);
        using A = acc_t<L>;
        auto sums = vector_of<T>(total);
        auto visits = vector_of<int32_t>(count);
        auto idx = vector_of<const I>(index);
        auto a = vector_of<const L>(loss);
        auto b = vector_of<const L>(loss_perturbed);
        auto marks = vector_of<uint8_t>(tried);
        int64_t n = index.numel();
        Visits<T, I, L> v{
            sums.data,           visits.data, idx.data,    a.data,   b.data,        sums.stride,
            visits.stride,       idx.stride,  a.stride,    b.stride, total.numel(), n,
            counter_of(invalid), marks.data,  marks.stride};
        if (n <= kOrderedVisits)
          device.launch(update_in_order<A, T, I, L>, blocks_for(n, kOrderedThreads),
                        kOrderedThreads, n * sizeof(int64_t), v);
        else
          device.launch(update_by_atomics<A, T, I, L>, blocks_for(n, kAdlpThreads), kAdlpThreads, 0,
                        v);
      });
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CUDA, m) {
  m.impl("dlp", TORCH_BOX(&dlp));
  m.impl("adlp_update_", TORCH_BOX(&adlp_update_));
}

}  // namespace ausam::cuda
