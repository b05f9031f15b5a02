// What multiplies matrices, compiled for avx512 with bfloat16 products; empty where the compiler does not know them.
#include <immintrin.h>
#include <omp.h>

#include <cmath>
#include <cstdlib>

#include "scalar.h"

#if defined(NANO3_EMULATE) || __GNUC__ >= 10
#define BF16_PRODUCTS
#define EXPORT(name) nano3_##name##_avx512bf16
#ifdef NANO3_EMULATE
#pragma GCC target("avx2,fma,f16c")
namespace {
#include "vec_avx2.h"
#include "vec_bf16.h"
}
#else
#pragma GCC target("avx512bf16,avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
namespace {
#include "vec_avx512.h"
#include "vec_bf16.h"
}
#endif
#include "kernels.inl"
extern "C" int EXPORT(level)() { return 1; }
#endif
