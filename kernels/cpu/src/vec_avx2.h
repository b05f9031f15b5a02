// Eight floats: AVX2 and FMA.
struct V {
    __m256 v;
    static const int N = 8, SUMS = N;
    typedef float Sum;
    V() {}
    V(__m256 x) : v(x) {}
    V(float x) : v(_mm256_set1_ps(x)) {}
    static V zero() { return _mm256_setzero_ps(); }
    static V load(const float* p) { return _mm256_loadu_ps(p); }
    static V load(const bf16* p) {
        __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    // float16 numbers.
    static V halves(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
    // 2^-8 times e4m3 numbers.
    static V load(const e4m3* p) {
        __m128i half = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)p)), 7);
        return _mm256_cvtph_ps(_mm_and_si128(half, _mm_set1_epi16(short(0xbf80))));
    }
    // 32-bit integers less `offset`.
    static V of_integers(const void* p, int32_t offset) {
        __m256i sums = _mm256_loadu_si256((const __m256i*)p);
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, _mm256_set1_epi32(offset)));
    }
    template <class T> static V load(const T* p, int n) {
        float part[8] = {0};
        for (int i = 0; i < n; i++) part[i] = to_float(p[i]);
        return load(part);
    }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    void store(bf16* p) const { store(p, 8); }
    // As 8-bit integers, to nearest, ties to even.
    void store(int8_t* p) const {
        __m256i wide = _mm256_cvtps_epi32(v);
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words, words));
    }
    template <class T> void store(T* p, int n) const {
        float part[8];
        store(part);
        for (int i = 0; i < n; i++) store_as(p + i, part[i]);
    }
    V operator+(V b) const { return _mm256_add_ps(v, b.v); }
    V operator-(V b) const { return _mm256_sub_ps(v, b.v); }
    V operator*(V b) const { return _mm256_mul_ps(v, b.v); }
    V operator/(V b) const { return _mm256_div_ps(v, b.v); }
    static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
    static V max(V a, V b) { return _mm256_max_ps(a.v, b.v); }
    static V min(V a, V b) { return _mm256_min_ps(a.v, b.v); }
    // y where x is not below `least`, nan included; else 0.
    static V unless_below(V x, V least, V y) {
        return _mm256_and_ps(_mm256_cmp_ps(x.v, least.v, _CMP_NLT_UQ), y.v);
    }
    // Which of 32 numbers are `value`, the first in the lowest bit.
    static uint32_t equals(const uint16_t* p, uint16_t value) {
        __m256i all = _mm256_set1_epi16(short(value));
        __m256i low = _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i*)p), all);
        __m256i high = _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i*)(p + 16)), all);
        __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8);
        return uint32_t(_mm256_movemask_epi8(bytes));
    }
    static V round(V a) { return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    // x y z x y z ... in a, b, c -> all x, all y, all z; join3 is its inverse.
    static void split3(V a, V b, V c, V& x, V& y, V& z) {
        const __m256i i = _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5);
        x = _mm256_permutevar8x32_ps(thirds(a, c, b), i);
        y = _mm256_permutevar8x32_ps(thirds(c, b, a), _mm256_add_epi32(i, _mm256_set1_epi32(1)));
        z = _mm256_permutevar8x32_ps(thirds(b, a, c), _mm256_add_epi32(i, _mm256_set1_epi32(2)));
    }
    static void join3(V x, V y, V z, V& a, V& b, V& c) {
        const __m256i i = _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5);
        x = _mm256_permutevar8x32_ps(x.v, i);
        y = _mm256_permutevar8x32_ps(y.v, _mm256_add_epi32(i, _mm256_set1_epi32(5)));
        z = _mm256_permutevar8x32_ps(z.v, _mm256_add_epi32(i, _mm256_set1_epi32(2)));
        a = thirds(x, z, y), b = thirds(z, y, x), c = thirds(y, x, z);
    }
    static V power_of_two(V a) {
        __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a.v), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    }
    float sum() const {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }
    // Lanes 0 3 6 of a, 2 5 of b, 1 4 7 of c.
    static __m256 thirds(V a, V b, V c) { return _mm256_blend_ps(_mm256_blend_ps(a.v, b.v, 0x24), c.v, 0x92); }
    float top() const {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }
    // N rows of N numbers, in place.
    static void transpose(V* x) {
        V y[8];
        for (int i = 0; i < 8; i += 2) {
            y[i] = _mm256_unpacklo_ps(x[i].v, x[i + 1].v);
            y[i + 1] = _mm256_unpackhi_ps(x[i].v, x[i + 1].v);
        }
        for (int i = 0; i < 8; i += 4) {
            x[i] = _mm256_shuffle_ps(y[i].v, y[i + 2].v, 0x44);
            x[i + 1] = _mm256_shuffle_ps(y[i].v, y[i + 2].v, 0xee);
            x[i + 2] = _mm256_shuffle_ps(y[i + 1].v, y[i + 3].v, 0x44);
            x[i + 3] = _mm256_shuffle_ps(y[i + 1].v, y[i + 3].v, 0xee);
        }
        for (int i = 0; i < 4; i++) {
            V low = _mm256_permute2f128_ps(x[i].v, x[4 + i].v, 0x20);
            x[4 + i] = _mm256_permute2f128_ps(x[i].v, x[4 + i].v, 0x31);
            x[i] = low;
        }
    }
    // Partial sums of four vectors: halves added up as join does give the sums of a, b, c, d in this order.
    static V quad(V a, V b, V c, V d) { return pair<0x88, 0xDD>(pair<0x44, 0xEE>(a, b), pair<0x44, 0xEE>(c, d)); }
    static V join(V a, V b, V, V) {
        return _mm256_add_ps(_mm256_permute2f128_ps(a.v, b.v, 0x20), _mm256_permute2f128_ps(a.v, b.v, 0x31));
    }
    // Inlined early, or the compiler takes it for a function without effect.
    static inline __attribute__((always_inline)) void prefetch(const void* p) {
        _mm_prefetch((const char*)p, _MM_HINT_T0);
    }

  private:
    template <int A, int B> static V pair(V a, V b) {
        return _mm256_add_ps(_mm256_shuffle_ps(a.v, b.v, A), _mm256_shuffle_ps(a.v, b.v, B));
    }
};
static const int COLS = 3;  // rows of a tile of four outputs whose sums fit 16 registers
