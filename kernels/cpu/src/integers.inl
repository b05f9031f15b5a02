// Products of rows that round_row (rounded.inl) made with matrices of 8-bit and of 4-bit integers, one thread. Included
// once or twice a unit, beside Q, Nibbles and product.inl for the same instructions.

// sums (M, O) int32, exact.
static void product_int8(const int8_t* x, i64 ldx, i64 M, const int8_t* w, i64 O, i64 I, int32_t* sums, i64 ldy) {
    product_of<Q>(x, ldx, M, (const weight8*)w, O, I, sums, ldy);
}
static const i64 INT8_OFFSET = Q::OFFSET;

// y[c][r] = sum over groups of scale x group sum, for R outputs and C rows. x: blocks of N numbers and LANES starts.
template <int R, int C>
static inline __attribute__((always_inline)) void tile_int4(
    const char* x, i64 ldx, const uint8_t* w, const uint16_t* scales, i64 I, float* y, i64 ldy) {
    const int N = Nibbles::N, BLOCK_BYTES = N + 4 * Nibbles::LANES, GROUPS = N / 32;
    V acc[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
        for (int c = 0; c < C; c++) acc[r][c] = V::zero();
    const i64 row = I / 2, groups = I / 32;
    i64 i = 0;
    for (; i + N <= I; i += N, x += BLOCK_BYTES) {
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const uint8_t* at = w + r * row + i / 2;
            V::prefetch(at + R * row);
            Nibbles codes = Nibbles::load(at);
            V scale = Nibbles::scales(scales + r * groups + i / 32);
#pragma GCC unroll 16
            for (int c = 0; c < C; c++) {
                const char* rounded = x + c * ldx;
                acc[r][c] = V::fma(codes.dot((const int8_t*)rounded, (const int32_t*)(rounded + N)), scale, acc[r][c]);
            }
        }
    }
    if (i < I)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            uint16_t some[GROUPS] = {0};
            std::memcpy(some, scales + r * groups + i / 32, (I - i) / 16);
            Nibbles codes = Nibbles::load(w + r * row + i / 2, int(I - i) / 2);
            V scale = Nibbles::scales(some);
#pragma GCC unroll 16
            for (int c = 0; c < C; c++) {
                const char* rounded = x + c * ldx;
                acc[r][c] = V::fma(codes.dot((const int8_t*)rounded, (const int32_t*)(rounded + N)), scale, acc[r][c]);
            }
        }
    (store_sums<0>)(acc, y, ldy, false);
}
template <int R, int C>
static void tiles_int4(i64 rows, const char* x, i64 ldx, const uint8_t* w, const uint16_t* s, i64 I, float* y, i64 ldy) {
    if (rows == C) return tile_int4<R, C>(x, ldx, w, s, I, y, ldy);
    if constexpr (C > 1) tiles_int4<R, C - 1>(rows, x, ldx, w, s, I, y, ldy);
}
template <int R>
static void outputs_int4(
    const char* x, i64 ldx, i64 M, const uint8_t* w, const uint16_t* s, i64 O, i64 I, float* y, i64 ldy) {
    const i64 MOST = 4, tiles = (M + MOST - 1) / MOST;
    for (i64 o = 0; o < O; o += R) {
        o = least(o, O - R);
        i64 m = 0;
        for (i64 t = 0; t < tiles; t++) {
            i64 rows = M / tiles + (t < M % tiles);
            tiles_int4<R, MOST>(rows, x + m * ldx, ldx, w + o * (I / 2), s + o * (I / 32), I, y + m * ldy + o, ldy);
            m += rows;
        }
    }
}
static void product_int4(
    const char* x, i64 ldx, i64 M, const uint8_t* w, const uint16_t* s, i64 O, i64 I, float* y, i64 ldy) {
    if (O >= 4 && V::N == 16) outputs_int4<4>(x, ldx, M, w, s, O, I, y, ldy);
    else if (O >= 2) outputs_int4<2>(x, ldx, M, w, s, O, I, y, ldy);
    else outputs_int4<1>(x, ldx, M, w, s, O, I, y, ldy);
}
