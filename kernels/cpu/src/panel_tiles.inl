// Products of many rows that round_row (rounded.inl) laid out for panels, one thread, through tiles: rows lie in a tile
// as they are, outputs across as a panel has them, and so come sums. Products read up to 31 rows behind the last.

static const int ACROSS = 2 * TILE;  // outputs of two panels, one behind the other
static const i64 SHARING = 32;         // numbers that share a scale: half a row of a tile

static void take_rows(const e4m3* w, i64 I, i64 rows, i64 n, bf16* to) {
    for (i64 r = 0; r < rows; r++) P::load(w + r * I, int(n)).store((float*)(to + r * Pairs::N));
}

// TILE outputs, at most `rows` of them there: a tile for each D::N numbers.
template <class D, class W> static void pack_outputs(const W* w, i64 I, i64 rows, typename D::X* to) {
    for (i64 i = 0; i < I; i += D::N, to += TILE * D::N) {
        const i64 n = least(D::N, I - i);
        if constexpr (sizeof(W) == sizeof(typename D::X)) {
            if (rows == TILE && n == D::N) {
                transpose_16((const float*)(w + i), (float*)to, I * i64(sizeof(W)));
                continue;
            }
        }
        alignas(64) typename D::X part[TILE * D::N] = {0};
        take_rows(w + i, I, rows, n, part);
        transpose_16((const float*)part, (float*)to);
    }
}

// Half a tile for each group: its even numbers, then its odd ones.
static void pack_groups(const uint8_t* w, i64 I, i64 rows, int8_t* to) {
    const i64 BYTES = 64, HALF = TILE * SHARING;
    for (i64 i = 0; i < I / 2; i += BYTES) {
        const i64 n = least(BYTES, I / 2 - i);
        alignas(64) uint8_t part[TILE * BYTES], codes[TILE * BYTES];
        if (rows == TILE && n == BYTES) {
            transpose_16((const float*)(w + i), (float*)codes, I / 2);
        } else {
            std::memset(part, 0, sizeof(part));
            for (i64 r = 0; r < rows; r++) std::memcpy(part + r * BYTES, w + r * (I / 2) + i, n);
            transpose_16((const float*)part, (float*)codes);
        }
        for (i64 g = 0; g < n / 16; g++, to += HALF)
            for (i64 k = 0; k < HALF / 2; k++) {
                const int code = codes[g * HALF / 2 + k];
                to[k] = int8_t((code & 15) - 8), to[HALF / 2 + k] = int8_t((code >> 4) - 8);
            }
    }
}

// sums (16 R, ACROSS) of rows x with two panels.
template <class D, int R>
static void block_of(const typename D::X* x, i64 ldx, const typename D::X* panel, i64 size, i64 I, typename D::Sum* sums) {
    tile_zero<0>(), tile_zero<1>();
    if (R > 1) tile_zero<2>(), tile_zero<3>();
    for (i64 i = 0; i < I; i += D::N) {
        tile_load<4>(x + i, ldx);
        tile_load<6>(panel + i * TILE, D::N);
        D::template dot<0, 4, 6>();
        tile_load<7>(panel + size + i * TILE, D::N);
        D::template dot<1, 4, 7>();
        if (R > 1) {
            tile_load<5>(x + TILE * ldx + i, ldx);
            D::template dot<2, 5, 6>();
            D::template dot<3, 5, 7>();
        }
    }
    tile_store<0>(sums, ACROSS), tile_store<1>(sums + TILE, ACROSS);
    if (R > 1) tile_store<2>(sums + TILE * ACROSS, ACROSS), tile_store<3>(sums + TILE * ACROSS + TILE, ACROSS);
}

// to += 16 x 16 integers times the scale of each column.
static inline void add_scaled(const int32_t* sums, const float* scales, V (&to)[TILE][TILE / V::N]) {
#pragma GCC unroll 2
    for (int c = 0; c < TILE / V::N; c++) {
        const V scale = V::load(scales + c * V::N);
#pragma GCC unroll 16
        for (int r = 0; r < TILE; r++) to[r][c] = V::fma(V::of_integers(sums + r * TILE + c * V::N, 0), scale, to[r][c]);
    }
}

