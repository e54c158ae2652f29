#include "scheduler.h"

#include <algorithm>
#include <map>
#include <numeric>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

std::string place(const char* operation, const Site& site) {
  std::string file = site.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line()) + " (" + operation +
         ")";
}

bool same_site(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::string(a.file_name()) == b.file_name());
}

}  // namespace

Block& Block::only() {
  static auto* block = new Block;
  return *block;
}

void Block::set_schedule(Schedule schedule, uint64_t seed) {
  schedule_ = schedule;
  random_ = Random(seed);
}

std::vector<unsigned> Block::order_of_blocks(unsigned blocks) {
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (schedule_ == Schedule::kReversed) std::reverse(order.begin(), order.end());
  if (schedule_ == Schedule::kRandom)
    for (unsigned i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_() % i]);
  return order;
}

// NaN in all floating dtypes; negative; anything: what is read before it was written differs from
// one schedule to the next, also where NaN would be ignored.
uint32_t Block::fill() {
  if (schedule_ == Schedule::kRandom) return static_cast<uint32_t>(random_());
  return schedule_ == Schedule::kInOrder ? 0x7ff7f7f7 : 0xfbfbfbfb;
}

void Block::prepare(dim3 size, void (*thread)(void*), void* closure) {
  size_ = size;
  threads_ = static_cast<int>(size.x * size.y * size.z);
  thread_ = thread;
  closure_ = closure;
  while (static_cast<int>(fibers_.size()) < threads_)
    fibers_.emplace_back(static_cast<int>(fibers_.size()), &Block::enter);
  for (int t = 0; t < threads_; ++t)
    thread_of_[t].index = {t % size.x, t / size.x % size.y, t / (size.x * size.y)};
}

bool Block::run() {
  Fiber host;
  host_ = &host;
  error_.clear();
  at_barrier_ = returned_ = flags_ = 0;
  one_warp_first_ = random_() & 1;
  for (int t = 0; t < threads_; ++t) make_ready(t);
  current_ = pick();
  switch_from(host);
  host_ = nullptr;
  if (error_.empty()) return true;
  for (int t = 0; t < threads_; ++t) fibers_[t].restart(&Block::enter);
  ready_warps_ = 0;
  std::fill(std::begin(ready_lanes_), std::end(ready_lanes_), 0);
  return false;
}

// Where fibers start: each runs one thread of block after block.
void Block::enter() {
  Fiber::started();
  for (Block& block = only();;) {
    block.thread_(block.closure_);
    block.thread_of_[block.current_].state = State::kReturned;
    ++block.returned_;
    block.continue_with_another();
  }
}

int Block::synchronize(const char* operation, bool flag, Site site) {
  flags_ += flag;
  ++at_barrier_;
  int self = current_;
  wait(State::kAtBarrier, operation, site);
  return static_cast<int>(thread_of_[self].value);
}

unsigned Block::vote(const char* operation, unsigned mask, bool flag, Site site) {
  int self = current_;
  wait_warp(operation, mask, flag, -1, site);
  return static_cast<unsigned>(thread_of_[self].value);
}

uint64_t Block::exchange(const char* operation, unsigned mask, uint64_t value, int source,
                         Site site) {
  int self = current_;
  wait_warp(operation, mask, value, source, site);
  return thread_of_[self].value;
}

void Block::wait(State state, const char* operation, Site site) {
  Thread& self = thread_of_[current_];
  self.state = state;
  self.operation = operation;
  self.site = site;
  continue_with_another();
}

void Block::wait_warp(const char* operation, unsigned mask, uint64_t value, int source, Site site) {
  int lane = current_ % 32, first = current_ - lane;
  Thread& self = thread_of_[current_];
  self.mask = mask;
  self.value = value;
  self.source = source;
  if (!(mask >> lane & 1))
    stop("lane " + std::to_string(lane) + " is not in its own mask " + where() +
         place(operation, site));
  if (source >= 0 && !(mask >> source & 1))
    stop("lane " + std::to_string(lane) + " reads lane " + std::to_string(source) +
         ", which is not in the mask, " + where() + place(operation, site));
  bool complete = true;
  for (unsigned left = mask & ~(1u << lane); complete && left; left &= left - 1) {
    int other = first + std::countr_zero(left);
    const Thread& t = thread_of_[other];
    complete = other < threads_ && t.state == State::kAtWarp && t.mask == mask &&
               t.operation == operation && same_site(t.site, site);
  }
  if (complete) complete_warp(mask, first);
  if (complete) return continue_with_another();
  wait(State::kAtWarp, operation, site);
}

