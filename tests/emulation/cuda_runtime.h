// Stands in for CUDA's header, so that g++ compiles the kernels and their launchers as they are and
// runs them on the host. Only what CUDA has too is declared outside namespace emulation.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// Shared memory is dynamic only: g++ refuses this on an array inside a function.
#define __shared__ __attribute__((weak))

// Before 12.1 the arguments of a kernel had 4 KB, which is the case that needs more launches.
#ifndef CUDART_VERSION
#define CUDART_VERSION 12000
#endif

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Set by the scheduler whenever it switches threads.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};

using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  struct cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace emulation {

constexpr size_t kSharedLimit = 48 << 10;     // bytes of a block, without opting in
constexpr size_t kSharedMaximum = 227 << 10;  // and with

// Runs `thread(closure)` for every thread of the grid.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*thread)(void*),
                   void* closure);
cudaError_t allow_shared(const void* kernel, int bytes);

}  // namespace emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "arguments travel as bytes");
  static_assert((0 + ... + sizeof(Parameters)) <= (CUDART_VERSION < 12010 ? 4096 : 32764),
                "more arguments than a kernel may have");
  return [&](Parameters... converted) {
    auto thread = [&] { kernel(converted...); };
    auto call = [](void* closure) { (*static_cast<decltype(thread)*>(closure))(); };
    return emulation::launch(*config, reinterpret_cast<const void*>(kernel), call, &thread);
  }(std::forward<Arguments>(arguments)...);
}

template <class T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute, int value) {
  return emulation::allow_shared(reinterpret_cast<const void*>(kernel), value);
}

cudaError_t cudaGetLastError();
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream = nullptr);

#include "device_functions.h"
