// The matrix product through tiles of 16 outputs x 16 rows, one thread.

// What a tile's row of 64 bytes holds: numbers in pairs, or in fours.
struct Pairs {
    typedef bf16 X;
    typedef float Sum;
    static const i64 N = 32;
    template <int C, int A, int B> static void dot() { tile_dot<C, A, B>(); }
};
struct Fours {
    typedef int8_t X;
    typedef int32_t Sum;
    static const i64 N = 64;
    template <int C, int A, int B> static void dot() { tile_dot_bytes<C, A, B>(); }
};

// Inner numbers of one pass, 16 rows of which lie packed; of weights that are widened first fewer, so that they stay near.
static const i64 TILE = 16, TILE_PAIRS = Pairs::N, TILE_PASS = NARROWED / TILE, WIDENED_PASS = 512;

static void take_rows(const float* x, i64 ldx, i64 M, i64 n, bf16* to) { narrow_rows(x, ldx, M, n, to, Pairs::N); }
template <class X> static void take_rows(const X* x, i64 ldx, i64 M, i64 n, X* to) {
    for (i64 m = 0; m < M; m++) std::memcpy((char*)to + m * 64, x + m * ldx, n * sizeof(X));
}

// Tiles of D::N inner numbers, pairs or fours of them down, rows of x across; zero beyond the M rows and the I numbers.
template <class D, class X> static void pack_rows(const X* x, i64 ldx, i64 M, i64 I, typename D::X* packed) {
    for (i64 i = 0; i < I; i += D::N) {
        alignas(64) typename D::X rows[TILE * D::N] = {0};
        take_rows(x + i, ldx, M, least(D::N, I - i), rows);
        transpose_16((const float*)rows, (float*)(packed + i * TILE));
    }
}

// y (M, 16) = (add: plus) the tile T of 16 outputs x rows.
template <int T, class Sum> static void store_tile(i64 M, Sum* y, i64 ldy, bool add) {
    alignas(64) Sum sums[TILE * TILE], rows[TILE * TILE];
    tile_store<T>(sums);
    transpose_16((const float*)sums, (float*)rows);
    for (i64 m = 0; m < M; m++) {
        if (add)
            for (i64 k = 0; k < TILE; k++) rows[m * TILE + k] += y[m * ldy + k];
        std::memcpy(y + m * ldy, rows + m * TILE, TILE * sizeof(Sum));
    }
}

// Tile T += 16 rows of w times the packed tile in number 4.
template <class D, int T> static inline void tile_step(const typename D::X* w, i64 row) {
    tile_load<5 + T % 3>(w, row);
    D::template dot<T, 5 + T % 3, 4>();
}

// 16 G outputs of one pass.
template <class D, int G>
static void product_tiles(const typename D::X* packed, i64 M, const typename D::X* w, i64 ldw, i64 I, typename D::Sum* y,
                          i64 ldy, bool add) {
    typedef typename D::X X;
    const i64 NEXT = TILE * ldw, N = D::N;
    tile_zero<0>();
    if (G > 1) tile_zero<1>();
    if (G > 2) tile_zero<2>();
    if (G > 3) tile_zero<3>();
    i64 i = 0;
    for (; i + N <= I; i += N) {
        tile_load<4>(packed + i * TILE, N);
        tile_step<D, 0>(w + i, ldw);
        if (G > 1) tile_step<D, 1>(w + NEXT + i, ldw);
        if (G > 2) tile_step<D, 2>(w + 2 * NEXT + i, ldw);
        if (G > 3) tile_step<D, 3>(w + 3 * NEXT + i, ldw);
    }
    if (i < I) {
        alignas(64) X end[G * TILE * D::N] = {0};
        for (i64 r = 0; r < G * TILE; r++) std::memcpy(end + r * N, w + r * ldw + i, (I - i) * sizeof(X));
        tile_load<4>(packed + i * TILE, N);
        tile_step<D, 0>(end, N);
        if (G > 1) tile_step<D, 1>(end + TILE * N, N);
        if (G > 2) tile_step<D, 2>(end + 2 * TILE * N, N);
        if (G > 3) tile_step<D, 3>(end + 3 * TILE * N, N);
    }
    store_tile<0>(M, y, ldy, add);
    if (G > 1) store_tile<1>(M, y + TILE, ldy, add);
    if (G > 2) store_tile<2>(M, y + 2 * TILE, ldy, add);
    if (G > 3) store_tile<3>(M, y + 3 * TILE, ldy, add);
}

// 16 G rows of weights as tiles take them, n inner numbers: where they lie, or a widened copy.
template <class X> static const X* widened(const X* w, i64 ldw, i64, i64, X*, i64& ld) {
    ld = ldw;
    return w;
}
static const bf16* widened(const e4m3* w, i64 ldw, i64 rows, i64 n, bf16* room, i64& ld) {
    ld = round_up(n, P::N);
    for (i64 r = 0; r < rows; r++) {
        i64 i = 0;
        for (; i + P::N <= n; i += P::N) P::load(w + r * ldw + i).store((float*)(room + r * ld + i));
        if (i < n) P::load(w + r * ldw + i, int(n - i)).store((float*)(room + r * ld + i));
    }
    return room;
}

// O is a multiple of 16.
template <class D, class X, class W>
static void product_amx(const X* x, i64 ldx, i64 M, const W* w, i64 O, i64 I, typename D::Sum* y, i64 ldy) {
    const bool WIDENS = sizeof(W) < sizeof(typename D::X);
    const i64 PASSED = WIDENS ? WIDENED_PASS : TILE_PASS;
    alignas(64) typename D::X packed[NARROWED], room[WIDENS ? 4 * TILE * WIDENED_PASS : 1];
    tiles_on();
    for (i64 m = 0; m < M; m += TILE)
        for (i64 i = 0; i < I; i += PASSED) {
            i64 rows = least(TILE, M - m), n = least(PASSED, I - i), o = 0, ld;
            typename D::Sum* out = y + m * ldy;
            pack_rows<D>(x + m * ldx + i, ldx, rows, n, packed);
            for (; o + 4 * TILE <= O; o += 4 * TILE) {
                const typename D::X* wide = widened(w + o * I + i, I, 4 * TILE, n, room, ld);
                product_tiles<D, 4>(packed, rows, wide, ld, n, out + o, ldy, i > 0);
            }
            for (; o < O; o += TILE) {
                const typename D::X* wide = widened(w + o * I + i, I, TILE, n, room, ld);
                product_tiles<D, 1>(packed, rows, wide, ld, n, out + o, ldy, i > 0);
            }
        }
    tiles_off();
}

// Rows from which a tile, 16 wide, pays. A tile sums in another order than product_pairs.
static const i64 TILED_FROM = 4;
