// CUDA's device functions: barriers and warp operations go to the scheduler, the rest is plain C++.
#pragma once

#include <bit>
#include <source_location>

#include "races.h"

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

namespace emulation {

using Site = std::source_location;  // tells one barrier of a kernel from another

// Waits for the block; how many of its threads gave `true`.
int synchronize(const char* operation, bool flag, Site site);
// Waits for the lanes in the mask; the lanes that gave `true`.
unsigned vote(const char* operation, unsigned mask, bool flag, Site site);
// Waits for the lanes in the mask; the value that the lane `source` gave.
uint64_t exchange(const char* operation, unsigned mask, uint64_t value, int source, Site site);

int lane();

template <class T>
T exchange_as(const char* operation, unsigned mask, T value, int source, Site site) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = exchange(operation, mask, bits, source, site);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulation

#define EMULATION_SITE emulation::Site site = emulation::Site::current()

inline void __syncthreads(EMULATION_SITE) { emulation::synchronize("__syncthreads", true, site); }
inline int __syncthreads_count(int flag, EMULATION_SITE) {
  return emulation::synchronize("__syncthreads_count", flag, site);
}
inline int __syncthreads_or(int flag, EMULATION_SITE) {
  return emulation::synchronize("__syncthreads_or", flag, site) > 0;
}
inline int __syncthreads_and(int flag, EMULATION_SITE) {
  return emulation::synchronize("__syncthreads_and", !flag, site) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffff, EMULATION_SITE) {
  emulation::vote("__syncwarp", mask, true, site);
}
inline unsigned __ballot_sync(unsigned mask, int flag, EMULATION_SITE) {
  return emulation::vote("__ballot_sync", mask, flag, site);
}
inline int __any_sync(unsigned mask, int flag, EMULATION_SITE) {
  return emulation::vote("__any_sync", mask, flag, site) != 0;
}
inline int __all_sync(unsigned mask, int flag, EMULATION_SITE) {
  return emulation::vote("__all_sync", mask, flag, site) == mask;
}
// Which lanes have converged is nowhere promised: none but the caller's own.
inline unsigned __activemask() { return 1u << emulation::lane(); }

// The types that CUDA has. Beyond the end of a segment of `width` lanes a lane gets its own value.
#define EMULATION_SHUFFLES(T)                                                                      \
  inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_SITE) {       \
    int first = emulation::lane() & ~(width - 1);                                                  \
    source = first + (source & (width - 1));                                                       \
    return emulation::exchange_as("__shfl_sync", mask, value, source, site);                       \
  }                                                                                                \
  inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATION_SITE) {    \
    int lane = emulation::lane(), source = lane ^ lanes;                                           \
    if (source > (lane | (width - 1))) source = lane;                                              \
    return emulation::exchange_as("__shfl_xor_sync", mask, value, source, site);                   \
  }                                                                                                \
  inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATION_SITE) {   \
    int lane = emulation::lane(), source = lane - static_cast<int>(by);                            \
    if (source < (lane & ~(width - 1))) source = lane;                                             \
    return emulation::exchange_as("__shfl_up_sync", mask, value, source, site);                    \
  }                                                                                                \
  inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATION_SITE) { \
    int lane = emulation::lane(), source = lane + static_cast<int>(by);                            \
    if (source > (lane | (width - 1))) source = lane;                                              \
    return emulation::exchange_as("__shfl_down_sync", mask, value, source, site);                  \
  }
EMULATION_SHUFFLES(int)
EMULATION_SHUFFLES(unsigned)
EMULATION_SHUFFLES(long)
EMULATION_SHUFFLES(unsigned long)
EMULATION_SHUFFLES(long long)
EMULATION_SHUFFLES(unsigned long long)
EMULATION_SHUFFLES(float)
EMULATION_SHUFFLES(double)
#undef EMULATION_SHUFFLES
#undef EMULATION_SITE

// One thread runs at a time, so that an atomic operation is an ordinary one.
#define EMULATION_ATOMIC(T, name, result)             \
  EMULATION_UNCHECKED inline T name(T* at, T value) { \
    emulation::atomic_access(at, sizeof(T));          \
    T old = *at;                                      \
    *at = result;                                     \
    return old;                                       \
  }
#define EMULATION_ATOMICS(T)                                           \
  EMULATION_ATOMIC(T, atomicMin, value < old ? value : old)            \
  EMULATION_ATOMIC(T, atomicMax, old < value ? value : old)            \
  EMULATION_ATOMIC(T, atomicAnd, old& value)                           \
  EMULATION_ATOMIC(T, atomicOr, old | value)                           \
  EMULATION_ATOMIC(T, atomicXor, old ^ value)                          \
  EMULATION_ATOMIC(T, atomicExch, value)                               \
  EMULATION_UNCHECKED inline T atomicCAS(T* at, T expected, T value) { \
    emulation::atomic_access(at, sizeof(T));                           \
    T old = *at;                                                       \
    if (old == expected) *at = value;                                  \
    return old;                                                        \
  }
EMULATION_ATOMICS(int)
EMULATION_ATOMICS(unsigned)
EMULATION_ATOMICS(unsigned long long)
EMULATION_ATOMIC(int, atomicAdd, static_cast<int>(static_cast<unsigned>(old) + value))
EMULATION_ATOMIC(unsigned, atomicAdd, old + value)
EMULATION_ATOMIC(unsigned long long, atomicAdd, old + value)
EMULATION_ATOMIC(float, atomicAdd, old + value)
EMULATION_ATOMIC(double, atomicAdd, old + value)
EMULATION_ATOMIC(float, atomicExch, value)
#undef EMULATION_ATOMICS
#undef EMULATION_ATOMIC

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* at) {
  return *at;
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline double __hiloint2double(int high, int low) {
  return std::bit_cast<double>(static_cast<uint64_t>(static_cast<unsigned>(high)) << 32 |
                               static_cast<unsigned>(low));
}

#define EMULATION_MIN_MAX(T)                       \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
EMULATION_MIN_MAX(int)
EMULATION_MIN_MAX(unsigned)
EMULATION_MIN_MAX(long)
EMULATION_MIN_MAX(unsigned long)
EMULATION_MIN_MAX(long long)
EMULATION_MIN_MAX(unsigned long long)
#undef EMULATION_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
