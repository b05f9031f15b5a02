// The matrix product of few rows, on one thread. Letters: M rows, I inner width, O outputs.

// Inner numbers of one pass: a panel of widened weights and the rows against it stay in the first caches.
static const i64 PASS = 1024;

// Partial sums of quad Q: four outputs of one row (the last ones again where there are fewer). No loops: the indices of
// acc must be constants early, or the compiler would keep it in memory.
template <int Q, class A, int R, int C> static inline A quad_sums(const A (&acc)[R][C]) {
    const int q = Q < (R + 3) / 4 * C ? Q : (R + 3) / 4 * C - 1, r = q / C * 4, c = q % C, left = R - 1 - r;
    return A::quad(acc[r][c], acc[r + (left < 1 ? left : 1)][c], acc[r + (left < 2 ? left : 2)][c],
                   acc[r + (left < 3 ? left : 3)][c]);
}
// y[c][r] = (add: plus) the sum of acc[r][c], from quad FIRST on.
template <int FIRST, class A, int R, int C>
static inline void store_sums(const A (&acc)[R][C], typename A::Sum* y, i64 ldy, bool add) {
    const int ALL = (R + 3) / 4 * C, BATCH = A::SUMS / 4;
    typename A::Sum part[A::SUMS];
    // In brackets: only what is included beside it, not its twin for other instructions.
    A::join((quad_sums<FIRST>)(acc), (quad_sums<FIRST + 1>)(acc), (quad_sums<FIRST + 2>)(acc), (quad_sums<FIRST + 3>)(acc))
        .store(part);
    for (int j = 0; j < BATCH && FIRST + j < ALL; j++) {
        const int q = FIRST + j, r = q / C * 4, n = R - r < 4 ? R - r : 4;
        typename A::Sum* out = y + (q % C) * ldy + r;
        if (add)
            for (int k = 0; k < n; k++) part[4 * j + k] += out[k];
        std::memcpy(out, part + 4 * j, n * sizeof(*out));
    }
    if constexpr (FIRST + BATCH < ALL) (store_sums<FIRST + BATCH>)(acc, y, ldy, add);
}

// What a tile does with its weights: uses them once, keeps them widened in the panel, takes them from there. The panel
// holds vectors in the order of use.
enum Use { ONCE, KEEP, PANEL };

// y[c][r] = (add: plus) x[c] . w[r] over I inner numbers, for R outputs and C rows of x, all in registers. Weights come
// from far: reads the next R rows' ahead.
template <class A, int R, int C, Use USE, class X, class W>
static inline __attribute__((always_inline)) void product_tile(
    const X* x, i64 ldx, const W* w, i64 ldw, i64 I, typename A::Sum* y, i64 ldy, bool add, float* panel, const char* next) {
    const int LINE = 64, LINES = R * A::N * sizeof(W) / LINE, ACROSS = USE == PANEL ? R : 1;
    A acc[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
        for (int c = 0; c < C; c++) acc[r][c] = A::zero();
    i64 i = 0;
    for (; i + A::N <= I; i += A::N) {
        A b[C];
#pragma GCC unroll 16
        for (int c = 0; c < C; c++) b[c] = A::load(x + c * ldx + i);
        if (USE != PANEL) {
#pragma GCC unroll 16
            for (int l = 0; l < LINES; l++) V::prefetch(next + l * LINE);
            next += LINES * LINE;
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            A a = A::load(w + r * ldw + i * ACROSS);
            if constexpr (USE == KEEP) a.store(panel + r * A::N + i * R);
#pragma GCC unroll 16
            for (int c = 0; c < C; c++) acc[r][c] = A::fma(a, b[c], acc[r][c]);
        }
    }
    if (i < I) {
        int n = int(I - i);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            A a;
            if constexpr (USE == PANEL) a = A::load(w + r * ldw + i * ACROSS);
            else a = A::load(w + r * ldw + i, n);
            if constexpr (USE == KEEP) a.store(panel + r * A::N + i * R);
#pragma GCC unroll 16
            for (int c = 0; c < C; c++) acc[r][c] = A::fma(a, A::load(x + c * ldx + i, n), acc[r][c]);
        }
    }
    store_sums<0>(acc, y, ldy, add);
}

// A tile of `rows` rows, 1 to C of them.
template <class A, int R, Use USE, int C, class X, class W>
static inline void product_some(
    i64 rows, const X* x, i64 ldx, const W* w, i64 ldw, i64 I, typename A::Sum* y, i64 ldy, bool add, float* panel,
    const char* next) {
    if (rows == C) return product_tile<A, R, C, USE>(x, ldx, w, ldw, I, y, ldy, add, panel, next);
    if constexpr (C > 1) product_some<A, R, USE, C - 1>(rows, x, ldx, w, ldw, I, y, ldy, add, panel, next);
}

