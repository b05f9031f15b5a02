// Matrices as data and scale, and the rows that they multiply, rounded once for all products of a step. See scaled.py and
// integers.py for the numbers.

// Laid out as in rounded.py: every field has 8 bytes.
struct Weights {
    const void* data;          // (outputs, I)
    const void* scale;         // E4M3: float, one for each `O` outputs; INT8: float, one an output; INT4: float16 (outputs, I / 32)
    const float* input_scale;  // E4M3: one for all, or null
    i64 type;                  // Type
    i64 O;                     // outputs of one expert
};

static inline bool is_rounded(const Weights& w) { return w.type > BF16; }
static i64 weight_row_bytes(i64 type, i64 I) {
    return type == F32 ? 4 * I : type == BF16 ? 2 * I : type == INT4 ? I / 2 : I;
}

#include "panel_layout.inl"

// Integers for the instructions that the unit is for, and where the processor may have better ones for those too.
namespace plain {
#ifdef NANO3_EMULATE
#include "bytes_avx2.h"
#elif defined(BF16_PRODUCTS)
#define BYTES_VNNI
#include "bytes_avx512.h"
#undef BYTES_VNNI
#elif defined(UNIT_AVX512)
#include "bytes_avx512.h"
#else
#include "bytes_avx2.h"
#endif
#include "integers.inl"
#ifndef TILES
#include "panel.inl"
#endif
}  // namespace plain
#if defined(UNIT_AVX512) || (defined(UNIT_AVX2) && __GNUC__ >= 11)
#define MORE_VNNI
static bool use_vnni = false;
#define BYTES_VNNI
#pragma GCC push_options
#ifdef UNIT_AVX512
#pragma GCC target("avx512vnni")
namespace more {
#include "bytes_avx512.h"
#else
#pragma GCC target("avxvnni")
namespace more {
#include "bytes_avx2.h"
#endif
#include "product.inl"
#include "integers.inl"
#include "panel.inl"
}  // namespace more
#pragma GCC pop_options
#undef BYTES_VNNI
#endif
typedef plain::Nibbles Nibbles;
#ifndef TILES
using plain::ACROSS;
#endif
#ifdef TILES
#include "panel_tiles.inl"
#endif

// A rounded row: what its sums are to be multiplied by, the sum of its integers, and from ROUNDED_HEAD on its numbers.
struct RoundedHead {
    float scale;
    int32_t sum;
};
static const i64 ROUNDED_HEAD = 64;

#ifdef BF16_PRODUCTS
typedef bf16 rounded8;  // what e4m3 weights multiply
static const float E4M3_SHIFT = 0x1p120f;  // P's loads leave e4m3 numbers this much smaller
#else
typedef float rounded8;
static const float E4M3_SHIFT = 0x1p8f;  // V's loads
#endif

static i64 rounded_row_bytes(i64 type, i64 I) {
    i64 blocks = (I + Nibbles::N - 1) / Nibbles::N;
    i64 numbers = type == INT8 ? I : type == INT4 ? blocks * (Nibbles::N + 4 * Nibbles::LANES) : I * i64(sizeof(rounded8));
    return ROUNDED_HEAD + (numbers + 63) / 64 * 64;
}
// Of any type.
static i64 most_row_bytes(i64 I) { return most_of(rounded_row_bytes(E4M3, I), rounded_row_bytes(INT4, I)); }

// Bits of the largest magnitude: those of nan are above those of infinity, which are above all others.
static uint32_t top_bits(const float* x, i64 n) {
    uint32_t most = 0;
    for (i64 i = 0; i < n; i++) {
        uint32_t bits;
        std::memcpy(&bits, x + i, 4);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

// Integers and their sum; the row's scale is amax / 127, nan where a number is none, 0 below 1e-30.
static RoundedHead round_integers(const float* x, i64 n, int8_t* to) {
    const uint32_t bits = top_bits(x, n);
    float amax;
    std::memcpy(&amax, &bits, 4);
    if (bits >= 0x7f800000u || amax < 1e-30f) {
        std::memset(to, 0, n);
        return {bits >= 0x7f800000u ? NAN : 0.0f, 0};
    }
    const float factor = 127.0f / amax;
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) (V::load(x + i) * V(factor)).store(to + i);
    for (; i < n; i++) to[i] = int8_t(_mm_cvtss_si32(_mm_set_ss(x[i] * factor)));  // to nearest, ties to even
    int32_t sum = 0;
    for (i = 0; i < n; i++) sum += to[i];
    return {amax / 127.0f, sum};
}

// Even and odd numbers apart, and what sums start from, in blocks.
static void spread_blocks(const int8_t* q, i64 I, char* to) {
    const int N = Nibbles::N, LANES = Nibbles::LANES, HALF = N / 2;
    for (i64 i = 0; i < I; i += N, to += N + 4 * LANES) {
        int8_t* numbers = (int8_t*)to;
        int32_t start[Nibbles::LANES];
        const i64 n = least<i64>(N, I - i);
        if (n < N) std::memset(numbers, 0, N);
        for (i64 k = 0; k < n / 2; k++) numbers[k] = q[i + 2 * k], numbers[HALF + k] = q[i + 2 * k + 1];
        for (int l = 0; l < LANES; l++) {
            int32_t sum = 0;
            for (int k = 4 * l; k < 4 * l + 4; k++) sum += numbers[k] + numbers[HALF + k];
            start[l] = -8 * sum;
        }
        std::memcpy(to + N, start, sizeof(start));
    }
}

// Each group's even numbers, then its odd ones; behind all of them -8 times the groups' sums.
static void spread_groups(const int8_t* q, i64 I, char* to) {
    const __m256i apart = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    const int N = 32;
    for (i64 i = 0; i < I; i += N) {
        const __m256i numbers = _mm256_loadu_si256((const __m256i*)(q + i));
        const __m256i halves = _mm256_shuffle_epi8(numbers, apart);
        _mm256_storeu_si256((__m256i*)(to + i), _mm256_permute4x64_epi64(halves, 0xd8));
        int32_t sum = 0;
        for (int k = 0; k < N; k++) sum += q[i + k];
        sum *= -8;
        std::memcpy(to + I + i / 8, &sum, sizeof(sum));
    }
}

// x / scale as an e4m3 number: cut off at 448, to nearest, ties to even; nan stays nan.
static inline float to_e4m3(float x, float scale) {
    float z = x / scale, step;
    z = z > 448.0f ? 448.0f : z < -448.0f ? -448.0f : z;
    uint32_t bits;
    std::memcpy(&bits, &z, 4);
    uint32_t power = bits & 0x7f800000u;
    power = power < 0x3c800000u ? 0x3c800000u : power;  // 2^-6: of the smallest normal number
    std::memcpy(&step, &power, 4);
    const float magic = step * (1.5f * 0x1p20f);  // its last place is an eighth of the power
    float away = z + magic;
    return away - magic;
}

// The numbers of a row as e4m3 weights multiply them, and what sums are multiplied by.
static RoundedHead round_e4m3(const Weights& w, const float* x, i64 I, rounded8* to) {
    float factor = 1.0f;
#ifdef BF16_PRODUCTS
    // A power of two that keeps products with numbers 2^-120 times too small away from zero.
    float amax = 448.0f;
    if (!w.input_scale) {
        uint32_t bits = top_bits(x, I);
        std::memcpy(&amax, &bits, 4);
    }
    int exponent = 0;
    if (amax > 0 && amax < INFINITY) std::frexp(amax, &exponent);
    const int up = exponent > 107 ? -7 : exponent < -20 ? 120 : 100 - exponent;
    factor = std::ldexp(1.0f, up);
#endif
    if (w.input_scale) {
        const float scale = *w.input_scale;
        for (i64 i = 0; i < I; i++) store_as(to + i, to_e4m3(x[i], scale) * factor);
    } else {
        for (i64 i = 0; i < I; i++) store_as(to + i, x[i] * factor);
    }
    std::memset(to + I, 0, (round_up(I, 64 / i64(sizeof(*to))) - I) * sizeof(*to));  // tiles read 64 bytes at a time
    return {E4M3_SHIFT / factor * (w.input_scale ? *w.input_scale : 1.0f), 0};
}

// The numbers of a row as 4-bit weights multiply them, by panels (rounded_panels.inl) or not.
static void spread(const int8_t* q, i64 I, bool panels, char* to) {
    if (panels) spread_groups(q, I, to);
    else spread_blocks(q, I, to);
}
static RoundedHead round_spread(const float* x, i64 I, bool panels, char* to) {
    int8_t q[4096];
    Buffer<int8_t> wide(I <= i64(sizeof(q)) ? 0 : I);
    int8_t* numbers = I <= i64(sizeof(q)) ? q : wide.data;
    if (!wide.ok()) return {NAN, 0};
    const RoundedHead head = round_integers(x, I, numbers);
    spread(numbers, I, panels, to);
    return head;
}

// One row (I) as matrices like w multiply it, by panels or not.
static void round_row(const Weights& w, const float* x, i64 I, char* to, bool panels = false) {
    RoundedHead head;
    if (w.type == INT8) {
        head = round_integers(x, I, (int8_t*)(to + ROUNDED_HEAD));
    } else if (w.type == INT4) {
        head = round_spread(x, I, panels, to + ROUNDED_HEAD);
    } else {
        head = round_e4m3(w, x, I, (rounded8*)(to + ROUNDED_HEAD));
    }
    std::memcpy(to, &head, sizeof(head));
}

// The best instructions for integers that the unit has, and that the processor has.
static void int8_sums(const int8_t* x, i64 ldx, i64 M, const int8_t* w, i64 O, i64 I, int32_t* sums, i64 ldy) {
#ifdef MORE_VNNI
    if (use_vnni) return more::product_int8(x, ldx, M, w, O, I, sums, ldy);
#endif
    plain::product_int8(x, ldx, M, w, O, I, sums, ldy);
}
static int32_t int8_offset() {
#ifdef MORE_VNNI
    if (use_vnni) return more::INT8_OFFSET;
#endif
    return plain::INT8_OFFSET;
}
static void int4_sums(const char* x, i64 ldx, i64 M, const uint8_t* w, const uint16_t* s, i64 O, i64 I, float* y, i64 ldy) {
#ifdef MORE_VNNI
    if (use_vnni) return more::product_int4(x, ldx, M, w, s, O, I, y, ldy);
#endif
    plain::product_int4(x, ldx, M, w, s, O, I, y, ldy);
}

// y (M, O), as int32 where it lies, less `offset` times each row's sum -> float times both scales.
static void scale_int8(const char* rows, i64 stride, i64 M, const float* scale, i64 O, int32_t offset, float* y, i64 ldy) {
    for (i64 m = 0; m < M; m++, y += ldy) {
        RoundedHead head;
        std::memcpy(&head, rows + m * stride, sizeof(head));
        const int32_t less = offset * head.sum;
        i64 i = 0;
        for (; i + V::N <= O; i += V::N)
            (V::of_integers(y + i, less) * (V(head.scale) * V::load(scale + i))).store(y + i);
        for (; i < O; i++) {
            int32_t sum;
            std::memcpy(&sum, y + i, 4);
            y[i] = float(sum - less) * (head.scale * scale[i]);
        }
    }
}
static void scale_rows(const char* rows, i64 stride, i64 M, float scale, i64 O, float* y, i64 ldy) {
    for (i64 m = 0; m < M; m++, y += ldy) {
        RoundedHead head;
        std::memcpy(&head, rows + m * stride, sizeof(head));
        const V factor(head.scale * scale);
        over(O, [&](auto lanes, i64 i) { lanes.store(lanes.load(y + i) * factor, y + i); });
    }
}

static void product_int8(const char* rows, i64 stride, i64 M, const int8_t* w, const float* scale, i64 O, i64 I, float* y,
                         i64 ldy) {
    const int8_t* x = (const int8_t*)(rows + ROUNDED_HEAD);
#ifdef TILES
    const i64 whole = M < TILED_FROM || !I ? 0 : O / TILE * TILE;
    if (whole) {
        product_amx<Fours>(x, stride, M, w, whole, I, (int32_t*)y, ldy);
        scale_int8(rows, stride, M, scale, whole, 0, y, ldy);
    }
    if (whole == O) return;
    w += whole * I, scale += whole, y += whole, O -= whole;
#endif
    int8_sums(x, stride, M, w, O, I, (int32_t*)y, ldy);
    scale_int8(rows, stride, M, scale, O, int8_offset(), y, ldy);
}

static void product_e4m3(const char* rows, i64 stride, i64 M, const e4m3* w, float scale, i64 O, i64 I, float* y, i64 ldy) {
    const rounded8* x = (const rounded8*)(rows + ROUNDED_HEAD);
    const i64 ldx = stride / i64(sizeof(rounded8));
#ifdef BF16_PRODUCTS
    i64 done = 0;
#ifdef TILES
    done = M < TILED_FROM || !I ? 0 : O / TILE * TILE;
    if (done) product_amx<Pairs>(x, ldx, M, w, done, I, y, ldy);
#endif
    if (done < O) product_of<P>(x, ldx, M, w + done * I, O - done, I, y + done, ldy);
#else
    product_of<V>(x, ldx, M, w, O, I, y, ldy);
#endif
    scale_rows(rows, stride, M, scale, O, y, ldy);
}

// y (M, count) = rounded rows (M) times outputs first .. first + count of w, all of one expert; one thread.
static void product_rounded(
    const char* rows, i64 stride, i64 M, const Weights& w, i64 first, i64 count, i64 I, float* y, i64 ldy) {
    const char* data = (const char*)w.data + first * weight_row_bytes(w.type, I);
    if (w.type == INT4) {
        const uint16_t* scales = (const uint16_t*)w.scale + first * (I / 32);
        int4_sums(rows + ROUNDED_HEAD, stride, M, (const uint8_t*)data, scales, count, I, y, ldy);
        scale_rows(rows, stride, M, 1.0f, count, y, ldy);
    } else if (w.type == INT8) {
        product_int8(rows, stride, M, (const int8_t*)data, (const float*)w.scale + first, count, I, y, ldy);
    } else {
        product_e4m3(rows, stride, M, (const e4m3*)data, ((const float*)w.scale)[first / w.O], count, I, y, ldy);
    }
}
