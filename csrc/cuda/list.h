// Launching over lists of tensors: grouped by device and dtype, in as few launches as the table of
// pointers allows.
#pragma once

#include <array>

#include "../dense.h"
#include "launch.h"
#include "list.cuh"

namespace ausam::cuda {

// Positions of the tensors of one dtype, ascending.
struct Group {
  ScalarType type;
  std::vector<size_t> members;
};

// The tensors of one device.
struct OnDevice {
  int32_t device;
  std::vector<Group> groups;
  int64_t bytes = 0;  // of all

  // Bytes of a tensor that a block takes: from 16 for each thread to 8 times as many. 2,048 to
  // 4,096 blocks are 4 to 8 waves of 132 multiprocessors, so that the last one costs little. By the
  // sizes alone: on every GPU the sums are of the same parts.
  int64_t chunk() const {
    int64_t chunk = 16 * kListThreads;
    while (chunk < 8 * 16 * kListThreads && bytes > 4096 * chunk) chunk *= 2;
    return chunk;
  }
};

inline int64_t bytes_of(const Tensor& t) {
  return t.numel() * static_cast<int64_t>(t.element_size());
}

inline std::vector<OnDevice> by_device(const std::vector<Tensor>& tensors) {
  std::vector<OnDevice> devices;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].numel() == 0) continue;
    int32_t device = tensors[i].get_device_index();
    STD_TORCH_CHECK(device >= 0, "lists: all tensors on CUDA devices");
    ScalarType type = tensors[i].scalar_type();
    auto d =
        std::find_if(devices.begin(), devices.end(), [&](auto& x) { return x.device == device; });
    if (d == devices.end()) d = devices.insert(d, {device, {}});
    auto g =
        std::find_if(d->groups.begin(), d->groups.end(), [&](auto& x) { return x.type == type; });
    if (g == d->groups.end()) g = d->groups.insert(g, {type, {}});
    g->members.push_back(i);
    d->bytes += bytes_of(tensors[i]);
  }
  return devices;
}

// Calls f(list, blocks) for every launch. An element has `unit` bytes, of which a block takes
// `chunk`.
template <size_t depth, class F>
void for_each_list(const std::array<const DenseList*, depth>& lists,
                   const std::vector<size_t>& members, int64_t chunk, int64_t unit, F f) {
  for (size_t at = 0; at < members.size(); at += kMaxTensors) {
    List<depth> list;
    list.tensors = static_cast<int32_t>(std::min<size_t>(kMaxTensors, members.size() - at));
    list.chunk = chunk / unit;
    list.first_block[0] = 0;
    for (int t = 0; t < list.tensors; ++t) {
      size_t i = members[at + t];
      for (size_t d = 0; d < depth; ++d) list.data[d][t] = (*lists[d])[i].data_ptr();
      list.size[t] = bytes_of((*lists[0])[i]) / unit;
      list.first_block[t + 1] =
          list.first_block[t] + static_cast<int32_t>(blocks_for(list.size[t], list.chunk));
    }
    f(list, list.first_block[list.tensors]);
  }
}

// Blocks of all the tensors of a device: how many partial sums there are.
inline int64_t count_blocks(const OnDevice& d, const std::vector<Tensor>& tensors) {
  int64_t blocks = 0;
  for (auto& group : d.groups)
    for (size_t i : group.members) blocks += blocks_for(bytes_of(tensors[i]), d.chunk());
  return blocks;
}

inline Tensor doubles(const Tensor& like, int64_t n) {
  return torch::stable::new_empty(like, {&n, 1}, ScalarType::Double);
}

inline double* data(const Tensor& t) { return static_cast<double*>(t.data_ptr()); }

// A scalar of one device on that of another tensor.
inline Tensor beside(const Tensor& scalar, const Tensor& here) {
  if (scalar.get_device_index() == here.get_device_index()) return scalar;
  Tensor copy = torch::stable::new_empty(here, scalar.sizes(), scalar.scalar_type());
  torch::stable::copy_(copy, scalar);
  return copy;
}

// Partial sums that lie on several devices, each [rows, its blocks], side by side on the first.
inline Tensor gathered(const std::vector<Tensor>& partials, int64_t rows) {
  if (partials.size() == 1) return partials[0];
  int64_t columns = 0;
  for (auto& p : partials) columns += p.numel() / rows;
  Tensor all = doubles(partials[0], rows * columns);
  for (int64_t r = 0, at = 0; r < rows; ++r)
    for (Tensor p : partials) {
      int64_t n = p.numel() / rows;
      Tensor slot = torch::stable::narrow(all, 0, at, n);
      torch::stable::copy_(slot, torch::stable::narrow(p, 0, r * n, n));
      at += n;
    }
  return all;
}

}  // namespace ausam::cuda
