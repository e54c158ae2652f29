// SAM's ascent (AUSAM Eq. 2, vSAM Eq. 2) and the way back.
#include <cmath>
#include <cstring>
#include <numeric>

#include "chunks.h"
#include "simd.h"

namespace ausam::cpu {
namespace {

// A parameter, its gradient and its backup as three dense blocks of one layout.
template <class T>
struct Block {
  T* param;       // w, becomes w + epsilon
  const T* grad;  // g
  T* backup;      // becomes w
};

// ||g||^2, or || |w| g ||^2 for the adaptive perturbation
template <class T>
AUSAM_SIMD double squared_norm(Block<T> b, int64_t begin, int64_t end, bool adaptive) {
  using A = acc_t<T>;
  if (adaptive)
    return sum_of_squares(begin, end, [=](int64_t i) {
      return static_cast<A>(b.param[i]) * static_cast<A>(b.grad[i]);
    });
  return sum_of_squares(begin, end, [=](int64_t i) { return static_cast<A>(b.grad[i]); });
}

// scale = rho / (norm + 1e-12); 0 means no perturbation, whatever the gradient holds
template <class T>
AUSAM_SIMD void ascend(Block<T> b, int64_t begin, int64_t end, double scale, bool adaptive) {
  using A = acc_t<T>;
  A s = static_cast<A>(scale);
  std::memcpy(b.backup + begin, b.param + begin, (end - begin) * sizeof(T));
  if (scale == 0) return;
  if (adaptive) {
    for (int64_t i = begin; i < end; ++i) {
      A w = b.param[i];
      b.param[i] = w + s * (w * w * static_cast<A>(b.grad[i]));
    }
  } else {
    for (int64_t i = begin; i < end; ++i)
      b.param[i] = static_cast<A>(b.param[i]) + s * static_cast<A>(b.grad[i]);
  }
}

Tensor perturb_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> backups,
                double rho, bool adaptive, bool maximize, std::optional<Tensor> given) {
  check_perturb(params, grads, backups, rho, given);
  if (maximize) rho = -rho;
  NoGrad no_grad;
  DenseList w(params), g(grads, w), saved(backups, w);
  auto chunks = cut(w.tensors());
  auto for_each_block = [&](auto&& f) {
    for_each_chunk(chunks, [&](int64_t c) {
      Chunk chunk = chunks[c];
      size_t i = chunk.tensor;
      dispatch_floating(w[i].scalar_type(), [&](auto t) {
        using T = decltype(t);
        f(c, Block<T>{w.data<T>(i), g.data<const T>(i), saved.data<T>(i)}, chunk.begin, chunk.end);
      });
    });
  };

  double norm;
  if (given) {
    norm = dispatch_table(given->scalar_type(), [&](auto t) {
      return static_cast<double>(*static_cast<const decltype(t)*>(given->data_ptr()));
    });
  } else {
    std::vector<double> partial(chunks.size());
    for_each_block([&](int64_t c, auto block, int64_t begin, int64_t end) {
      partial[c] = squared_norm(block, begin, end, adaptive);
    });
    norm = std::sqrt(std::accumulate(partial.begin(), partial.end(), 0.0));
  }
  double scale = norm > 0 && std::isfinite(norm) ? rho / (norm + 1e-12) : 0;
  for_each_block([&](int64_t, auto block, int64_t begin, int64_t end) {
    ascend(block, begin, end, scale, adaptive);
  });

  w.finish();
  saved.finish();
  return scalar(norm, result_type(params));
}

void restore_(std::vector<Tensor> params, std::vector<Tensor> backups) {
  check_pairs(params, backups, "restore_: params and backups");
  NoGrad no_grad;
  DenseList w(params), saved(backups, w);
  auto chunks = cut(w.tensors());
  for_each_chunk(chunks, [&](int64_t c) {
    auto [i, begin, end] = chunks[c];
    size_t size = w[i].element_size();
    std::memcpy(w.data<char>(i) + begin * size, saved.data<const char>(i) + begin * size,
                (end - begin) * size);
  });
  w.finish();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CPU, m) {
  m.impl("perturb_", TORCH_BOX(&perturb_));
  m.impl("restore_", TORCH_BOX(&restore_));
}

}  // namespace ausam::cpu
