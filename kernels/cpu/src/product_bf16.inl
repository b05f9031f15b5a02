// The matrix product of few rows with bfloat16 weights, for processors that multiply bfloat16: rows rounded to it, sums
// in float. Takes the place of the template in product.inl.

// Numbers of x that are narrowed at a time, on the stack.
static const i64 NARROWED = 32768;

static void narrow_rows(const float* x, i64 ldx, i64 M, i64 I, bf16* to, i64 ldto) {
    for (i64 m = 0; m < M; m++) {
        i64 i = 0;
        for (; i + P::N <= I; i += P::N) narrow_pairs(x + m * ldx + i, to + m * ldto + i);
        for (; i < I; i++) to[m * ldto + i] = to_bf16(x[m * ldx + i]);
    }
}

static void product_pairs(const float* x, i64 ldx, i64 M, const bf16* w, i64 O, i64 I, float* y, i64 ldy) {
    if (I > NARROWED || !I) return product_of<V>(x, ldx, M, w, O, I, y, ldy);
    alignas(64) bf16 rows[NARROWED];
    i64 most = NARROWED / I;
    for (i64 m = 0; m < M; m += most) {
        i64 n = least(most, M - m);
        narrow_rows(x + m * ldx, ldx, n, I, rows, I);
        product_of<P>(rows, I, n, w, O, I, y + m * ldy, ldy);
    }
}

#ifdef TILES
#include "product_tiles.inl"
#endif

static void product(const float* x, i64 ldx, i64 M, const bf16* w, i64 O, i64 I, float* y, i64 ldy) {
#ifdef TILES
    i64 whole = M < TILED_FROM || !I ? 0 : O / TILE * TILE;
    if (whole) product_amx<Pairs>(x, ldx, M, w, whole, I, y, ldy);
    if (whole == O) return;
    w += whole * I, y += whole, O -= whole;
#endif
    product_pairs(x, ldx, M, w, O, I, y, ldy);
}
