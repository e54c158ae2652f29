// Tensors of any layout as dense blocks of memory, which kernels then take as flat.
#pragma once

#include "ausam.h"

namespace ausam {

// True when the elements of `t` fill one block of memory, in whatever order of dimensions.
inline bool is_dense(const Tensor& t) {
  if (t.is_contiguous()) return true;
  auto sizes = t.sizes(), strides = t.strides();
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (size_t d = 0; d < sizes.size(); ++d)
    if (sizes[d] != 1) dims.emplace_back(strides[d], sizes[d]);
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (auto [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline bool same_layout(const Tensor& a, const Tensor& b) {
  auto sizes = a.sizes(), x = a.strides(), y = b.strides();
  for (size_t d = 0; d < sizes.size(); ++d)
    if (sizes[d] != 1 && x[d] != y[d]) return false;
  return true;
}

// `t` itself when it is dense and laid out like `like` (which is dense), otherwise a copy that is.
inline Tensor dense_like(const Tensor& t, const Tensor& like) {
  if (same_layout(t, like)) return t;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, t);
  return copy;
}

inline Tensor dense(const Tensor& t) { return is_dense(t) ? t : torch::stable::contiguous(t); }

// A list as dense blocks, each laid out like its partner in `like`: the tensors themselves if
// they are so already, else copies, which finish() writes back.
class DenseList {
 public:
  explicit DenseList(const std::vector<Tensor>& list) : list_(list) {
    for (auto& t : list) tensors_.push_back(dense(t));
  }
  DenseList(const std::vector<Tensor>& list, const DenseList& like) : list_(list) {
    for (size_t i = 0; i < list.size(); ++i)
      tensors_.push_back(dense_like(list[i], like.tensors_[i]));
  }
  void finish() {
    for (size_t i = 0; i < list_.size(); ++i)
      if (tensors_[i].get() != list_[i].get()) torch::stable::copy_(list_[i], tensors_[i]);
  }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor& operator[](size_t i) const { return tensors_[i]; }
  template <class T>
  T* data(size_t i) const {
    return static_cast<T*>(tensors_[i].data_ptr());
  }

 private:
  std::vector<Tensor> list_, tensors_;
};

}  // namespace ausam
