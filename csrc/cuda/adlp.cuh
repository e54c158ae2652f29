// DLP (AUSAM Eq. 5) and its running sums per sample (Eq. 6).
#pragma once

#include "block.cuh"
#include "vectors.cuh"

namespace ausam::cuda {

// Of float64 in float64, else in float32.
template <class T>
__device__ T dlp_of(const Floats& loss, const Floats& perturbed, int64_t j) {
  if (loss.is_double()) return static_cast<T>(fabs(perturbed.at<double>(j) - loss.at<double>(j)));
  return fabsf(perturbed.as_float(j) - loss.as_float(j));
}

template <class T>
__global__ void dlp_kernel(Floats loss, Floats perturbed, T* out, int64_t n) {
  int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (j < n) out[j] = dlp_of<T>(loss, perturbed, j);
}

// One step's visits and the table they go to; vectors have strides, so that none is copied.
template <class T>
struct Visits {
  T* total;        // [num_samples]
  int32_t* count;  // [num_samples]
  int64_t total_stride, count_stride;
  Integers index;          // [n]
  Floats loss, perturbed;  // [n]
  int64_t num_samples, n;
  int32_t* invalid;  // counts indices outside the table; may be null
  uint8_t* tried;    // [num_samples], with a stride; may be null
  int64_t tried_stride;
  __device__ bool outside(int64_t i) const { return i < 0 || i >= num_samples; }
  // Several threads may write the same to one byte, for which there are no atomics: a volatile
  // store is a relaxed one in PTX's memory model, and no race.
  __device__ void mark(int64_t i) const {
    if (tried) *const_cast<volatile uint8_t*>(tried + i * tried_stride) = 1;
  }
  // The DLP in the dtype of the table; false if it is not finite and so not recorded.
  __device__ bool dlp(int64_t j, T& d) const {
    d = dlp_of<T>(loss, perturbed, j);
    return d - d == 0;
  }
};

// Up to kOrderedVisits the first visit of a sample takes the later ones too, in their order, so
// that the sums are those of the reference to the last bit. A block has the visits of one warp, a
// lane each; all its warps search all visits for the same samples: 1,024^2 comparisons at most, in
// 32 blocks, and two barriers.
constexpr int kOrderedVisits = 1024;

struct Search {
  // The lower halves of the indices: half as much to compare, and enough to find candidates.
  alignas(16) uint32_t sample[kOrderedVisits];
  uint32_t same[kOrderedVisits / 32][32];  // [group of 32 visits][lane]: which have its sample
  uint32_t groups[32];                     // [lane]: the groups that have any
};

// Which of 32 values are equal to one. 16 bytes a load, and no branch: none waits for another.
__device__ inline uint32_t equal_to(uint32_t value, const uint32_t* values) {
  auto* four = reinterpret_cast<const uint4*>(values);
  uint32_t equal = 0;
  for (int i = 0; i < 8; ++i) {
    uint4 v = four[i];
    uint32_t e = (v.x == value ? 1u : 0) | (v.y == value ? 2u : 0) | (v.z == value ? 4u : 0) |
                 (v.w == value ? 8u : 0);
    equal |= e << (4 * i);
  }
  return equal;
}

template <class T>
__global__ void update_in_order(Visits<T> v) {
  auto& memory = shared_memory<Search>();
  int n = static_cast<int>(v.n), groups = (n + 31) / 32;
  if (warp() == 0) memory.groups[lane()] = 0;
  for (int visit = threadIdx.x; visit < 32 * groups; visit += blockDim.x)
    memory.sample[visit] = visit < n ? static_cast<uint32_t>(v.index[visit]) : 0;
  __syncthreads();
  int j = 32 * blockIdx.x + lane();
  for (int g = warp(); g < groups; g += warps()) {
    uint32_t same = equal_to(memory.sample[j], memory.sample + 32 * g);
    memory.same[g][lane()] = same;
    if (same) atomicOr(memory.groups + lane(), 1u << g);
  }
  __syncthreads();
  if (warp() > 0 || j >= n) return;
  int64_t i = v.index[j];
  if (v.outside(i)) {
    if (v.invalid) atomicAdd(v.invalid, 1);
    return;
  }
  T total = 0;
  int32_t visits = 0;
  for (uint32_t groups = memory.groups[lane()]; groups; groups &= groups - 1) {
    int g = __ffs(groups) - 1;
    for (uint32_t same = memory.same[g][lane()]; same; same &= same - 1) {
      int visit = 32 * g + __ffs(same) - 1;
      if (visit >= n || v.index[visit] != i) continue;
      if (visit < j) return;  // which takes this one too
      if (visit == j) total = v.total[i * v.total_stride];
      T d;
      if (v.dlp(visit, d)) {
        total += d;
        ++visits;
      } else {
        v.mark(i);
      }
    }
  }
  v.total[i * v.total_stride] = total;
  v.count[i * v.count_stride] += visits;
}

// More visits: sums of repeated samples then depend on the order of the additions in their last
// bits.
template <class T>
__global__ void update_by_atomics(Visits<T> v) {
  int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (j >= v.n) return;
  int64_t i = v.index[j];
  if (v.outside(i)) {
    if (v.invalid) atomicAdd(v.invalid, 1);
    return;
  }
  T d;
  if (v.dlp(j, d)) {
    atomicAdd(v.total + i * v.total_stride, d);
    atomicAdd(v.count + i * v.count_stride, 1);
  } else {
    v.mark(i);
  }
}

}  // namespace ausam::cuda
