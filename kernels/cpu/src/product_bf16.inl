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
// Inner numbers of one pass, 16 rows of them narrowed at a time.
static const i64 TILE = 16, TILE_PAIRS = 32, TILE_PASS = NARROWED / TILE;

// Tiles of 32 inner numbers, pairs of them down, rows of x across; zero beyond the M rows and the I numbers.
static void pack_rows(const float* x, i64 ldx, i64 M, i64 I, bf16* packed) {
    for (i64 i = 0; i < I; i += TILE_PAIRS) {
        alignas(64) bf16 rows[TILE * TILE_PAIRS] = {0};
        narrow_rows(x + i, ldx, M, least(TILE_PAIRS, I - i), rows, TILE_PAIRS);
        transpose_16((const float*)rows, (float*)(packed + i * TILE));
    }
}

// y (M, 16) = (add: plus) the tile T of 16 outputs x rows.
template <int T> static void store_tile(i64 M, float* y, i64 ldy, bool add) {
    alignas(64) float sums[TILE * TILE], rows[TILE * TILE];
    tile_store<T>(sums);
    transpose_16(sums, rows);
    for (i64 m = 0; m < M; m++) {
        if (add)
            for (i64 k = 0; k < TILE; k++) rows[m * TILE + k] += y[m * ldy + k];
        std::memcpy(y + m * ldy, rows + m * TILE, TILE * sizeof(float));
    }
}

// Tile T += 16 rows of w times the packed tile in number 4.
template <int T> static inline void tile_step(const bf16* w, i64 row) {
    tile_load<5 + T % 3>(w, row);
    tile_dot<T, 5 + T % 3, 4>();
}

// 16 G outputs of one pass.
template <int G>
static void product_tiles(
    const bf16* packed, i64 M, const bf16* w, i64 ldw, i64 I, float* y, i64 ldy, bool add) {
    const i64 NEXT = TILE * ldw;
    tile_zero<0>();
    if (G > 1) tile_zero<1>();
    if (G > 2) tile_zero<2>();
    if (G > 3) tile_zero<3>();
    i64 i = 0;
    for (; i + TILE_PAIRS <= I; i += TILE_PAIRS) {
        tile_load<4>(packed + i * TILE, TILE_PAIRS);
        tile_step<0>(w + i, ldw);
        if (G > 1) tile_step<1>(w + NEXT + i, ldw);
        if (G > 2) tile_step<2>(w + 2 * NEXT + i, ldw);
        if (G > 3) tile_step<3>(w + 3 * NEXT + i, ldw);
    }
    if (i < I) {
        alignas(64) bf16 end[G * TILE * TILE_PAIRS] = {0};
        for (i64 r = 0; r < G * TILE; r++) std::memcpy(end + r * TILE_PAIRS, w + r * ldw + i, (I - i) * sizeof(bf16));
        tile_load<4>(packed + i * TILE, TILE_PAIRS);
        tile_step<0>(end, TILE_PAIRS);
        if (G > 1) tile_step<1>(end + TILE * TILE_PAIRS, TILE_PAIRS);
        if (G > 2) tile_step<2>(end + 2 * TILE * TILE_PAIRS, TILE_PAIRS);
        if (G > 3) tile_step<3>(end + 3 * TILE * TILE_PAIRS, TILE_PAIRS);
    }
    store_tile<0>(M, y, ldy, add);
    if (G > 1) store_tile<1>(M, y + TILE, ldy, add);
    if (G > 2) store_tile<2>(M, y + 2 * TILE, ldy, add);
    if (G > 3) store_tile<3>(M, y + 3 * TILE, ldy, add);
}

// O is a multiple of 16.
static void product_amx(const float* x, i64 ldx, i64 M, const bf16* w, i64 O, i64 I, float* y, i64 ldy) {
    alignas(64) bf16 packed[NARROWED];
    tiles_on();
    for (i64 m = 0; m < M; m += TILE)
        for (i64 i = 0; i < I; i += TILE_PASS) {
            i64 rows = least(TILE, M - m), n = least(TILE_PASS, I - i), o = 0;
            float* out = y + m * ldy;
            pack_rows(x + m * ldx + i, ldx, rows, n, packed);
            for (; o + 4 * TILE <= O; o += 4 * TILE)
                product_tiles<4>(packed, rows, w + o * I + i, I, n, out + o, ldy, i > 0);
            for (; o < O; o += TILE) product_tiles<1>(packed, rows, w + o * I + i, I, n, out + o, ldy, i > 0);
        }
    tiles_off();
}

// Rows from which a tile, 16 wide, pays. A tile sums in another order than product_pairs.
static const i64 TILED_FROM = 4;
#endif

static void product(const float* x, i64 ldx, i64 M, const bf16* w, i64 O, i64 I, float* y, i64 ldy) {
#ifdef TILES
    i64 whole = M < TILED_FROM || !I ? 0 : O / TILE * TILE;
    if (whole) product_amx(x, ldx, M, w, whole, I, y, ldy);
    if (whole == O) return;
    w += whole * I, y += whole, O -= whole;
#endif
    product_pairs(x, ldx, M, w, O, I, y, ldy);
}
