// Sixteen sums of products of bfloat16 pairs: AVX512_BF16, or the same in plain C++ to test what uses it.
#ifdef NANO3_EMULATE
struct P {
    float v[16];
    static const int N = 32, SUMS = 16;
    typedef float Sum;
    static P zero() { return P{{0}}; }
    static P load(const bf16* p) { return load(p, N); }
    static P load(const float* stored) {
        P all;
        std::memcpy(all.v, stored, sizeof(all.v));
        return all;
    }
    // 2^-120 times e4m3 numbers, 0 for those below 2^-6.
    static P load(const e4m3* p) { return load(p, N); }
    static P load(const e4m3* p, int n) {
        bf16 wide[N] = {0};
        for (int k = 0; k < n; k++) wide[k] = (p[k].bits & 0x80) << 8 | (p[k].bits & 0x78 ? p[k].bits & 0x7f : 0) << 4;
        return load(wide);
    }
    static P load(const bf16* p, int n) {
        P all = zero();
        std::memcpy(all.v, p, n * sizeof(bf16));
        return all;
    }
    void store(float* p) const { std::memcpy(p, v, sizeof(v)); }
    static P fma(P a, P b, P c) {
        bf16 x[N], y[N];
        std::memcpy(x, a.v, sizeof(x)), std::memcpy(y, b.v, sizeof(y));
        for (int k = 0; k < N; k++) c.v[k / 2] += to_float(x[k]) * to_float(y[k]);
        return c;
    }
    // The sums of a, b, c, d, in the first four places.
    static P quad(P a, P b, P c, P d) { return P{{a.sum(), b.sum(), c.sum(), d.sum()}}; }
    static P join(P a, P b, P c, P d) {
        P all, parts[4] = {a, b, c, d};
        for (int k = 0; k < 16; k++) all.v[k] = parts[k / 4].v[k % 4];
        return all;
    }
    float sum() const {
        float total = 0;
        for (int k = 0; k < 16; k++) total += v[k];
        return total;
    }
};
// 32 floats as bfloat16.
static inline void narrow_pairs(const float* x, bf16* y) {
    for (int k = 0; k < P::N; k++) y[k] = to_bf16(x[k]);
}
#else
struct P {
    __m512 v;
    static const int N = 32, SUMS = 16;
    typedef float Sum;
    P() {}
    P(__m512 x) : v(x) {}
    P(V x) : v(x.v) {}
    static P zero() { return _mm512_setzero_ps(); }
    static P load(const bf16* p) { return _mm512_loadu_ps((const float*)p); }
    static P load(const float* stored) { return _mm512_loadu_ps(stored); }
    // 2^-120 times e4m3 numbers; those below 2^-6 are no normal bfloat16 numbers then, and count as 0.
    static P load(const e4m3* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
    static P load(const e4m3* p, int n) { return widen(_mm256_maskz_loadu_epi8(__mmask32((1ull << n) - 1), p)); }
    static P load(const bf16* p, int n) {
        return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(__mmask32((1ull << n) - 1), p));
    }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    static P fma(P a, P b, P c) { return _mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v); }
    static P quad(P a, P b, P c, P d) { return V::quad(a.v, b.v, c.v, d.v); }
    static P join(P a, P b, P c, P d) { return V::join(a.v, b.v, c.v, d.v); }

  private:
    static P widen(__m256i x) {
        __m512i wide = _mm512_slli_epi16(_mm512_cvtepi8_epi16(x), 4);
        return _mm512_castsi512_ps(_mm512_and_si512(wide, _mm512_set1_epi16(short(0x87f0))));
    }
};
// 32 floats as bfloat16.
static inline void narrow_pairs(const float* x, bf16* y) {
    __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
    std::memcpy(y, &both, sizeof(both));
}
#endif
