// All kernels, compiled for avx512.
#include <immintrin.h>
#include <omp.h>

#include <cmath>
#include <cstdlib>

#include "scalar.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define UNIT_AVX512
#define EXPORT(name) nano3_##name##_avx512
namespace {
#include "vec_avx512.h"
}
#include "kernels.inl"
