// DLP (AUSAM Eq. 5) and its running sums per sample (Eq. 6).
#include <cmath>
#include <limits>

#include "table.h"

namespace ausam::cpu {
namespace {

constexpr int64_t kMaxRanges = 16;  // every thread reads all indices: more ranges stop paying
constexpr int64_t kAhead = 24;      // visits from asking for memory to changing it

template <class T>
void ask_for(T& place) {
#ifdef __GNUC__
  __builtin_prefetch(&place, 1);
#endif
}

template <class L>
acc_t<L> dlp_of(L loss, L loss_perturbed) {
  return std::abs(static_cast<acc_t<L>>(loss_perturbed) - static_cast<acc_t<L>>(loss));
}

Tensor dlp(const Tensor& loss, const Tensor& loss_perturbed) {
  check_like(loss_perturbed, loss, "dlp: loss_perturbed and loss");
  return dispatch_floating(loss.scalar_type(), [&](auto l) {
    using L = decltype(l);
    NoGrad no_grad;
    Tensor a = packed(loss), b = packed(loss_perturbed);
    Tensor out = torch::stable::new_empty(
        a, a.sizes(), std::is_same_v<L, double> ? ScalarType::Double : ScalarType::Float);
    auto* x = static_cast<const L*>(a.data_ptr());
    auto* y = static_cast<const L*>(b.data_ptr());
    auto* d = static_cast<acc_t<L>*>(out.data_ptr());
    torch::stable::parallel_for(0, out.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) d[j] = dlp_of(x[j], y[j]);
    });
    return out;
  });
}

// Each column of the table, and for many threads each range of it, belongs to one task, which takes
// its entries in the order of `index`: no atomics, and the sums do not depend on the number of
// threads.
template <class T, class I, class L>
void scatter(Vector<T> total, Vector<int32_t> count, Vector<uint8_t> tried, int64_t num_samples,
             Vector<I> index, Vector<L> loss, Vector<L> loss_perturbed, int64_t n) {
  auto visit = [&](int64_t first, int64_t last, auto&& record, auto&&... columns) {
    bool all_finite = true;
    int64_t asked = n < kGrain ? 0 : n - kAhead;  // few visits find the table in the cache
    for (int64_t j = 0; j < n; ++j) {
      if (j < asked)
        if (int64_t i = index[j + kAhead]; i >= first && i < last) (ask_for(columns[i]), ...);
      int64_t i = index[j];
      if (i < first || i >= last) continue;
      T d = static_cast<T>(dlp_of(loss[j], loss_perturbed[j]));
      bool finite = std::abs(d) <= std::numeric_limits<T>::max();
      record(i, finite ? d : 0, finite);
      all_finite &= finite;
    }
    return all_finite;
  };
  auto add = [&](int64_t i, T d, bool) { total[i] += d; };
  auto tally = [&](int64_t i, T, bool finite) { count[i] += finite; };
  auto mark = [&](int64_t i, T, bool finite) {
    if (!finite) tried[i] = 1;
  };
  int64_t threads = n < kGrain ? 1 : torch::stable::get_num_threads();
  if (threads == 1) {
    bool all_finite = visit(
        0, num_samples,
        [&](int64_t i, T d, bool finite) {
          add(i, d, finite);
          tally(i, d, finite);
        },
        total, count);
    if (tried.data && !all_finite) visit(0, num_samples, mark);
    return;
  }
  int64_t ranges = std::clamp<int64_t>(threads / 2, 1, kMaxRanges);
  torch::stable::parallel_for(0, 2 * ranges, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t r = task / 2, first = num_samples * r / ranges, last = num_samples * (r + 1) / ranges;
      bool all_finite =
          task % 2 ? visit(first, last, tally, count) : visit(first, last, add, total);
      if (task % 2 && tried.data && !all_finite) visit(first, last, mark);
    }
  });
}

void adlp_update_(Tensor total, Tensor count, const Tensor& index, const Tensor& loss,
                  const Tensor& loss_perturbed, std::optional<Tensor> invalid,
                  std::optional<Tensor> tried) {
  check_table(total, count, index, invalid, tried);
  check_visits(total, index, loss, loss_perturbed);

  int64_t n = index.numel(), num_samples = total.numel();
  dispatch_index(index.scalar_type(), [&](auto i) {
    auto idx = vector_of<const decltype(i)>(index);
    report_outside(idx, n, num_samples, invalid);
    dispatch_table(total.scalar_type(), [&](auto t) {
      dispatch_floating(loss.scalar_type(), [&](auto l) {
        using L = const decltype(l);
        scatter(vector_of<decltype(t)>(total), vector_of<int32_t>(count), vector_of<uint8_t>(tried),
                num_samples, idx, vector_of<L>(loss), vector_of<L>(loss_perturbed), n);
      });
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ausam_ext, CPU, m) {
  m.impl("dlp", TORCH_BOX(&dlp));
  m.impl("adlp_update_", TORCH_BOX(&adlp_update_));
}

}  // namespace ausam::cpu
