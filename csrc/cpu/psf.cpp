// The sharpness part of SAM's gradient, PSF = g_SAM - g_SGD (vSAM Eq. 5, 11), and its reuse
// (Eq. 17).
#include <cmath>
#include <numeric>

#include "chunks.h"
#include "simd.h"

namespace ausam::cpu {
namespace {

struct Squares {
  double psf = 0, sgd = 0;
};

// psf = grad - psf; both squared norms in the same pass if asked for
template <class T>
AUSAM_SIMD Squares capture(T* psf, const T* grad, int64_t begin, int64_t end, bool norms) {
  using A = acc_t<T>;
  if (!norms) {
    for (int64_t i = begin; i < end; ++i) psf[i] = static_cast<A>(grad[i]) - static_cast<A>(psf[i]);
    return {};
  }
  Squares s;
  s.sgd = sum_of_squares(begin, end, [=](int64_t i) { return static_cast<A>(psf[i]); });
  s.psf = sum_of_squares(begin, end, [=](int64_t i) {
    psf[i] = static_cast<A>(grad[i]) - static_cast<A>(psf[i]);
    return static_cast<A>(psf[i]);
  });
  return s;
}

template <class T>
AUSAM_SIMD void add(T* grad, const T* psf, int64_t begin, int64_t end, acc_t<T> scale) {
  using A = acc_t<T>;
  for (int64_t i = begin; i < end; ++i)
    grad[i] = static_cast<A>(grad[i]) + scale * static_cast<A>(psf[i]);
}

std::tuple<Tensor, Tensor> psf_capture_(std::vector<Tensor> psf, std::vector<Tensor> grads,
                                        std::optional<int64_t> norm_last) {
  check_floating(psf, "psf_capture_: psf");
  check_pairs(psf, grads, "psf_capture_: psf and grads");
  check_norm_last(norm_last, psf.size());
  int64_t tensors = psf.size();
  int64_t first = tensors - norm_last.value_or(tensors);
  NoGrad no_grad;
  DenseList p(psf), g(grads, p);
  auto chunks = cut(p.tensors());
  std::vector<Squares> partial(chunks.size());
  for_each_chunk(chunks, [&](int64_t c) {
    auto [i, begin, end] = chunks[c];
    bool norms = static_cast<int64_t>(i) >= first;
    dispatch_floating(p[i].scalar_type(), [&, i = i, begin = begin, end = end](auto t) {
      using T = decltype(t);
      partial[c] = capture(p.data<T>(i), g.data<const T>(i), begin, end, norms);
    });
  });
  Squares sum;
  for (auto& s : partial) {
    sum.psf += s.psf;
    sum.sgd += s.sgd;
  }
  p.finish();
  auto type = result_type(psf);
  return {scalar(std::sqrt(sum.psf), type), scalar(std::sqrt(sum.sgd), type)};
}

double value_of(const Tensor& t, const char* what) {
  check_scalar(t, what);
  STD_TORCH_CHECK(t.is_cpu(), what, ": on the CPU");
  return dispatch_table(t.scalar_type(), [&](auto x) {
    return static_cast<double>(*static_cast<const decltype(x)*>(t.data_ptr()));
  });
}

template <class T>
AUSAM_SIMD double squares(const T* x, int64_t begin, int64_t end) {
  return sum_of_squares(begin, end, [=](int64_t i) { return static_cast<acc_t<T>>(x[i]); });
}

double norm_of(const DenseList& list, const std::vector<Chunk>& chunks) {
  std::vector<double> partial(chunks.size());
  for_each_chunk(chunks, [&](int64_t c) {
    auto [i, begin, end] = chunks[c];
    dispatch_floating(list[i].scalar_type(), [&, i = i, begin = begin, end = end](auto t) {
      partial[c] = squares(list.data<const decltype(t)>(i), begin, end);
    });
  });
  return std::sqrt(std::accumulate(partial.begin(), partial.end(), 0.0));
}

// grads += scale * psf, with a scale that is multiplied by min(1, ||grads|| / limit). A scale of 0
// touches nothing, even if psf is not finite.
void psf_reuse_(std::vector<Tensor> grads, std::vector<Tensor> psf, const Tensor& scale,
                std::optional<Tensor> limit) {
  check_floating(grads, "psf_reuse_: grads");
  check_pairs(grads, psf, "psf_reuse_: grads and psf");
  double factor = value_of(scale, "psf_reuse_: scale");
  double most = limit ? value_of(*limit, "psf_reuse_: limit") : 0;
  if (factor == 0) return;
  NoGrad no_grad;
  DenseList g(grads), p(psf, g);
  auto chunks = cut(g.tensors());
  if (limit) {
    double share = norm_of(g, chunks) / most;
    if (share < 1) factor *= share;
  }
  for_each_chunk(chunks, [&](int64_t c) {
    auto [i, begin, end] = chunks[c];
    dispatch_floating(g[i].scalar_type(), [&, i = i, begin = begin, end = end](auto t) {
      using T = decltype(t);
      add(g.data<T>(i), p.data<const T>(i), begin, end, static_cast<acc_t<T>>(factor));
    });
  });
  g.finish();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CPU, m) {
  m.impl("psf_capture_", TORCH_BOX(&psf_capture_));
  m.impl("psf_reuse_", TORCH_BOX(&psf_reuse_));
}

}  // namespace ausam::cpu
