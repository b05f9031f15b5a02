// Panels: outputs side by side, the same few numbers of all of them together, so that products need no sum across a
// vector. Laid out anew for each use, which many rows repay; weights stay as folders have them.

// Rows for which a panel pays, and how many are multiplied before their sums are scaled.
static const i64 PANELS_FROM = 16, PANEL_ROWS = 64;

// V::N rows of so many times four bytes -> take(k, the k-th four bytes of all rows); missing rows are zeros.
template <class F> static inline void each_word(const void* w, i64 row_bytes, i64 rows, i64 words, F take) {
    for (i64 i = 0; i < words; i += V::N) {
        const i64 n = least<i64>(V::N, words - i);
        V block[V::N];
        for (i64 r = 0; r < V::N; r++) {
            const float* from = (const float*)((const char*)w + r * row_bytes) + i;
            block[r] = r >= rows ? V::zero() : n == V::N ? V::load(from) : V::load(from, int(n));
        }
        V::transpose(block);
        for (i64 k = 0; k < n; k++) take(i + k, block[k]);
    }
}

// Scales (rows, groups) float16 -> (groups, across) float, zero beyond the rows.
static void pack_scales(const uint16_t* scales, i64 groups, i64 rows, i64 across, float* to) {
    for (i64 o = 0; o < across; o += V::N)
        for (i64 g = 0; g < groups; g += V::N) {
            const i64 n = least<i64>(V::N, groups - g);
            V block[V::N];
            for (i64 r = 0; r < V::N; r++) {
                uint16_t some[V::N] = {0};
                if (o + r < rows) std::memcpy(some, scales + (o + r) * groups + g, n * sizeof(*some));
                block[r] = V::halves(some);
            }
            V::transpose(block);
            for (i64 k = 0; k < n; k++) block[k].store(to + (g + k) * across + o);
        }
}
