// All kernels, compiled for avx2.
#include <immintrin.h>
#include <omp.h>

#include <cmath>
#include <cstdlib>

#include "scalar.h"

#pragma GCC target("avx2,fma,f16c")
#define UNIT_AVX2
#define EXPORT(name) nano3_##name##_avx2
namespace {
#include "vec_avx2.h"
}
#include "kernels.inl"
