// Finds data races: g++ -fsanitize=thread calls a function for every load and store; here they are
// checked against the barriers of CUDA instead of those of the host. Two accesses to one byte, one
// of them a write, not both atomic, have to be in different launches, or in one block with a
// barrier between, or in one warp with an operation of the whole warp between. (Atomic operations
// order nothing, nor do warp operations with part of a mask. Volatile accesses are such too: PTX
// has them as relaxed ones.) Reported whatever the schedule.
#include "races.h"

#ifdef EMULATION_RACES

#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <memory>
#include <string>
#include <tuple>
#include <unordered_map>

#include "scheduler.h"

namespace ausam::cuda {
extern unsigned char memory[];
}

namespace emulation {
namespace {

// The accesses of one kind to one byte, as many as can still be part of a race.
struct Accesses {
  uint32_t launch = 0;  // in which memory was as it is: for shared memory, a block
  uint32_t block, barrier, warp_operation;
  uint16_t thread;
  enum : uint8_t { kThread, kLanes, kWarps, kBlocks } by;

  bool races_with(const Accesses& now) const {
    if (launch != now.launch) return false;
    if (block != now.block || by == kBlocks) return true;
    if (barrier != now.barrier) return false;
    if (by == kWarps || thread / 32 != now.thread / 32) return true;
    return warp_operation == now.warp_operation && (by == kLanes || thread != now.thread);
  }

  void add(const Accesses& now) {
    if (launch != now.launch)
      *this = now;
    else if (block != now.block || by == kBlocks)
      by = kBlocks;
    else if (barrier != now.barrier)
      *this = now;
    else if (thread / 32 != now.thread / 32 || by == kWarps)
      by = kWarps;
    else if (warp_operation != now.warp_operation)
      *this = now;
    else if (thread != now.thread)
      by = kLanes;
  }

  std::string who() const {
    if (by == kBlocks) return "several blocks have";
    std::string in_block = " of block " + std::to_string(block);
    if (by != kThread) return "several threads" + in_block + " have";
    return "thread " + std::to_string(thread) + in_block + " has";
  }
};

struct Byte {
  Accesses reads, writes, atomics;
};

using Page = std::array<Byte, 1024>;
constexpr uintptr_t kPage = std::tuple_size_v<Page>;
constexpr size_t kPages = 2000;  // to keep from one launch to the next, some 100 MB
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
Page* last_page = nullptr;
uintptr_t last_number = 0;

Byte& byte_at(uintptr_t address) {
  if (!last_page || address / kPage != last_number) {
    last_number = address / kPage;
    auto& page = pages[last_number];
    if (!page) page = std::make_unique<Page>();
    last_page = page.get();
  }
  return (*last_page)[address % kPage];
}

uint32_t launches, blocks, barriers;
uint32_t warp_operations[kMaxThreads / 32];

std::string source_of(void* address) {
  Dl_info info;
  if (!dladdr(address, &info)) return "?";
  char command[4096], line[4096] = "?";
  long offset = static_cast<char*>(address) - static_cast<char*>(info.dli_fbase) - 1;
  std::snprintf(command, sizeof(command), "addr2line -e '%s' 0x%lx", info.dli_fname, offset);
  if (FILE* pipe = popen(command, "r")) {
    if (!std::fgets(line, sizeof(line), pipe)) line[0] = 0;
    pclose(pipe);
  }
  std::string at = line;
  at = at.substr(at.rfind('/') + 1);
  return at.substr(0, at.find_first_of(" \n"));
}

enum class Kind { kRead, kWrite, kAtomic };

void access(const void* at, size_t bytes, Kind kind, void* caller) {
  Block& block = Block::only();
  if (!block.running() || block.on_stack(at)) return;
  int thread = block.current();
  bool shared = at >= ausam::cuda::memory && at < ausam::cuda::memory + kSharedMaximum;
  Accesses now{
      shared ? blocks : launches,    blockIdx.x,       barriers, warp_operations[thread / 32],
      static_cast<uint16_t>(thread), Accesses::kThread};
  for (size_t i = 0; i < bytes; ++i) {
    Byte& byte = byte_at(reinterpret_cast<uintptr_t>(at) + i);
    auto stop = [&](const std::string& did) {
      block.stop(source_of(caller) + ": thread " + std::to_string(thread) + " of block " +
                 std::to_string(blockIdx.x) + did);
    };
    if (shared && kind != Kind::kWrite && byte.writes.launch != now.launch &&
        byte.atomics.launch != now.launch)
      stop(" reads shared memory that nothing has been written to");
    const char* did = nullptr;
    const Accesses* earlier = nullptr;
    auto check = [&](const Accesses& other, const char* verb) {
      if (did || !other.races_with(now)) return;
      did = verb;
      earlier = &other;
    };
    check(byte.writes, "written");
    if (kind != Kind::kAtomic) check(byte.atomics, "changed atomically");
    if (kind != Kind::kRead) check(byte.reads, "read");
    if (did) {
      const char* doing[] = {" reads", " writes", " changes"};
      stop(doing[static_cast<int>(kind)] + std::string(shared ? " shared" : " global") +
           " memory that " + earlier->who() + " " + did + ", with no barrier between");
    }
    if (kind == Kind::kWrite)
      byte.writes = now;
    else
      (kind == Kind::kRead ? byte.reads : byte.atomics).add(now);
  }
}

}  // namespace

void atomic_access(const void* at, size_t bytes) {
  access(at, bytes, Kind::kAtomic, __builtin_return_address(0));
}

// One counter for both: shared memory goes by blocks, global memory by launches.
void launch_begins() {
  launches = ++blocks;
  if (pages.size() <= kPages) return;
  pages.clear();
  last_page = nullptr;
}
void block_begins() { ++blocks; }

void block_synchronized() { ++barriers; }

void warp_synchronized(int warp, unsigned mask) {
  if (mask == Block::only().existing_lanes(warp)) ++warp_operations[warp];
}

}  // namespace emulation

// What the compiler calls.
#define CALLED extern "C" __attribute__((visibility("hidden")))
#define ACCESS(name, bytes, kind)                                                     \
  CALLED void __tsan_##name(void* at) {                                               \
    emulation::access(at, bytes, emulation::Kind::kind, __builtin_return_address(0)); \
  }
#define ACCESSES(bytes)                                  \
  ACCESS(read##bytes, bytes, kRead)                      \
  ACCESS(write##bytes, bytes, kWrite)                    \
  ACCESS(unaligned_read##bytes, bytes, kRead)            \
  ACCESS(unaligned_write##bytes, bytes, kWrite)          \
  ACCESS(volatile_read##bytes, bytes, kAtomic)           \
  ACCESS(volatile_write##bytes, bytes, kAtomic)          \
  ACCESS(unaligned_volatile_read##bytes, bytes, kAtomic) \
  ACCESS(unaligned_volatile_write##bytes, bytes, kAtomic)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
CALLED void __tsan_read_range(void* at, size_t bytes) {
  emulation::access(at, bytes, emulation::Kind::kRead, __builtin_return_address(0));
}
CALLED void __tsan_write_range(void* at, size_t bytes) {
  emulation::access(at, bytes, emulation::Kind::kWrite, __builtin_return_address(0));
}
CALLED void __tsan_init() {}
CALLED void __tsan_func_entry(void*) {}
CALLED void __tsan_func_exit() {}
CALLED void __tsan_vptr_update(void**, void*) {}
// Reference counts of the launchers; kernels have CUDA's own functions.
CALLED int __tsan_atomic32_fetch_add(int* at, int value, int) {
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}

#endif
