// The matrix product of few rows, on one thread. Letters: M rows, I inner width, O outputs.

// y[m][o] = x[m] . w[o] for R outputs and C rows of x at a time, all in registers.
template <int R, int C, class W>
static inline void product_tile(const float* x, i64 ldx, const W* w, i64 ldw, i64 I, float* y, i64 ldy) {
    V acc[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) acc[r][c] = V::zero();
    i64 i = 0;
    for (; i + V::N <= I; i += V::N) {
        V a[R];
        for (int r = 0; r < R; r++) a[r] = V::load(w + r * ldw + i);
        for (int c = 0; c < C; c++) {
            V b = V::load(x + c * ldx + i);
            for (int r = 0; r < R; r++) acc[r][c] = V::fma(a[r], b, acc[r][c]);
        }
    }
    if (i < I) {
        int n = int(I - i);
        for (int r = 0; r < R; r++) {
            V a = V::load(w + r * ldw + i, n);
            for (int c = 0; c < C; c++) acc[r][c] = V::fma(a, V::load(x + c * ldx + i, n), acc[r][c]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) y[c * ldy + r] = acc[r][c].sum();
}

template <int R, class W>
static void product_rows(const float* x, i64 ldx, i64 M, const W* w, i64 ldw, i64 I, float* y, i64 ldy) {
    i64 m = 0;
    for (; m + COLS <= M; m += COLS) product_tile<R, COLS>(x + m * ldx, ldx, w, ldw, I, y + m * ldy, ldy);
    const float* rest = x + m * ldx;
    float* out = y + m * ldy;
    switch (M - m) {
        case 5: product_tile<R, 5>(rest, ldx, w, ldw, I, out, ldy); break;
        case 4: product_tile<R, 4>(rest, ldx, w, ldw, I, out, ldy); break;
        case 3: product_tile<R, 3>(rest, ldx, w, ldw, I, out, ldy); break;
        case 2: product_tile<R, 2>(rest, ldx, w, ldw, I, out, ldy); break;
        case 1: product_tile<R, 1>(rest, ldx, w, ldw, I, out, ldy); break;
    }
}

// y (M, O) = x (M, I) w^T, w (O, I); one thread.
template <class W>
static void product(const float* x, i64 ldx, i64 M, const W* w, i64 O, i64 I, float* y, i64 ldy) {
    i64 o = 0;
    if (M == 1)
        for (; o + 8 <= O; o += 8) product_tile<8, 1>(x, ldx, w + o * I, I, I, y + o, ldy);
    for (; o + ROWS <= O; o += ROWS) product_rows<ROWS>(x, ldx, M, w + o * I, I, I, y + o, ldy);
    for (; o < O; o++) product_rows<1>(x, ldx, M, w + o * I, I, I, y + o, ldy);
}
