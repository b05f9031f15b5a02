// Products of rounded rows by panels: which rows go that way, and outputs of any type from their sums.

// Whether so many rows go through panels.
static bool by_panels(const Weights& w, i64 M) {
#ifdef TILES
    return M >= PANELS_FROM;
#else
    return M >= PANELS_FROM && w.type != E4M3;
#endif
}

// The same in a decoding step, where a sequence's numbers may depend on how many there are only at level amx.
static bool by_panels_in_step(const Weights& w, i64 n) {
#ifdef TILES
    return is_rounded(w) && by_panels(w, n);
#else
    return w.type == INT8 && by_panels(w, n);
#endif
}

// Bytes that two panels take; rows that products may read behind the last.
static i64 panel_bytes(i64 I) { return 2 * 16 * (2 * round_up(I, 64) + 4 * (I / 32)); }
static const i64 SPARE_ROWS = 31;

static void pack(const Weights& w, i64 output, i64 I, i64 rows, char* to) {
    const char* data = (const char*)w.data + output * weight_row_bytes(w.type, I);
    const uint16_t* scales = (const uint16_t*)w.scale + (w.type == INT4 ? output * (I / 32) : 0);
#ifdef TILES
    pack_panels(w, data, scales, I, rows, to);
#else
#ifdef MORE_VNNI
    if (use_vnni) return more::pack_panels(w, data, scales, I, rows, to);
#endif
    plain::pack_panels(w, data, scales, I, rows, to);
#endif
}
static void panel_sums(const char* x, i64 stride, i64 M, i64 type, const char* packed, i64 I, float* sums) {
#ifdef TILES
    product_panels(x, stride, M, type, packed, I, sums);
#else
#ifdef MORE_VNNI
    if (use_vnni) return more::product_panels(x, stride, M, type, packed, I, sums);
#endif
    plain::product_panels(x, stride, M, type, packed, I, sums);
#endif
}

// Where outputs go: (rows, ld) of F32 or BF16.
struct Outputs {
    void* data;
    int type;
    i64 ld;
    Outputs from(i64 row, i64 column) const {
        const i64 at = row * ld + column;
        return {type == F32 ? (void*)((float*)data + at) : (void*)((bf16*)data + at), type, ld};
    }
};

// y (M, n) = sums (M, ACROSS) of outputs `first` on, times the scales of rows and weights.
static void scale_sums(const char* rows, i64 stride, i64 M, const Weights& w, i64 first, i64 n, const float* sums,
                       const Outputs& y) {
#ifdef TILES
    const int32_t offset = 0;
#else
    const int32_t offset = int8_offset();
#endif
    const float* scales = (const float*)w.scale + (w.type == INT8 ? first : 0);
    for (i64 m = 0; m < M; m++, sums += ACROSS) {
        RoundedHead head;
        std::memcpy(&head, rows + m * stride, sizeof(head));
        const V factor(w.type == E4M3 ? head.scale * scales[first / w.O] : head.scale);
        const Outputs row = y.from(m, 0);
        over(n, [&](auto lanes, i64 i) {
            const V scaled = w.type == INT8 ? V::of_integers(sums + i, offset * head.sum) * (factor * lanes.load(scales + i))
                                            : V::load(sums + i) * factor;
            if (y.type == F32) lanes.store(scaled, (float*)row.data + i);
            else lanes.store(scaled, (bf16*)row.data + i);
        });
    }
}

// As product_rounded, of rows laid out for panels; room: panel_bytes(I).
static void product_by_panels(const char* rows, i64 stride, i64 M, const Weights& w, i64 first, i64 count, i64 I,
                              const Outputs& y, char* room) {
    alignas(64) float sums[PANEL_ROWS * ACROSS];
    for (i64 o = 0; o < count; o += ACROSS) {
        const i64 n = least<i64>(ACROSS, count - o);
        pack(w, first + o, I, n, room);
        for (i64 m = 0; m < M; m += PANEL_ROWS) {
            const char* from = rows + m * stride;
            const i64 some = least(PANEL_ROWS, M - m);
            panel_sums(from + ROUNDED_HEAD, stride, some, w.type, room, I, sums);
            scale_sums(from, stride, some, w, first + o, n, sums, y.from(m, o));
        }
    }
}
