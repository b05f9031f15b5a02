// Types that cross the C interface, and conversions of single numbers. Included by every instruction set's unit.
#pragma once
#include <sched.h>

#include <cstdint>
#include <cstring>

typedef int64_t i64;
typedef uint16_t bf16;

enum Type { F32 = 0, BF16 = 1, E4M3 = 2, INT8 = 3, INT4 = 4 };
// Stored numbers that vectors widen as they load them.
struct e4m3 {
    uint8_t bits;
};
struct weight8 {
    int8_t number;
};

static inline float to_float(bf16 v) {
    uint32_t bits = uint32_t(v) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
static inline float to_float(float v) { return v; }
// 2^-8 times the number: that of the same bits in float16.
static inline float to_float(e4m3 v) {
    const int exponent = v.bits >> 3 & 15, mantissa = v.bits & 7;
    float f = exponent ? float(8 + mantissa) : float(mantissa);
    const uint32_t power = uint32_t(127 - 18 + (exponent ? exponent : 1)) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return v.bits & 0x80 ? -f * scale : f * scale;
}

// Round to nearest, ties to even; nan stays nan.
static inline bf16 to_bf16(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16((bits >> 16) | 0x40);
    return bf16((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
static inline void store_as(bf16* p, float f) { *p = to_bf16(f); }
static inline void store_as(float* p, float f) { *p = f; }
