// Types that cross the C interface, and conversions of single numbers. Included by every instruction set's unit.
#pragma once
#include <sched.h>

#include <cstdint>
#include <cstring>

typedef int64_t i64;
typedef uint16_t bf16;

enum Type { F32 = 0, BF16 = 1 };

static inline float to_float(bf16 v) {
    uint32_t bits = uint32_t(v) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
static inline float to_float(float v) { return v; }

// Round to nearest, ties to even; nan stays nan.
static inline bf16 to_bf16(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16((bits >> 16) | 0x40);
    return bf16((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
static inline void store_as(bf16* p, float f) { *p = to_bf16(f); }
static inline void store_as(float* p, float f) { *p = f; }
