// The threads of one block, and the order in which they run.
#pragma once

#include <bit>
#include <deque>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

namespace emulation {

constexpr int kMaxThreads = 1024;

// Orders of the threads between two synchronisation points, and of the blocks. Whatever the order,
// a correct kernel gives the same bits (but for sums by atomics in floating point).
enum class Schedule { kInOrder, kReversed, kRandom };

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint64_t operator()() {  // splitmix64
    uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }

 private:
  uint64_t state_;
};

enum class State : uint8_t { kReady, kAtBarrier, kAtWarp, kReturned };

struct Thread {
  State state;
  const char* operation;  // that it waits at, with what it gave
  Site site;
  unsigned mask;
  int source;
  uint64_t value;  // then what it gets
  uint3 index;
};

class Block {
 public:
  // The process has one: its threads' stacks are kept from one launch to the next.
  static Block& only();

  void set_schedule(Schedule schedule, uint64_t seed);
  std::vector<unsigned> order_of_blocks(unsigned blocks);
  uint32_t fill();  // what shared memory holds at first

  void prepare(dim3 size, void (*thread)(void*), void* closure);
  // True when all threads have returned; otherwise error() says why not.
  bool run();
  const std::string& error() const { return error_; }

  int synchronize(const char* operation, bool flag, Site site);
  unsigned vote(const char* operation, unsigned mask, bool flag, Site site);
  uint64_t exchange(const char* operation, unsigned mask, uint64_t value, int source, Site site);

  // Gives up the launch: what its fibers were doing is forgotten.
  void stop(const std::string& error);

  bool running() const { return host_; }
  int current() const { return current_; }
  unsigned existing_lanes(int warp) const;
  bool on_stack(const void* at) const;

 private:
  static void enter();
  void wait(State state, const char* operation, Site site);
  void wait_warp(const char* operation, unsigned mask, uint64_t value, int source, Site site);
  void complete_warp(unsigned mask, int first);
  bool release_barrier();
  void continue_with_another();
  int pick();
  int pick_bit(uint32_t bits);
  void make_ready(int thread);
  void switch_from(Fiber& from);
  void stop_stuck();
  std::string where() const;

  Schedule schedule_ = Schedule::kInOrder;
  Random random_{0};
  bool one_warp_first_ = false;  // this phase: a warp runs as far as it can before another does
  uint32_t ready_warps_ = 0, ready_lanes_[kMaxThreads / 32] = {};

  dim3 size_;
  int threads_ = 0, current_ = 0, at_barrier_ = 0, returned_ = 0, flags_ = 0;
  void (*thread_)(void*) = nullptr;
  void* closure_ = nullptr;
  Thread thread_of_[kMaxThreads];
  std::deque<Fiber> fibers_;
  Fiber* host_ = nullptr;
  std::string error_;
};

}  // namespace emulation
