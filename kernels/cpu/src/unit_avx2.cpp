// All kernels, compiled for avx2.
#include <immintrin.h>
#include <omp.h>

#include <cmath>
#include <cstdlib>

#include "scalar.h"

#pragma GCC target("avx2,fma")
#define EXPORT(name) nano3_##name##_avx2
// Nothing but the exported functions may be seen by the other units.
namespace {
#include "vec_avx2.h"
#include "math.inl"
#include "dense.inl"
#include "experts.inl"
#include "mamba.inl"
#include "attention.inl"
}  // namespace
#include "exports.inl"
