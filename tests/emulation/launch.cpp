// The host's side of CUDA: launches, their checks, errors.
#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include "scheduler.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace ausam::cuda {

constexpr size_t kMargin = 256;  // after the memory of a block; must not change

// What block.cuh's `extern __shared__ memory[]` names.
alignas(128) unsigned char memory[emulation::kSharedMaximum + kMargin];

}  // namespace ausam::cuda

namespace emulation {
namespace {

using ausam::cuda::kMargin;
using ausam::cuda::memory;

std::mutex mutex;  // one launch at a time, whichever thread asks
std::map<const void*, size_t> allowed;
std::string message;
uint64_t launches = 0, blocks = 0;

cudaError_t fail(cudaError_t error, const std::string& text) {
  message = text;
  return error;
}

class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_(bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(memory + bytes, sizeof(memory) - bytes);
#else
    std::memset(memory + bytes, kCanary, kMargin);
#endif
  }
  ~SharedMemory() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(memory, sizeof(memory));
#endif
  }

  void fill(uint32_t word) const {
    auto* words = reinterpret_cast<uint32_t*>(memory);
    std::fill(words, words + bytes_ / 4, word);
    std::memcpy(words + bytes_ / 4, &word, bytes_ % 4);
  }

  bool intact() const {
#if defined(__SANITIZE_ADDRESS__)
    return true;
#else
    return std::all_of(memory + bytes_, memory + bytes_ + kMargin,
                       [](unsigned char x) { return x == kCanary; });
#endif
  }

 private:
  static constexpr unsigned char kCanary = 0xc9;
  size_t bytes_;
};

}  // namespace

cudaError_t allow_shared(const void* kernel, int bytes) {
  std::lock_guard lock(mutex);
  if (bytes < 0 || static_cast<size_t>(bytes) > kSharedMaximum)
    return fail(cudaErrorInvalidValue,
                "invalid argument: more shared memory than a block may have");
  allowed[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*thread)(void*),
                   void* closure) {
  std::lock_guard lock(mutex);
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads)
    return fail(cudaErrorInvalidConfiguration,
                "invalid configuration: " + std::to_string(threads) + " threads in a block");
  if (grid.x == 0 || grid.x > INT32_MAX || grid.y != 1 || grid.z != 1)
    return fail(cudaErrorInvalidConfiguration,
                "invalid configuration: " + std::to_string(grid.x) + " blocks");
  auto opted = allowed.find(kernel);
  size_t limit = opted == allowed.end() ? kSharedLimit : std::max(kSharedLimit, opted->second);
  if (config.dynamicSmemBytes > limit)
    return fail(cudaErrorInvalidValue,
                "invalid argument: " + std::to_string(config.dynamicSmemBytes) +
                    " bytes of shared memory, allowed " + std::to_string(limit));
  ++launches;
  blocks += grid.x;
  gridDim = grid;
  blockDim = block;
  SharedMemory shared(config.dynamicSmemBytes);
  Block& only = Block::only();
  only.prepare(block, thread, closure);
  launch_begins();
  for (unsigned b : only.order_of_blocks(grid.x)) {
    blockIdx = {b, 0, 0};
    shared.fill(only.fill());
    block_begins();
    if (!only.run()) return fail(cudaErrorLaunchFailure, only.error());
    if (!shared.intact())
      return fail(cudaErrorLaunchFailure, "block " + std::to_string(b) + " wrote beyond its " +
                                              std::to_string(config.dynamicSmemBytes) +
                                              " bytes of shared memory");
  }
  return cudaSuccess;
}

// Errors are those of the launch, whichever thread asks.
EXPORT const char* emulation_error() { return message.c_str(); }

// 0: in order, 1: reversed, 2: random
EXPORT void emulation_set_schedule(int schedule, uint64_t seed) {
  std::lock_guard lock(mutex);
  Block::only().set_schedule(static_cast<Schedule>(schedule), seed);
}

EXPORT uint64_t emulation_launches() { return launches; }
EXPORT uint64_t emulation_blocks() { return blocks; }

}  // namespace emulation

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