void Block::complete_warp(unsigned mask, int first) {
  uint64_t result[32];
  uint64_t votes = 0;
  for (unsigned left = mask; left; left &= left - 1) {
    int lane = std::countr_zero(left);
    const Thread& t = thread_of_[first + lane];
    votes |= static_cast<uint64_t>(t.value != 0) << lane;
    result[lane] = t.source < 0 ? 0 : thread_of_[first + t.source].value;
  }
  for (unsigned left = mask; left; left &= left - 1) {
    int lane = std::countr_zero(left);
    Thread& t = thread_of_[first + lane];
    t.value = t.source < 0 ? votes : result[lane];
    make_ready(first + lane);
  }
  warp_synchronized(first / 32, mask);
}

// Complete when all threads of the block wait at the same one.
bool Block::release_barrier() {
  if (at_barrier_ < threads_) return false;
  for (int t = 1; t < threads_; ++t)
    if (!same_site(thread_of_[t].site, thread_of_[0].site)) return false;
  for (int t = 0; t < threads_; ++t) {
    thread_of_[t].value = flags_;
    make_ready(t);
  }
  at_barrier_ = flags_ = 0;
  one_warp_first_ = random_() & 1;
  block_synchronized();
  return true;
}

void Block::continue_with_another() {
  Fiber& self = fibers_[current_];
  if (!ready_warps_ && !release_barrier()) {
    if (returned_ < threads_) stop_stuck();
    return self.switch_to(*host_);
  }
  int before = current_;
  current_ = pick();
  if (current_ == before)
    threadIdx = thread_of_[current_].index;
  else
    switch_from(self);
}

void Block::switch_from(Fiber& from) {
  threadIdx = thread_of_[current_].index;
  from.switch_to(fibers_[current_]);
}

void Block::make_ready(int thread) {
  thread_of_[thread].state = State::kReady;
  ready_warps_ |= 1u << thread / 32;
  ready_lanes_[thread / 32] |= 1u << thread % 32;
}

int Block::pick() {
  int warp = current_ / 32;
  bool stay = schedule_ == Schedule::kRandom && one_warp_first_ && ready_lanes_[warp];
  if (!stay) warp = pick_bit(ready_warps_);
  int lane = pick_bit(ready_lanes_[warp]);
  ready_lanes_[warp] &= ~(1u << lane);
  if (!ready_lanes_[warp]) ready_warps_ &= ~(1u << warp);
  return warp * 32 + lane;
}

int Block::pick_bit(uint32_t bits) {
  if (schedule_ == Schedule::kInOrder) return std::countr_zero(bits);
  if (schedule_ == Schedule::kReversed) return 31 - std::countl_zero(bits);
  int turn = random_() & 31;
  return (std::countr_zero(std::rotr(bits, turn)) + turn) & 31;
}

std::string Block::where() const { return "in block " + std::to_string(blockIdx.x) + " at "; }

void Block::stop(const std::string& error) {
  error_ = error;
  fibers_[current_].switch_to(*host_);
}

void Block::stop_stuck() {
  std::map<std::string, int> waiting;
  bool warp = false;
  for (int t = 0; t < threads_; ++t) {
    const Thread& thread = thread_of_[t];
    if (thread.state == State::kReturned) continue;
    warp |= thread.state == State::kAtWarp;
    ++waiting[place(thread.operation, thread.site)];
  }
  std::string error = warp ? "warp operation not reached by all lanes of its mask"
                           : "barrier not reached by all threads";
  error += " in block " + std::to_string(blockIdx.x) + ":";
  std::string of = " of " + std::to_string(threads_);
  for (auto& [at, count] : waiting)
    error += " " + std::to_string(count) + of + " wait at " + at + ",";
  stop(error + " " + std::to_string(returned_) + of + " have returned");
}

unsigned Block::existing_lanes(int warp) const {
  int lanes = threads_ - warp * 32;
  return lanes >= 32 ? ~0u : (1u << lanes) - 1;
}

// For the race detector: what is there is a thread's own.
bool Block::on_stack(const void* at) const { return fibers_[current_].holds(at); }

int lane() { return Block::only().current() % 32; }
int synchronize(const char* operation, bool flag, Site site) {
  return Block::only().synchronize(operation, flag, site);
}
unsigned vote(const char* operation, unsigned mask, bool flag, Site site) {
  return Block::only().vote(operation, mask, flag, site);
}
uint64_t exchange(const char* operation, unsigned mask, uint64_t value, int source, Site site) {
  return Block::only().exchange(operation, mask, value, source, site);
}

}  // namespace emulation
