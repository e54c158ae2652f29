// DLP (AUSAM Eq. 5) and its running sums per sample (Eq. 6).
#pragma once

#include "block.cuh"

namespace ausam::cuda {

template <class L, class A>
__device__ A dlp_of(L loss, L loss_perturbed) {
  A d = static_cast<A>(loss_perturbed) - static_cast<A>(loss);
  return d < 0 ? -d : d;
}

template <class L, class A>
__global__ void dlp_kernel(const L* loss, const L* loss_perturbed, A* out, int64_t n) {
  int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (j < n) out[j] = dlp_of<L, A>(loss[j], loss_perturbed[j]);
}

// One step's visits and the table they go to; vectors have strides, so that none is copied.
template <class T, class I, class L>
struct Visits {
  T* total;        // [num_samples]
  int32_t* count;  // [num_samples]
  const I* index;  // [n]
  const L* loss;   // [n]
  const L* loss_perturbed;
  int64_t total_stride, count_stride, index_stride, loss_stride, loss_perturbed_stride;
  int64_t num_samples, n;
  int32_t* invalid;  // counts indices outside the table; may be null
  uint8_t* tried;    // [num_samples], with a stride; may be null
  int64_t tried_stride;
  __device__ int64_t sample(int64_t j) const { return index[j * index_stride]; }
  __device__ bool outside(int64_t i) const { return i < 0 || i >= num_samples; }
  // Several threads may write the same to one byte, for which there are no atomics: a volatile
  // store is a relaxed one in PTX's memory model, and no race.
  __device__ void mark(int64_t i) const {
    if (tried) *const_cast<volatile uint8_t*>(tried + i * tried_stride) = 1;
  }
};

// The DLP in the dtype of the table; false where it is not finite and so not recorded.
template <class A, class T, class I, class L>
__device__ bool dlp_of_visit(const Visits<T, I, L>& v, int64_t j, T& d) {
  d = static_cast<T>(
      dlp_of<L, A>(v.loss[j * v.loss_stride], v.loss_perturbed[j * v.loss_perturbed_stride]));
  return d - d == 0;
}

// Up to kOrderedVisits, a thread each: the first visit of a sample takes the later ones too, in
// their order, so that the sums are those of the reference to the last bit. Every block reads all
// indices.
constexpr int kOrderedVisits = 1024;

template <class A, class T, class I, class L>
__global__ void update_in_order(Visits<T, I, L> v) {
  int64_t* samples = shared_memory<int64_t>();
  int n = static_cast<int>(v.n);
  for (int visit = threadIdx.x; visit < n; visit += blockDim.x) samples[visit] = v.sample(visit);
  __syncthreads();
  int j = blockIdx.x * blockDim.x + threadIdx.x;
  if (j >= n) return;
  int64_t i = samples[j];
  if (v.outside(i)) {
    if (v.invalid) atomicAdd(v.invalid, 1);
    return;
  }
  for (int earlier = 0; earlier < j; ++earlier)
    if (samples[earlier] == i) return;
  T total = v.total[i * v.total_stride];
  int32_t visits = 0;
  for (int visit = j; visit < n; ++visit) {
    if (samples[visit] != i) continue;
    T d;
    if (dlp_of_visit<A>(v, visit, d)) {
      total += d;
      ++visits;
    } else {
      v.mark(i);
    }
  }
  v.total[i * v.total_stride] = total;
  v.count[i * v.count_stride] += visits;
}

// More visits: sums of repeated samples then depend on the order of the additions in their last
// bits.
template <class A, class T, class I, class L>
__global__ void update_by_atomics(Visits<T, I, L> v) {
  int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (j >= v.n) return;
  int64_t i = v.sample(j);
  if (v.outside(i)) {
    if (v.invalid) atomicAdd(v.invalid, 1);
    return;
  }
  T d;
  if (dlp_of_visit<A>(v, j, d)) {
    atomicAdd(v.total + i * v.total_stride, d);
    atomicAdd(v.count + i * v.count_stride, 1);
  } else {
    v.mark(i);
  }
}

}  // namespace ausam::cuda
