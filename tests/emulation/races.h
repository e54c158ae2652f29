// Atomic operations as the race detector (races.cpp) sees them; nothing in other builds.
#pragma once

#include <cstddef>

#ifdef EMULATION_RACES
#define EMULATION_UNCHECKED __attribute__((no_sanitize("thread")))
#else
#define EMULATION_UNCHECKED
#endif

namespace emulation {

#ifdef EMULATION_RACES
void atomic_access(const void* at, size_t bytes);
// What orders accesses.
void launch_begins();
void block_begins();
void block_synchronized();
void warp_synchronized(int warp, unsigned mask);
#else
inline void atomic_access(const void*, size_t) {}
inline void launch_begins() {}
inline void block_begins() {}
inline void block_synchronized() {}
inline void warp_synchronized(int, unsigned) {}
#endif

}  // namespace emulation