// All rows against R outputs over one pass: the fewest tiles of at most MOST rows, about equal.
template <class A, int R, int MOST, class X, class W>
static void product_rows(
    const X* x, i64 ldx, i64 M, const W* w, i64 ldw, i64 I, typename A::Sum* y, i64 ldy, bool add, const char* next) {
    alignas(64) float panel[R * PASS];
    i64 tiles = (M + MOST - 1) / MOST;
    if (MOST == 1 || tiles <= 1) return product_some<A, R, ONCE, MOST>(M, x, ldx, w, ldw, I, y, ldy, add, panel, next);
    for (i64 t = 0; t < tiles; t++) {
        i64 rows = M / tiles + (t < M % tiles);
        if constexpr (R > 1 && sizeof(W) < sizeof(X)) {
            if (t == 0) product_some<A, R, KEEP, MOST>(rows, x, ldx, w, ldw, I, y, ldy, add, panel, next);
            else product_some<A, R, PANEL, MOST>(rows, x, ldx, panel, A::N, I, y, ldy, add, panel, next);
        } else {
            product_some<A, R, ONCE, MOST>(rows, x, ldx, w, ldw, I, y, ldy, add, panel, next);
        }
        x += rows * ldx, y += rows * ldy;
    }
}

// R outputs at a time. The last ones may be computed twice, the same: R is at most O.
template <class A, int R, int MOST, class X, class W>
static void product_outputs(const X* x, i64 ldx, i64 M, const W* w, i64 O, i64 I, typename A::Sum* y, i64 ldy) {
    for (i64 o = 0; o < O; o += R) {
        o = least(o, O - R);
        i64 i = 0;
        do {
            const char* next = (const char*)(w + (o + R) * I + R * i);
            product_rows<A, R, MOST>(x + i, ldx, M, w + o * I + i, I, least(PASS, I - i), y + o, ldy, i > 0, next);
            i += PASS;
        } while (i < I);
    }
}

// One row against R outputs at a time, each from its first inner number to its last: weights from far come fastest in the
// order in which they lie. Sums as in product_tile.
template <class A, int R, class X, class W> static void product_row(const X* x, const W* w, i64 O, i64 I, typename A::Sum* y) {
    const int LINE = 64, VECTOR = A::N * sizeof(W), TOGETHER = VECTOR < LINE ? LINE / VECTOR : 1;
    const i64 ahead = I > PASS ? 2 * I : 4096 / i64(sizeof(W));
    for (i64 o = 0; o < O; o += R) {
        o = least(o, O - R);
        i64 start = 0;
        do {
            A acc[R][1];
            const i64 n = least(PASS, I - start);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const W* row = w + (o + r) * I + start;
                A total = A::zero();
                i64 i = 0;
#pragma GCC unroll 2
                for (; i + TOGETHER * A::N <= n; i += TOGETHER * A::N) {
                    for (int l = 0; l < TOGETHER * VECTOR; l += LINE) V::prefetch((const char*)(row + i + ahead) + l);
#pragma GCC unroll 4
                    for (int k = 0; k < TOGETHER; k++)
                        total = A::fma(A::load(row + i + k * A::N), A::load(x + start + i + k * A::N), total);
                }
                for (; i + A::N <= n; i += A::N) total = A::fma(A::load(row + i), A::load(x + start + i), total);
                if (i < n) total = A::fma(A::load(row + i, int(n - i)), A::load(x + start + i, int(n - i)), total);
                acc[r][0] = total;
            }
            store_sums<0>(acc, y + o, 0, start > 0);
            start += PASS;
        } while (start < I);
    }
}

template <class A, class X, class W>
static void product_of(const X* x, i64 ldx, i64 M, const W* w, i64 O, i64 I, typename A::Sum* y, i64 ldy) {
    if (M == 1 && O >= 8) product_row<A, 8>(x, w, O, I, y);
    else if (O >= 4) product_outputs<A, 4, COLS>(x, ldx, M, w, O, I, y, ldy);
    else product_outputs<A, 1, COLS>(x, ldx, M, w, O, I, y, ldy);
}

// y (M, O) = x (M, I) w^T, w (O, I); one thread. An output's sum has the same order whatever M and O are.
// (Not so where product_bf16.inl replaces it with tiles.)
template <class W>
static void product(const float* x, i64 ldx, i64 M, const W* w, i64 O, i64 I, float* y, i64 ldy) {
    product_of<V>(x, ldx, M, w, O, I, y, ldy);
}
