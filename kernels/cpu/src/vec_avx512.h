// Sixteen floats: AVX512 F, BW, VL, DQ.
struct V {
    __m512 v;
    static const int N = 16, SUMS = N;
    typedef float Sum;
    V() {}
    V(__m512 x) : v(x) {}
    V(float x) : v(_mm512_set1_ps(x)) {}
    static V zero() { return _mm512_setzero_ps(); }
    static V load(const float* p) { return _mm512_loadu_ps(p); }
    static V load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
    static V load(const float* p, int n) { return _mm512_maskz_loadu_ps(mask(n), p); }
    static V load(const bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(mask(n), p)); }
    // float16 numbers.
    static V halves(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
    // 2^-8 times e4m3 numbers.
    static V load(const e4m3* p) { return widen_e4m3(_mm_loadu_si128((const __m128i*)p)); }
    static V load(const e4m3* p, int n) { return widen_e4m3(_mm_maskz_loadu_epi8(mask(n), p)); }
    // 32-bit integers less `offset`.
    static V of_integers(const void* p, int32_t offset) {
        return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(p), _mm512_set1_epi32(offset)));
    }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    // As 8-bit integers, to nearest, ties to even.
    void store(int8_t* p) const { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))); }
    void store(float* p, int n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
    void store(bf16* p) const { _mm256_storeu_si256((__m256i*)p, narrow()); }
    void store(bf16* p, int n) const { _mm256_mask_storeu_epi16(p, mask(n), narrow()); }
    V operator+(V b) const { return _mm512_add_ps(v, b.v); }
    V operator-(V b) const { return _mm512_sub_ps(v, b.v); }
    V operator*(V b) const { return _mm512_mul_ps(v, b.v); }
    V operator/(V b) const { return _mm512_div_ps(v, b.v); }
    static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
    static V max(V a, V b) { return _mm512_max_ps(a.v, b.v); }
    static V min(V a, V b) { return _mm512_min_ps(a.v, b.v); }
    // y where x is not below `least`, nan included; else 0.
    static V unless_below(V x, V least, V y) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, least.v, _CMP_NLT_UQ), y.v);
    }
    // Which of 32 numbers are `value`, the first in the lowest bit.
    static uint32_t equals(const uint16_t* p, uint16_t value) {
        return _mm512_cmpeq_epi16_mask(_mm512_loadu_si512(p), _mm512_set1_epi16(short(value)));
    }
    static V round(V a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    // x y z x y z ... in a, b, c -> all x, all y, all z; join3 is its inverse.
    static void split3(V a, V b, V c, V& x, V& y, V& z) {
        const __m512i i = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 2, 5, 8, 11, 14, 1, 4, 7, 10, 13);
        x = _mm512_permutexvar_ps(i, thirds(a, b, c));
        y = _mm512_permutexvar_ps(_mm512_add_epi32(i, _mm512_set1_epi32(1)), thirds(b, c, a));
        z = _mm512_permutexvar_ps(_mm512_add_epi32(i, _mm512_set1_epi32(2)), thirds(c, a, b));
    }
    static void join3(V x, V y, V z, V& a, V& b, V& c) {
        const __m512i i = _mm512_setr_epi32(0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15, 10, 5);
        x = _mm512_permutexvar_ps(i, x.v);
        y = _mm512_permutexvar_ps(_mm512_add_epi32(i, _mm512_set1_epi32(5)), y.v);
        z = _mm512_permutexvar_ps(_mm512_add_epi32(i, _mm512_set1_epi32(10)), z.v);
        a = thirds(x, z, y), b = thirds(y, x, z), c = thirds(z, y, x);
    }
    static V power_of_two(V a) { return _mm512_scalef_ps(_mm512_set1_ps(1), a.v); }
    float sum() const { return _mm512_reduce_add_ps(v); }
    float top() const { return _mm512_reduce_max_ps(v); }
    // N rows of N numbers, in place.
    static void transpose(V* x) {
        V y[16];
        for (int i = 0; i < 16; i += 2) {
            y[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
            y[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
        }
        for (int i = 0; i < 16; i += 4) {
            x[i] = _mm512_shuffle_ps(y[i].v, y[i + 2].v, 0x44);
            x[i + 1] = _mm512_shuffle_ps(y[i].v, y[i + 2].v, 0xee);
            x[i + 2] = _mm512_shuffle_ps(y[i + 1].v, y[i + 3].v, 0x44);
            x[i + 3] = _mm512_shuffle_ps(y[i + 1].v, y[i + 3].v, 0xee);
        }
        for (int i = 0; i < 4; i++) {  // x[4 g + i]: columns i, 4 + i, 8 + i, 12 + i of rows 4 g to 4 g + 3
            for (int g = 0; g < 4; g += 2) {
                y[g] = _mm512_shuffle_f32x4(x[4 * g + i].v, x[4 * g + 4 + i].v, 0x88);
                y[g + 1] = _mm512_shuffle_f32x4(x[4 * g + i].v, x[4 * g + 4 + i].v, 0xdd);
            }
            x[i] = _mm512_shuffle_f32x4(y[0].v, y[2].v, 0x88);
            x[8 + i] = _mm512_shuffle_f32x4(y[0].v, y[2].v, 0xdd);
            x[4 + i] = _mm512_shuffle_f32x4(y[1].v, y[3].v, 0x88);
            x[12 + i] = _mm512_shuffle_f32x4(y[1].v, y[3].v, 0xdd);
        }
    }
    // Partial sums of four vectors: quarters added up as join does give the sums of a, b, c, d in this order.
    static V quad(V a, V b, V c, V d) { return pair<0x88, 0xDD>(pair<0x44, 0xEE>(a, b), pair<0x44, 0xEE>(c, d)); }
    static V join(V a, V b, V c, V d) { return fold<0x88, 0xDD>(fold<0x88, 0xDD>(a, b), fold<0x88, 0xDD>(c, d)); }
    // Inlined early, or the compiler takes it for a function without effect.
    static inline __attribute__((always_inline)) void prefetch(const void* p) {
        _mm_prefetch((const char*)p, _MM_HINT_T0);
    }

  private:
    // Lanes 0 3 6 .. of a, 2 5 8 .. of b, 1 4 7 .. of c.
    static __m512 thirds(V a, V b, V c) { return _mm512_mask_blend_ps(0x2492, _mm512_mask_blend_ps(0x4924, a.v, b.v), c.v); }
    template <int A, int B> static V fold(V a, V b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, A), _mm512_shuffle_f32x4(a.v, b.v, B));
    }
    template <int A, int B> static V pair(V a, V b) {
        return _mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, A), _mm512_shuffle_ps(a.v, b.v, B));
    }
    static __mmask16 mask(int n) { return __mmask16((1u << n) - 1); }
    static V widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
    static V widen_e4m3(__m128i x) {
        __m256i half = _mm256_slli_epi16(_mm256_cvtepi8_epi16(x), 7);
        return _mm512_cvtph_ps(_mm256_and_si256(half, _mm256_set1_epi16(short(0xbf80))));
    }
    __m256i narrow() const {
        __m512i bits = _mm512_castps_si512(v);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        up = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
    }
};
static const int COLS = 6;  // rows of a tile of four outputs whose sums fit 32 registers
