// Loops compiled twice, for every x86-64 processor and for those with AVX2, of which the loader
// picks. The results are the same bits: no operation is fused or reordered.
#pragma once

#include <cstdlib>  // defines __GLIBC__

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && defined(__GNUC__)
#define AUSAM_SIMD __attribute__((target_clones("avx2", "default")))
#else
#define AUSAM_SIMD
#endif
