// What operators require of their arguments, on every device and before anything is written. What
// crosses the stable ABI is a RuntimeError: these checks keep memory safe, and the Python functions
// then say what was wrong as ValueError, TypeError or IndexError (ausam_ext/checks.py).
#pragma once

#include <cmath>
#include <optional>

#include "ausam.h"

namespace ausam {

inline void check_same_device(const Tensor& t, const Tensor& like, const char* what) {
  STD_TORCH_CHECK(t.is_cpu() == like.is_cpu() && t.get_device_index() == like.get_device_index(),
                  what, ": all tensors on one device");
}

inline void check_like(const Tensor& t, const Tensor& like, const char* what) {
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type() && same_shape(t, like), what,
                  ": dtype and shape must agree");
  check_same_device(t, like, what);
}

inline void check_table(const Tensor& total, const Tensor& count, const Tensor& index,
                        const std::optional<Tensor>& invalid, const std::optional<Tensor>& tried) {
  STD_TORCH_CHECK(is_table(total.scalar_type()) && total.dim() == 1, "total: one float dimension");
  STD_TORCH_CHECK(count.scalar_type() == ScalarType::Int && same_shape(count, total),
                  "count: int32 of the shape of total");
  STD_TORCH_CHECK(is_index(index.scalar_type()), "index: int32 or int64");
  check_same_device(count, total, "count");
  check_same_device(index, total, "index");
  if (invalid) {
    STD_TORCH_CHECK(invalid->scalar_type() == ScalarType::Int && invalid->dim() == 0,
                    "invalid: int32 of no dimension");
    check_same_device(*invalid, total, "invalid");
  }
  if (tried) {
    STD_TORCH_CHECK(tried->scalar_type() == ScalarType::Byte && same_shape(*tried, total),
                    "tried: uint8 of the shape of total");
    check_same_device(*tried, total, "tried");
  }
}

inline void check_visits(const Tensor& total, const Tensor& index, const Tensor& loss,
                         const Tensor& loss_perturbed) {
  STD_TORCH_CHECK(index.dim() == 1, "index: one dimension");
  STD_TORCH_CHECK(is_floating(loss.scalar_type()) && same_shape(loss, index),
                  "loss: floating point of the shape of index");
  check_same_device(loss, total, "loss");
  check_like(loss_perturbed, loss, "loss_perturbed and loss");
}

// `rows`: the scores, or the index that they are gathered by.
inline void check_sample(const Tensor& rows, const Tensor& noise, int64_t k, double s_min,
                         double s_max) {
  STD_TORCH_CHECK(rows.dim() > 0, "at least one dimension is needed");
  STD_TORCH_CHECK(k >= 1 && k <= rows.size(rows.dim() - 1), "k: from 1 to the length of a row");
  STD_TORCH_CHECK(s_min > 0 && s_min <= s_max && std::isfinite(s_max), "0 < s_min <= s_max");
  STD_TORCH_CHECK(noise.scalar_type() == ScalarType::Float && same_shape(noise, rows),
                  "noise: float32 of the shape of the scores");
  check_same_device(noise, rows, "noise");
}

inline void check_weights(const Tensor& scores, const Tensor& positions, const Tensor& noise,
                          double s_min, double s_max) {
  int64_t last = scores.dim() - 1;
  STD_TORCH_CHECK(
      last >= 0 && positions.dim() == scores.dim() && positions.scalar_type() == ScalarType::Long,
      "positions: int64 with as many dimensions as scores, one at least");
  for (int64_t d = 0; d < last; ++d)
    STD_TORCH_CHECK(positions.size(d) == scores.size(d),
                    "positions: rows of their own for scores'");
  check_same_device(positions, scores, "positions");
  check_sample(scores, noise, positions.size(last), s_min, s_max);
}

inline void check_variance(const Tensor& norms, int64_t slices) {
  STD_TORCH_CHECK(is_table(norms.scalar_type()) && norms.dim() == 1, "norms: one float dimension");
  STD_TORCH_CHECK(slices >= 1 && slices <= norms.numel() / 2, "slices: from 1 to N / 2");
}

// One for one the same dtype, shape and device.
inline void check_pairs(const std::vector<Tensor>& a, const std::vector<Tensor>& b,
                        const char* what) {
  STD_TORCH_CHECK(a.size() == b.size(), what, ": lists differ in length");
  for (size_t i = 0; i < a.size(); ++i) check_like(b[i], a[i], what);
}

inline void check_floating(const std::vector<Tensor>& list, const char* what) {
  for (auto& t : list) STD_TORCH_CHECK(is_floating(t.scalar_type()), what, ": floating point");
}

inline void check_perturb(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                          const std::vector<Tensor>& backups, double rho,
                          const std::optional<Tensor>& norm) {
  check_floating(params, "perturb_: params");
  check_pairs(params, grads, "perturb_: params and grads");
  check_pairs(params, backups, "perturb_: params and backups");
  STD_TORCH_CHECK(rho >= 0 && std::isfinite(rho), "rho: finite and not below 0");
  if (!norm) return;
  STD_TORCH_CHECK(is_table(norm->scalar_type()) && norm->dim() == 0, "norm: one float");
  if (!params.empty()) check_same_device(*norm, params[0], "norm");
}

inline void check_scalar(const Tensor& t, const char* what) {
  STD_TORCH_CHECK(is_table(t.scalar_type()) && t.dim() == 0, what,
                  ": float32 or float64 of no dimension");
}

inline void check_norm_last(const std::optional<int64_t>& norm_last, size_t tensors) {
  STD_TORCH_CHECK(!norm_last || (*norm_last >= 1 && *norm_last <= static_cast<int64_t>(tensors)),
                  "norm_last: from 1 to the number of tensors");
}

// Scalar results are float32, or float64 as soon as one tensor is.
inline ScalarType result_type(const std::vector<Tensor>& tensors) {
  for (auto& t : tensors)
    if (t.scalar_type() == ScalarType::Double) return ScalarType::Double;
  return ScalarType::Float;
}

}  // namespace ausam
