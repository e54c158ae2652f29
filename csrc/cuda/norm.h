// Launching the norm of a list of tensors.
#pragma once

#include "list.h"
#include "norm.cuh"

namespace ausam::cuda {

// ||g||^2 in parts, one for each block, on the first device.
inline Tensor squared_norms_of(const DenseList& w, const DenseList& g,
                               const std::vector<OnDevice>& devices, bool adaptive) {
  std::vector<Tensor> partials;
  for (auto& d : devices) {
    const Tensor& here = w[d.groups[0].members[0]];
    DeviceOf device(here);
    partials.push_back(doubles(here, count_blocks(d, w.tensors())));
    double* next = data(partials.back());
    for (auto& group : d.groups)
      dispatch_floating(group.type, [&](auto t) {
        using T = decltype(t);
        for_each_list<2>({&w, &g}, group.members, d.chunk(), sizeof(T), [&](auto& list, int64_t n) {
          device.launch(squared_norms<T, acc_t<T>>, n, kListThreads, kSumBytes, list, adaptive,
                        next);
          next += n;
        });
      });
  }
  return gathered(partials, 1);
}

}  // namespace ausam::cuda
