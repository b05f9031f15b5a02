// Sums of products of 8-bit integers, weights and activations, and of 4-bit weights and 8-bit activations: AVX2, and
// where BYTES_VNNI is defined AVX-VNNI. Included once or twice a unit, each time in a namespace of its own.
struct Q {
    __m256i v;
    static const int N = 32, SUMS = 8;
    typedef int32_t Sum;
#ifdef BYTES_VNNI
    static const int OFFSET = 128;  // weights are taken as unsigned, this much more than they are
#else
    static const int OFFSET = 0;
#endif
    Q() {}
    Q(__m256i x) : v(x) {}
    static Q zero() { return _mm256_setzero_si256(); }
    static Q load(const int8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
    static Q load(const int8_t* p, int n) { return some(p, n); }
    static Q load(const weight8* p) { return shift(_mm256_loadu_si256((const __m256i*)p)); }
    static Q load(const weight8* p, int n) { return shift(some(p, n)); }
    void store(int32_t* p) const { _mm256_storeu_si256((__m256i*)p, v); }
    // c + w x, four products a sum.
    static Q fma(Q w, Q x, Q c) {
#ifdef BYTES_VNNI
        return _mm256_dpbusd_avx_epi32(c.v, w.v, x.v);
#else
        // 2 * 127 * 128 fits 16 bits
        __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w.v), _mm256_sign_epi8(x.v, w.v));
        return _mm256_add_epi32(c.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
    }
    // Fours of many outputs, as fma's weights; and the codes in the halves of their bytes.
    static Q weights(V fours) { return shift(_mm256_castps_si256(fours.v)); }
    static Q low_codes(V fours) { return _mm256_and_si256(_mm256_castps_si256(fours.v), _mm256_set1_epi8(15)); }
    static Q high_codes(V fours) { return low_codes(_mm256_castsi256_ps(_mm256_srli_epi16(_mm256_castps_si256(fours.v), 4))); }
    // One four everywhere.
    static Q all(const int8_t* four) {
        int32_t bits;
        std::memcpy(&bits, four, sizeof(bits));
        return _mm256_set1_epi32(bits);
    }
    // Sums of codes times x over a group of 32, from `start` on: 16 bits hold 32 products of 15 and 127 in pairs.
#ifdef BYTES_VNNI
    static Q begin(int32_t start) { return _mm256_set1_epi32(start); }
    static Q add_codes(Q codes, Q x, Q c) { return fma(codes, x, c); }
    static V end(Q c, int32_t) { return _mm256_cvtepi32_ps(c.v); }
#else
    static Q begin(int32_t) { return zero(); }
    static Q add_codes(Q codes, Q x, Q c) { return _mm256_add_epi16(c.v, _mm256_maddubs_epi16(codes.v, x.v)); }
    static V end(Q c, int32_t start) {
        __m256i sums = _mm256_madd_epi16(c.v, _mm256_set1_epi16(1));
        return _mm256_cvtepi32_ps(_mm256_add_epi32(sums, _mm256_set1_epi32(start)));
    }
#endif
    // As V's.
    static Q quad(Q a, Q b, Q c, Q d) { return pair<0x88, 0xDD>(pair<0x44, 0xEE>(a, b), pair<0x44, 0xEE>(c, d)); }
    static Q join(Q a, Q b, Q, Q) {
        return _mm256_add_epi32(_mm256_permute2x128_si256(a.v, b.v, 0x20), _mm256_permute2x128_si256(a.v, b.v, 0x31));
    }

  private:
    static __m256i some(const void* p, int n) {
        int8_t part[32] = {0};
        std::memcpy(part, p, n);
        return _mm256_loadu_si256((const __m256i*)part);
    }
    static Q shift(__m256i x) { return OFFSET ? _mm256_xor_si256(x, _mm256_set1_epi8(char(0x80))) : x; }
    template <int A, int B> static Q pair(Q a, Q b) {
        __m256 x = _mm256_castsi256_ps(a.v), y = _mm256_castsi256_ps(b.v);
        return _mm256_add_epi32(_mm256_castps_si256(_mm256_shuffle_ps(x, y, A)),
                                _mm256_castps_si256(_mm256_shuffle_ps(x, y, B)));
    }
};

// Blocks of N weights of 4 bits: N / 2 bytes against the even activations, then the odd ones. A group of 32 weights is
// in one half of each.
struct Nibbles {
    __m256i low, high;
    static const int N = 64, LANES = 8;
    static Nibbles load(const uint8_t* p) { return split(_mm256_loadu_si256((const __m256i*)p)); }
    static Nibbles load(const uint8_t* p, int bytes) {
        uint8_t part[32] = {0};
        std::memcpy(part, p, bytes);
        return load(part);
    }
    // Group sums of (code - 8) x: `start` holds those of -8 x, one a place, of the same four pairs.
    V dot(const int8_t* x, const int32_t* start) const {
        __m256i even = _mm256_loadu_si256((const __m256i*)x), odd = _mm256_loadu_si256((const __m256i*)(x + 32));
        __m256i sums = _mm256_loadu_si256((const __m256i*)start);
#ifdef BYTES_VNNI
        sums = _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(sums, low, even), high, odd);
#else
        __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, even), _mm256_maddubs_epi16(high, odd));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
        return _mm256_cvtepi32_ps(sums);
    }
    // float16 scales of the block's groups, each at the places of its group.
    static V scales(const uint16_t* p) {
        int32_t both;
        std::memcpy(&both, p, sizeof(both));
        __m256 each = _mm256_castps128_ps256(_mm_cvtph_ps(_mm_cvtsi32_si128(both)));
        return _mm256_permutevar8x32_ps(each, _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0));
    }

  private:
    static Nibbles split(__m256i x) {
        const __m256i mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(x, mask), _mm256_and_si256(_mm256_srli_epi16(x, 4), mask)};
    }
};
