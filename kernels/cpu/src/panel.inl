// Products of many rows that round_row (rounded.inl) laid out for panels, one thread, with vectors: a panel holds fours
// of the numbers of V::N outputs side by side, so that no sum goes across a vector. Included once or twice a unit,
// beside Q, each time in a namespace of its own.

static const int ACROSS = 2 * V::N;  // outputs of two panels, one behind the other
static const int ROWS_INT8 = V::N == 16 ? 8 : 4, ROWS_INT4 = V::N == 16 ? 6 : 2;  // whose sums fit the registers

static void pack_int8(const int8_t* w, i64 I, i64 rows, int8_t* to) {
    each_word(w, I, rows, I / 4, [&](i64 k, V word) { Q::weights(word).store((int32_t*)(to + k * 4 * V::N)); });
    if (I % 4 == 0) return;
    int8_t* end = to + I / 4 * 4 * V::N;
    std::memset(end, 0, 4 * V::N);
    for (i64 r = 0; r < rows; r++)
        for (i64 i = I / 4 * 4; i < I; i++) end[4 * r + i % 4] = int8_t(w[r * I + i] + Q::OFFSET);
}

// A group's eight fours: of its even numbers, then of its odd ones, as their codes.
static void pack_int4(const uint8_t* w, i64 I, i64 rows, int8_t* to) {
    each_word(w, I / 2, rows, I / 8, [&](i64 k, V word) {
        int32_t* at = (int32_t*)(to + (k / 4 * 8 + k % 4) * 4 * V::N);
        Q::low_codes(word).store(at), Q::high_codes(word).store(at + 4 * V::N);
    });
}

// sums (R, ACROSS) of rows x with two panels.
template <int R> static void rows_int8(const int8_t* x, i64 ldx, const int8_t* panel, i64 size, i64 I, int32_t* sums) {
    Q acc[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = Q::zero();
    for (i64 i = 0; i < I; i += 4) {
        const Q a = Q::load(panel + i * V::N), b = Q::load(panel + size + i * V::N);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Q four = Q::all(x + r * ldx + i);
            acc[r][0] = Q::fma(a, four, acc[r][0]);
            acc[r][1] = Q::fma(b, four, acc[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) acc[r][0].store(sums + r * ACROSS), acc[r][1].store(sums + r * ACROSS + V::N);
}
template <int R>
static void some_int8(i64 rows, const int8_t* x, i64 ldx, const int8_t* panel, i64 size, i64 I, int32_t* sums) {
    if (rows == R) return rows_int8<R>(x, ldx, panel, size, I, sums);
    if constexpr (R > 1) some_int8<R - 1>(rows, x, ldx, panel, size, I, sums);
}

// y (R, ACROSS): sums over groups of scale x group sum. Behind a row's I numbers lie -8 times its groups' sums.
template <int R>
static void rows_int4(const int8_t* x, i64 ldx, const int8_t* panel, i64 size, const float* scales, i64 I, float* y) {
    V total[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) total[r][0] = total[r][1] = V::zero();
    for (i64 i = 0; i < I; i += 32, scales += ACROSS) {
        Q acc[R][2];
        int32_t start[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            std::memcpy(start + r, x + r * ldx + I + i / 8, 4);
            acc[r][0] = acc[r][1] = Q::begin(start[r]);
        }
#pragma GCC unroll 8
        for (int k = 0; k < 32; k += 4) {
            const Q a = Q::load(panel + (i + k) * V::N), b = Q::load(panel + size + (i + k) * V::N);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const Q four = Q::all(x + r * ldx + i + k);
                acc[r][0] = Q::add_codes(a, four, acc[r][0]);
                acc[r][1] = Q::add_codes(b, four, acc[r][1]);
            }
        }
        const V first = V::load(scales), second = V::load(scales + V::N);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            total[r][0] = V::fma(Q::end(acc[r][0], start[r]), first, total[r][0]);
            total[r][1] = V::fma(Q::end(acc[r][1], start[r]), second, total[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) total[r][0].store(y + r * ACROSS), total[r][1].store(y + r * ACROSS + V::N);
}
template <int R>
static void some_int4(i64 rows, const int8_t* x, i64 ldx, const int8_t* panel, i64 size, const float* scales, i64 I,
                      float* y) {
    if (rows == R) return rows_int4<R>(x, ldx, panel, size, scales, I, y);
    if constexpr (R > 1) some_int4<R - 1>(rows, x, ldx, panel, size, scales, I, y);
}

// Of `rows` outputs, at most ACROSS: two panels, and of int4 their scales behind them.
static void pack_panels(const Weights& w, const char* data, const uint16_t* scales, i64 I, i64 rows, char* to) {
    const i64 size = round_up(I, 4) * V::N, bytes = weight_row_bytes(w.type, I);
    for (i64 o = 0; o < ACROSS; o += V::N, data += V::N * bytes, to += size) {
        const i64 n = least<i64>(V::N, most_of<i64>(rows - o, 0));
        if (w.type == INT8) pack_int8((const int8_t*)data, I, n, (int8_t*)to);
        else pack_int4((const uint8_t*)data, I, n, (int8_t*)to);
    }
    if (w.type == INT4) pack_scales(scales, I / 32, rows, ACROSS, (float*)to);
}

// sums (M, ACROSS): int32 of int8, of int4 float.
static void product_panels(const char* x, i64 stride, i64 M, i64 type, const char* packed, i64 I, void* sums) {
    const i64 size = round_up(I, 4) * V::N, most = type == INT8 ? ROWS_INT8 : ROWS_INT4, tiles = (M + most - 1) / most;
    const int8_t *panel = (const int8_t*)packed, *rows = (const int8_t*)x;
    const float* scales = (const float*)(packed + 2 * size);
    for (i64 t = 0, m = 0; t < tiles; t++) {
        const i64 n = M / tiles + (t < M % tiles);
        const int8_t* from = rows + m * stride;
        if (type == INT8) some_int8<ROWS_INT8>(n, from, stride, panel, size, I, (int32_t*)sums + m * ACROSS);
        else some_int4<ROWS_INT4>(n, from, stride, panel, size, scales, I, (float*)sums + m * ACROSS);
        m += n;
    }
}
