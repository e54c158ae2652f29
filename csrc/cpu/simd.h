// Loops compiled twice, for every x86-64 processor and for those with AVX2, of which the loader
// picks. The results are the same bits: no operation is fused or reordered. Clang clones no
// templates, so it compiles them once: sampling is as fast, what goes over tensor lists is up to
// twice as slow if they fit into the cache.
#pragma once

#include <cstdlib>  // defines __GLIBC__

// AUSAM_SIMD_PART: a function that such a loop calls, which is compiled twice only if it is
// inlined.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && defined(__GNUC__) && \
    !defined(__clang__)
#define AUSAM_SIMD __attribute__((target_clones("avx2", "default")))
#define AUSAM_SIMD_PART __attribute__((always_inline)) inline
#else
#define AUSAM_SIMD
#define AUSAM_SIMD_PART inline
#endif
