// Tiles of 16 rows x 64 bytes: AMX-BF16, or the same in plain C++ to test what uses them. Tile numbers are constants.
#ifdef NANO3_EMULATE
struct Tile {
    float sums[16][16];
};
static thread_local Tile tiles[8];
static thread_local int inner_bytes = 0;
static inline void tiles_on(int bytes = 64) { inner_bytes = bytes; }
static inline void tiles_off() { inner_bytes = 0; }
template <int T> static inline void tile_zero() { tiles[T] = Tile{}; }
template <int T, class X> static inline void tile_load(const X* p, i64 row) {
    if (!inner_bytes) std::abort();
    const int rows = T < 6 ? 16 : inner_bytes / 4, bytes = T < 4 || T > 5 ? 64 : inner_bytes;
    tiles[T] = Tile{};
    for (int r = 0; r < rows; r++) std::memcpy(tiles[T].sums[r], p + r * row, bytes);
}
template <int T, class X> static inline void tile_store(X* p, i64 row = 16) {
    for (int r = 0; r < 16; r++) std::memcpy(p + r * row, tiles[T].sums[r], 64);
}
template <int C, int A, int B> static inline void tile_dot() {
    bf16 a[16][16][2], b[16][16][2];
    std::memcpy(a, tiles[A].sums, sizeof(a)), std::memcpy(b, tiles[B].sums, sizeof(b));
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++)
                for (int h = 0; h < 2; h++) tiles[C].sums[m][n] += to_float(a[m][k][h]) * to_float(b[k][n][h]);
}
template <int C, int A, int B> static inline void tile_dot_bytes() {
    int8_t a[16][16][4], b[16][16][4];
    int32_t sums[16][16];
    std::memcpy(a, tiles[A].sums, sizeof(a)), std::memcpy(b, tiles[B].sums, sizeof(b));
    std::memcpy(sums, tiles[C].sums, sizeof(sums));
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++)
                for (int h = 0; h < 4; h++) sums[m][n] += a[m][k][h] * b[k][n][h];
    std::memcpy(tiles[C].sums, sums, sizeof(sums));
}
static inline void transpose_16(const float* from, float* to, i64 row_bytes = 64) {
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 16; c++) std::memcpy(to + c * 16 + r, (const char*)from + r * row_bytes + c * 4, sizeof(float));
}
static inline int tiles_allowed() { return 1; }
#else
// Between tiles_on and tiles_off a thread may use the others. With fewer bytes than 64 tiles 4 and 5 hold so many of each of
// 16 rows, and 6 and 7 a row for each four of them.
static inline void tiles_on(int bytes = 64) {
    alignas(64) struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {};
    shape.palette = 1;
    for (int t = 0; t < 8; t++) shape.row_bytes[t] = 64, shape.rows[t] = 16;
    for (int t = 4; t < 6; t++) shape.row_bytes[t] = uint16_t(bytes), shape.rows[t + 2] = uint8_t(bytes / 4);
    asm volatile("ldtilecfg %0" ::"m"(shape));
}
static inline void tiles_off() { asm volatile("tilerelease"); }
// Assembler, since the compiler's own functions want digits where a template has numbers, and do not say that they read
// and write memory.
template <int T> static inline void tile_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
// 16 rows of 64 bytes, `row` numbers apart.
template <int T, class X> static inline void tile_load(const X* p, i64 row) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(row * i64(sizeof(X))), "i"(T) : "memory");
}
template <int T, class X> static inline void tile_store(X* p, i64 row = 16) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(row * i64(sizeof(X))), "i"(T) : "memory");
}
// C[m][n] += the sum over k of A[m][k] . B[k][n], pairs of numbers.
template <int C, int A, int B> static inline void tile_dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
// The same of fours of signed 8-bit integers.
template <int C, int A, int B> static inline void tile_dot_bytes() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// A 16 x 16 matrix of anything of four bytes.
static inline void transpose_16(const float* from, float* to, i64 row_bytes = 64) {
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) a[r] = _mm512_loadu_ps((const char*)from + r * row_bytes);
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2) {
        b[r] = _mm512_unpacklo_ps(a[r], a[r + 1]);
        b[r + 1] = _mm512_unpackhi_ps(a[r], a[r + 1]);
    }
    // a[4 g + k]: in quarter q, column 4 q + k of rows 4 g .. 4 g + 3.
#pragma GCC unroll 4
    for (int g = 0; g < 16; g += 4) {
        a[g] = _mm512_shuffle_ps(b[g], b[g + 2], 0x44);
        a[g + 1] = _mm512_shuffle_ps(b[g], b[g + 2], 0xEE);
        a[g + 2] = _mm512_shuffle_ps(b[g + 1], b[g + 3], 0x44);
        a[g + 3] = _mm512_shuffle_ps(b[g + 1], b[g + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m512 low = _mm512_shuffle_f32x4(a[k], a[4 + k], 0x44), high = _mm512_shuffle_f32x4(a[k], a[4 + k], 0xEE);
        __m512 low2 = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0x44);
        __m512 high2 = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0xEE);
        _mm512_storeu_ps(to + k * 16, _mm512_shuffle_f32x4(low, low2, 0x88));
        _mm512_storeu_ps(to + (4 + k) * 16, _mm512_shuffle_f32x4(low, low2, 0xDD));
        _mm512_storeu_ps(to + (8 + k) * 16, _mm512_shuffle_f32x4(high, high2, 0x88));
        _mm512_storeu_ps(to + (12 + k) * 16, _mm512_shuffle_f32x4(high, high2, 0xDD));
    }
}

// Asks Linux for the tiles, for all threads of the process.
static inline int tiles_allowed() {
    const int REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#endif
