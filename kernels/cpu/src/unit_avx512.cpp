// All kernels, compiled for avx512.
#include <immintrin.h>
#include <omp.h>

#include <cmath>
#include <cstdlib>

#include "scalar.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define EXPORT(name) nano3_##name##_avx512
// Nothing but the exported functions may be seen by the other units.
namespace {
#include "vec_avx512.h"
#include "math.inl"
#include "dense.inl"
#include "experts.inl"
#include "mamba.inl"
#include "attention.inl"
}  // namespace
#include "exports.inl"
