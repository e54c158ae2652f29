// Launchers of psf_capture_ and psf_reuse_.
#include "norm.h"
#include "psf.cuh"

namespace ausam::cuda {
namespace {

// The norms of the PSF and of the SGD gradient from the parts of their squares, [2, n]. One block.
template <class N>
__global__ void finish_norms(const double* sums, int64_t n, N* psf_norm, N* sgd_norm) {
  double psf = sum_of(sums, n), sgd = sum_of(sums + n, n);
  if (threadIdx.x > 0) return;
  *psf_norm = static_cast<N>(sqrt(psf));
  *sgd_norm = static_cast<N>(sqrt(sgd));
}

std::tuple<Tensor, Tensor> psf_capture_(std::vector<Tensor> psf, std::vector<Tensor> grads,
                                        std::optional<int64_t> norm_last) {
  check_floating(psf, "psf_capture_: psf");
  check_pairs(psf, grads, "psf_capture_: psf and grads");
  check_norm_last(norm_last, psf.size());
  size_t first_normed = psf.size() - norm_last.value_or(psf.size());
  NoGrad no_grad;
  DenseList p(psf), g(grads, p);
  auto devices = by_device(p.tensors());
  ScalarType type = result_type(psf);
  if (devices.empty())
    return {torch::stable::new_zeros(psf.at(0), {}, type),
            torch::stable::new_zeros(psf.at(0), {}, type)};

  std::vector<Tensor> partials;
  for (auto& d : devices) {
    const Tensor& here = p[d.groups[0].members[0]];
    DeviceOf device(here);
    int64_t blocks = count_blocks(d, p.tensors());
    partials.push_back(doubles(here, 2 * blocks));
    double* next = data(partials.back());
    for (auto& group : d.groups)
      dispatch_floating(group.type, [&](auto t) {
        using T = decltype(t);
        size_t before = 0;  // members in earlier launches
        int64_t unnormed = std::count_if(group.members.begin(), group.members.end(),
                                         [&](size_t i) { return i < first_normed; });
        for_each_list<2>({&p, &g}, group.members, d.chunk(), sizeof(T), [&](auto& list, int64_t n) {
          int norm_from =
              static_cast<int>(std::max<int64_t>(0, unnormed - static_cast<int64_t>(before)));
          device.launch(capture<T, acc_t<T>>, n, kListThreads, kSumBytes, list, norm_from, next,
                        next + blocks);
          next += n;
          before += list.tensors;
        });
      });
  }

  const Tensor& first = p[devices[0].groups[0].members[0]];
  Tensor sums = gathered(partials, 2);
  Tensor psf_norm = torch::stable::new_empty(first, {}, type);
  Tensor sgd_norm = torch::stable::new_empty(first, {}, type);
  dispatch_table(type, [&](auto t) {
    using N = decltype(t);
    DeviceOf(first).launch(finish_norms<N>, 1, kListThreads, kSumBytes, data(sums),
                           sums.numel() / 2, static_cast<N*>(psf_norm.data_ptr()),
                           static_cast<N*>(sgd_norm.data_ptr()));
  });
  p.finish();
  return {psf_norm, sgd_norm};
}

// scale * min(1, ||grads|| / limit), on the first device
Tensor bounded(const Tensor& scale, const Tensor& limit, const DenseList& g,
               const std::vector<OnDevice>& devices) {
  const Tensor& first = g[devices[0].groups[0].members[0]];
  Tensor sums = squared_norms_of(g, g, devices, false);
  Tensor most = doubles(first, 1), result = doubles(first, 1);
  torch::stable::copy_(most, limit);
  torch::stable::copy_(result, scale);
  DeviceOf(first).launch(bound, 1, kListThreads, kSumBytes, data(sums), sums.numel(), data(most),
                         data(result));
  return result;
}

void psf_reuse_(std::vector<Tensor> grads, std::vector<Tensor> psf, const Tensor& given_scale,
                std::optional<Tensor> limit) {
  check_floating(grads, "psf_reuse_: grads");
  check_pairs(grads, psf, "psf_reuse_: grads and psf");
  check_scalar(given_scale, "psf_reuse_: scale");
  if (limit) check_scalar(*limit, "psf_reuse_: limit");
  NoGrad no_grad;
  DenseList g(grads), p(psf, g);
  auto devices = by_device(g.tensors());
  if (devices.empty()) return;
  Tensor scale = limit ? bounded(given_scale, *limit, g, devices) : given_scale;
  dispatch_table(scale.scalar_type(), [&](auto s) {
    using S = decltype(s);
    // A scale on the host travels in the kernel's arguments.
    bool on_device = scale.is_cuda();
    STD_TORCH_CHECK(on_device || scale.is_cpu(), "psf_reuse_: scale: on the CPU or a CUDA device");
    double given = on_device ? 0 : static_cast<double>(*static_cast<const S*>(scale.data_ptr()));
    for (auto& d : devices) {
      const Tensor& here = g[d.groups[0].members[0]];
      DeviceOf device(here);
      Tensor local = on_device ? beside(scale, here) : scale;
      auto* value = on_device ? static_cast<const S*>(local.data_ptr()) : nullptr;
      for (auto& group : d.groups)
        dispatch_floating(group.type, [&](auto t) {
          using T = decltype(t);
          for_each_list<2>(
              {&g, &p}, group.members, d.chunk(), sizeof(T), [&](auto& list, int64_t n) {
                device.launch(reuse<T, acc_t<T>, S>, n, kListThreads, 0, list, value, given);
              });
        });
    }
  });
  g.finish();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CUDA, m) {
  m.impl("psf_capture_", TORCH_BOX(&psf_capture_));
  m.impl("psf_reuse_", TORCH_BOX(&psf_reuse_));
}

}  // namespace ausam::cuda
