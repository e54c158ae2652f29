// Fibers: contexts of execution with a stack each, switched by hand.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

#if defined(__x86_64__)
// Saves the registers that a call preserves in `from`'s stack, and continues with those of `to`.
// (swapcontext makes a system call for the signal mask, every time.)
extern "C" void emulation_switch(void** from, void* to) __attribute__((visibility("hidden")));
#endif

class Fiber {
 public:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kStack = 256 << 10;  // its frames have redzones
#else
  static constexpr size_t kStack = 64 << 10;
#endif

  // The thread that runs already.
  Fiber() {
#if defined(__SANITIZE_ADDRESS__)
    static thread_local size_t size = 0;
    static thread_local void* bottom;
    if (size == 0) {  // reads a file of the system
      pthread_attr_t attributes;
      pthread_getattr_np(pthread_self(), &attributes);
      pthread_attr_getstack(&attributes, &bottom, &size);
      pthread_attr_destroy(&attributes);
    }
    stack_ = static_cast<char*>(bottom);
    size_ = size;
#endif
  }

  // A new one, which will start with `entry`; that must call started() and never return. The tops
  // of stacks are moved by `number`, or else they all fall into the same lines of the cache.
  Fiber(int number, void (*entry)()) : size_(kStack) {
    size_t page = sysconf(_SC_PAGESIZE);
    void* memory = mmap(nullptr, page + kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) throw std::bad_alloc();
    stack_ = static_cast<char*>(memory) + page;
    color_ = number % 16 * 192;
    restart(entry);
  }
  Fiber(const Fiber&) = delete;

  // Forgets what runs on the stack.
  void restart(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, size_);
#endif
    char* top = stack_ + size_ - color_;
#if defined(__x86_64__)
    auto* frame = reinterpret_cast<uintptr_t*>(top) - 8;
    for (int i = 0; i < 8; ++i) frame[i] = 0;
    frame[6] = reinterpret_cast<uintptr_t>(entry);
    saved_ = frame;
#else
    getcontext(&saved_);
    saved_.uc_stack.ss_sp = stack_;
    saved_.uc_stack.ss_size = top - stack_;
    saved_.uc_link = nullptr;
    makecontext(&saved_, entry, 0);
#endif
  }

  void switch_to(Fiber& other) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, other.stack_, other.size_);
#endif
#if defined(__x86_64__)
    emulation_switch(&saved_, other.saved_);
#else
    swapcontext(&saved_, &other.saved_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
  }

  static void started() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  }

  bool holds(const void* at) const { return at >= stack_ && at < stack_ + size_; }

 private:
#if defined(__x86_64__)
  void* saved_ = nullptr;
#else
  ucontext_t saved_;
#endif
  char* stack_ = nullptr;
  size_t size_ = 0, color_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace emulation
