// What multiplies matrices, compiled for AMX with bfloat16; for Linux, and compilers that know it.
#include <immintrin.h>
#include <omp.h>

#include <cmath>
#include <cstdlib>

#include "scalar.h"

#if defined(NANO3_EMULATE) || (defined(__linux__) && __GNUC__ >= 11)
#define BF16_PRODUCTS
#define TILES
#define EXPORT(name) nano3_##name##_amx
#ifdef NANO3_EMULATE
#pragma GCC target("avx2,fma,f16c")
namespace {
#include "vec_avx2.h"
#include "vec_bf16.h"
#include "tiles.h"
}
#else
#include <sys/syscall.h>
#include <unistd.h>
#pragma GCC target("amx-tile,amx-bf16,amx-int8,avx512bf16,avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
namespace {
#include "vec_avx512.h"
#include "vec_bf16.h"
#include "tiles.h"
}
#endif
#include "kernels.inl"
extern "C" int EXPORT(level)() { return tiles_allowed(); }
#endif
