// Launchers of perturb_ and restore_.
#include "norm.h"
#include "perturb.cuh"

namespace ausam::cuda {
namespace {

Tensor perturb_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> backups,
                double rho, bool adaptive, bool maximize, std::optional<Tensor> given) {
  check_perturb(params, grads, backups, rho, given);
  if (maximize) rho = -rho;
  NoGrad no_grad;
  DenseList w(params), g(grads, w), saved(backups, w);
  auto devices = by_device(w.tensors());
  ScalarType type = result_type(params);
  if (devices.empty()) {
    Tensor norm = torch::stable::new_zeros(params.at(0), {}, type);
    if (given) torch::stable::copy_(norm, *given);
    return norm;
  }

  const Tensor& first = w[devices[0].groups[0].members[0]];
  Tensor sums = given ? doubles(first, 1) : squared_norms_of(w, g, devices, adaptive);
  if (given) torch::stable::copy_(sums, *given);
  Tensor norm = torch::stable::new_empty(first, {}, type), scale = doubles(first, 1);
  dispatch_table(type, [&](auto t) {
    using N = decltype(t);
    DeviceOf(first).launch(finish_norm<N>, 1, kListThreads, kSumBytes, data(sums), sums.numel(),
                           given.has_value(), rho, static_cast<N*>(norm.data_ptr()), data(scale));
  });

  for (auto& d : devices) {
    const Tensor& here = w[d.groups[0].members[0]];
    DeviceOf device(here);
    Tensor local = beside(scale, here);
    for (auto& group : d.groups)
      dispatch_floating(group.type, [&](auto t) {
        using T = decltype(t);
        for_each_list<3>(
            {&w, &g, &saved}, group.members, d.chunk(), sizeof(T), [&](auto& list, int64_t n) {
              device.launch(ascend<T, acc_t<T>>, n, kListThreads, 0, list, adaptive, data(local));
            });
      });
  }
  w.finish();
  saved.finish();
  return norm;
}

void restore_(std::vector<Tensor> params, std::vector<Tensor> backups) {
  check_pairs(params, backups, "restore_: params and backups");
  NoGrad no_grad;
  DenseList w(params), saved(backups, w);
  for (auto& d : by_device(w.tensors())) {
    DeviceOf device(w[d.groups[0].members[0]]);
    std::vector<size_t> members;  // dtypes do not matter
    for (auto& group : d.groups)
      members.insert(members.end(), group.members.begin(), group.members.end());
    for_each_list<2>({&w, &saved}, members, d.chunk(), 1, [&](auto& list, int64_t n) {
      device.launch(copy_bytes, n, kListThreads, 0, list);
    });
  }
  w.finish();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CUDA, m) {
  m.impl("perturb_", TORCH_BOX(&perturb_));
  m.impl("restore_", TORCH_BOX(&restore_));
}

}  // namespace ausam::cuda
