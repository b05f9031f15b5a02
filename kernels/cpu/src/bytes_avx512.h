// Sums of products of 8-bit integers, weights and activations, and of 4-bit weights and 8-bit activations: AVX512 BW,
// and where BYTES_VNNI is defined VNNI. Included once or twice a unit, each time in a namespace of its own.
struct Q {
    __m512i v;
    static const int N = 64, SUMS = 16;
    typedef int32_t Sum;
#ifdef BYTES_VNNI
    static const int OFFSET = 128;  // weights are taken as unsigned, this much more than they are
#else
    static const int OFFSET = 0;
#endif
    Q() {}
    Q(__m512i x) : v(x) {}
    static Q zero() { return _mm512_setzero_si512(); }
    static Q load(const int8_t* p) { return _mm512_loadu_si512(p); }
    static Q load(const int8_t* p, int n) { return _mm512_maskz_loadu_epi8((1ull << n) - 1, p); }
    static Q load(const weight8* p) { return shift(_mm512_loadu_si512(p)); }
    static Q load(const weight8* p, int n) { return shift(_mm512_maskz_loadu_epi8((1ull << n) - 1, p)); }
    void store(int32_t* p) const { _mm512_storeu_si512(p, v); }
    // c + w x, four products a sum.
    static Q fma(Q w, Q x, Q c) {
#ifdef BYTES_VNNI
        return _mm512_dpbusd_epi32(c.v, w.v, x.v);
#else
        __m512i signed_x = _mm512_mask_sub_epi8(x.v, _mm512_movepi8_mask(w.v), _mm512_setzero_si512(), x.v);
        __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w.v), signed_x);  // 2 * 127 * 128 fits 16 bits
        return _mm512_add_epi32(c.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
    }
    // Fours of many outputs, as fma's weights; and the codes in the halves of their bytes.
    static Q weights(V fours) { return shift(_mm512_castps_si512(fours.v)); }
    static Q low_codes(V fours) { return _mm512_and_si512(_mm512_castps_si512(fours.v), _mm512_set1_epi8(15)); }
    static Q high_codes(V fours) { return low_codes(_mm512_castsi512_ps(_mm512_srli_epi16(_mm512_castps_si512(fours.v), 4))); }
    // One four everywhere.
    static Q all(const int8_t* four) {
        int32_t bits;
        std::memcpy(&bits, four, sizeof(bits));
        return _mm512_set1_epi32(bits);
    }
    // Sums of codes times x over a group of 32, from `start` on: 16 bits hold 32 products of 15 and 127 in pairs.
#ifdef BYTES_VNNI
    static Q begin(int32_t start) { return _mm512_set1_epi32(start); }
    static Q add_codes(Q codes, Q x, Q c) { return fma(codes, x, c); }
    static V end(Q c, int32_t) { return _mm512_cvtepi32_ps(c.v); }
#else
    static Q begin(int32_t) { return zero(); }
    static Q add_codes(Q codes, Q x, Q c) { return _mm512_add_epi16(c.v, _mm512_maddubs_epi16(codes.v, x.v)); }
    static V end(Q c, int32_t start) {
        __m512i sums = _mm512_madd_epi16(c.v, _mm512_set1_epi16(1));
        return _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_set1_epi32(start)));
    }
#endif
    // As V's.
    static Q quad(Q a, Q b, Q c, Q d) { return pair<0x88, 0xDD>(pair<0x44, 0xEE>(a, b), pair<0x44, 0xEE>(c, d)); }
    static Q join(Q a, Q b, Q c, Q d) { return fold<0x88, 0xDD>(fold<0x88, 0xDD>(a, b), fold<0x88, 0xDD>(c, d)); }

  private:
    static Q shift(__m512i x) { return OFFSET ? _mm512_xor_si512(x, _mm512_set1_epi8(char(0x80))) : x; }
    template <int A, int B> static Q fold(Q a, Q b) {
        return _mm512_add_epi32(_mm512_shuffle_i32x4(a.v, b.v, A), _mm512_shuffle_i32x4(a.v, b.v, B));
    }
    template <int A, int B> static Q pair(Q a, Q b) {
        __m512 x = _mm512_castsi512_ps(a.v), y = _mm512_castsi512_ps(b.v);
        return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, A)),
                                _mm512_castps_si512(_mm512_shuffle_ps(x, y, B)));
    }
};

// Blocks of N weights of 4 bits: N / 2 bytes against the even activations, then the odd ones. A group of 32 weights is
// in one quarter of each.
struct Nibbles {
    __m512i low, high;
    static const int N = 128, LANES = 16;
    static Nibbles load(const uint8_t* p) { return split(_mm512_loadu_si512(p)); }
    static Nibbles load(const uint8_t* p, int bytes) { return split(_mm512_maskz_loadu_epi8((1ull << bytes) - 1, p)); }
    // Group sums of (code - 8) x: `start` holds those of -8 x, one a place, of the same four pairs.
    V dot(const int8_t* x, const int32_t* start) const {
        __m512i even = _mm512_loadu_si512(x), odd = _mm512_loadu_si512(x + 64), sums = _mm512_loadu_si512(start);
#ifdef BYTES_VNNI
        sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums, low, even), high, odd);
#else
        __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(low, even), _mm512_maddubs_epi16(high, odd));
        sums = _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
        return _mm512_cvtepi32_ps(sums);
    }
    // float16 scales of the block's groups, each at the places of its group.
    static V scales(const uint16_t* p) {
        const __m512i places = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        __m128 each = _mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)p));
        return _mm512_permutexvar_ps(places, _mm512_castps128_ps512(each));
    }

  private:
    static Nibbles split(__m512i x) {
        const __m512i mask = _mm512_set1_epi8(15);
        return {_mm512_and_si512(x, mask), _mm512_and_si512(_mm512_srli_epi16(x, 4), mask)};
    }
};
