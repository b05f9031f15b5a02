// Sixteen floats: AVX512 F, BW, VL, DQ.
struct V {
    __m512 v;
    static const int N = 16;
    V() {}
    V(__m512 x) : v(x) {}
    V(float x) : v(_mm512_set1_ps(x)) {}
    static V zero() { return _mm512_setzero_ps(); }
    static V load(const float* p) { return _mm512_loadu_ps(p); }
    static V load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
    static V load(const float* p, int n) { return _mm512_maskz_loadu_ps(mask(n), p); }
    static V load(const bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(mask(n), p)); }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
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
    static V round(V a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static V power_of_two(V a) { return _mm512_scalef_ps(_mm512_set1_ps(1), a.v); }
    float sum() const { return _mm512_reduce_add_ps(v); }
    float top() const { return _mm512_reduce_max_ps(v); }

  private:
    static __mmask16 mask(int n) { return __mmask16((1u << n) - 1); }
    static V widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
    __m256i narrow() const {
        __m512i bits = _mm512_castps_si512(v);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        up = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
    }
};
static const int ROWS = 4, COLS = 6;  // accumulators of the product kernel that fit 32 registers