// y (16, TILE of ACROSS): sums over groups of scale x group sum.
static void groups_of(const int8_t* x, i64 ldx, const int8_t* panel, const float* scales, i64 I, float* y) {
    alignas(64) int32_t sums[2][TILE * TILE];
    V total[TILE][TILE / V::N];
    for (auto& row : total)
        for (V& part : row) part = V::zero();
    i64 i = 0;
    for (; i + 2 * SHARING <= I; i += 2 * SHARING, scales += 2 * ACROSS) {
        tile_zero<0>(), tile_zero<1>();
        tile_load<4>(x + i, ldx);
        tile_load<6>(panel + i * TILE, 64);
        Fours::dot<0, 4, 6>();
        tile_store<0>(sums[0]);
        tile_load<5>(x + i + SHARING, ldx);
        tile_load<7>(panel + (i + SHARING) * TILE, 64);
        Fours::dot<1, 5, 7>();
        tile_store<1>(sums[1]);
        add_scaled(sums[0], scales, total);
        add_scaled(sums[1], scales + ACROSS, total);
    }
    if (i < I) {
        tile_zero<0>();
        tile_load<4>(x + i, ldx);
        tile_load<6>(panel + i * TILE, 64);
        Fours::dot<0, 4, 6>();
        tile_store<0>(sums[0]);
        add_scaled(sums[0], scales, total);
    }
    for (int r = 0; r < TILE; r++)
        for (int c = 0; c < TILE / V::N; c++) total[r][c].store(y + r * ACROSS + c * V::N);
}

template <class D, class X> static i64 panel_size(i64 I) { return round_up(I, D::N) * TILE * i64(sizeof(X)); }

// Of `rows` outputs, at most ACROSS: two panels, and of int4 their scales behind them.
static void pack_panels(const Weights& w, const char* data, const uint16_t* scales, i64 I, i64 rows, char* to) {
    const i64 size = w.type == E4M3 ? panel_size<Pairs, bf16>(I) : panel_size<Fours, int8_t>(I);
    const i64 bytes = weight_row_bytes(w.type, I);
    for (i64 o = 0; o < ACROSS; o += TILE, data += TILE * bytes, to += size) {
        const i64 n = least<i64>(TILE, most_of<i64>(rows - o, 0));
        if (w.type == INT8) pack_outputs<Fours>((const int8_t*)data, I, n, (int8_t*)to);
        else if (w.type == E4M3) pack_outputs<Pairs>((const e4m3*)data, I, n, (bf16*)to);
        else pack_groups((const uint8_t*)data, I, n, (int8_t*)to);
    }
    if (w.type == INT4) pack_scales(scales, I / SHARING, rows, ACROSS, (float*)to);
}

template <class D> static void blocks_of(const char* x, i64 stride, i64 M, const char* packed, i64 I, void* sums) {
    typedef typename D::X X;
    const i64 size = round_up(I, D::N) * TILE, ldx = stride / i64(sizeof(X));
    for (i64 m = 0; m < M; m += ACROSS) {
        const X *from = (const X*)(x + m * stride), *panel = (const X*)packed;
        typename D::Sum* to = (typename D::Sum*)sums + m * ACROSS;
        if (M - m > TILE) block_of<D, 2>(from, ldx, panel, size, I, to);
        else block_of<D, 1>(from, ldx, panel, size, I, to);
    }
}

// sums (M, ACROSS), up to 31 rows more: int32 of int8, else float.
static void product_panels(const char* x, i64 stride, i64 M, i64 type, const char* packed, i64 I, void* sums) {
    if (type == INT4) tiles_on(SHARING);
    else tiles_on();
    if (type == INT8) blocks_of<Fours>(x, stride, M, packed, I, sums);
    else if (type == E4M3) blocks_of<Pairs>(x, stride, M, packed, I, sums);
    const i64 size = panel_size<Fours, int8_t>(I);
    const float* scales = (const float*)(packed + 2 * size);
    for (i64 o = 0; type == INT4 && o < ACROSS; o += TILE)
        for (i64 m = 0; m < M; m += TILE)
            groups_of((const int8_t*)(x + m * stride), stride, (const int8_t*)packed + (o ? size : 0), scales + o, I,
                      (float*)sums + m * ACROSS + o);
    tiles_off();
}
