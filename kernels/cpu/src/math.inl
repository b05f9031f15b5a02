// Elementwise mathematics on vectors. Letters: M rows, I inner width, O outputs.

// Not the standard library's: a template that two units share could be linked from the one for the wrong processor.
template <class T> static inline T least(T a, T b) { return a < b ? a : b; }
template <class T> static inline T most_of(T a, T b) { return a > b ? a : b; }

template <class T> struct Buffer {
    T* data;
    i64 size;
    explicit Buffer(i64 n) : data((T*)std::malloc(sizeof(T) * (n ? n : 1))), size(n) {}
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
    bool ok() const { return data != nullptr; }
    T& operator[](i64 i) { return data[i]; }
    T* at(i64 i) { return data + i; }
};

// exp to about one unit in the last place of float: 2^n times a polynomial on [-ln2/2, ln2/2].
static inline V vexp(V x) {
    x = V::min(V(88.0f), V::max(V(-87.0f), x));  // nan is the second operand: it stays nan
    V n = V::round(x * V(1.44269504f));
    V r = V::fma(n, V(-0.693145752f), x);
    r = V::fma(n, V(-1.42860677e-6f), r);
    V p = V(1.98412698e-4f);
    p = V::fma(p, r, V(1.38888889e-3f));
    p = V::fma(p, r, V(8.33333333e-3f));
    p = V::fma(p, r, V(4.16666667e-2f));
    p = V::fma(p, r, V(1.66666667e-1f));
    p = V::fma(p, r, V(0.5f));
    p = V::fma(p, r, V(1.0f));
    p = V::fma(p, r, V(1.0f));
    return p * V::power_of_two(n);
}
static inline V vsilu(V x) { return x / (V(1.0f) + vexp(V::zero() - x)); }

static inline float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

template <class T> static void widen_row(const T* x, float* y, i64 n) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) V::load(x + i).store(y + i);
    if (i < n) V::load(x + i, int(n - i)).store(y + i, int(n - i));
}
template <class T> static void narrow_row(const float* x, T* y, i64 n) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) V::load(x + i).store(y + i);
    if (i < n) V::load(x + i, int(n - i)).store(y + i, int(n - i));
}

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
