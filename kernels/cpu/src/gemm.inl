// Products of blocks that lie in the first and second level caches, one thread: accumulators in registers, the left
// factor broadcast, the right one read as vectors.
// A panel is a matrix PANEL_WIDTH columns wide with its rows one after another; wider matrices are several panels.

static const int PANEL_WIDTH = 2 * V::N;
static const int UNIT = V::N / 4;  // rows come in multiples of it, at most 3 at a time: 24 of 32 or 12 of 16 registers

template <int R> struct Count {
    static const int value = R;
};

// Odd multiples of 16 floats spread a column over all sets of the first level cache.
static inline i64 leading(i64 n) { return round_up(n, 32) + 16; }

// An R x PANEL_WIDTH piece of a product.
template <int R> struct Block {
    V at[R][2];

    inline void clear() {
        for (int r = 0; r < R; r++) at[r][0] = at[r][1] = V::zero();
    }
    inline void load(const float* from, i64 ld) {
        for (int r = 0; r < R; r++) at[r][0] = V::load(from + r * ld), at[r][1] = V::load(from + r * ld + V::N);
    }
    inline void store(float* to, i64 ld) const {
        for (int r = 0; r < R; r++) at[r][0].store(to + r * ld), at[r][1].store(to + r * ld + V::N);
    }
    inline void scale(V by) {
        for (int r = 0; r < R; r++) at[r][0] = at[r][0] * by, at[r][1] = at[r][1] * by;
    }
    inline void scale_rows(const float* by) {
        for (int r = 0; r < R; r++) at[r][0] = at[r][0] * V(by[r]), at[r][1] = at[r][1] * V(by[r]);
    }
    // += a b with the left factor as pack_tiles lays it.
    inline void add_packed(const float* a, const float* b, i64 b_step, i64 K) { add<1>(a, R, b, b_step, K); }
    // += a b over an inner width K: element (r, k) of the left factor at a[r * ROW + k * a_step], row k of the right one at
    // b + k * b_step.
    template <int ROW> inline void add(const float* a, i64 a_step, const float* b, i64 b_step, i64 K) {
        for (i64 k = 0; k < K; k++, a += a_step, b += b_step) {
            V left = V::load(b), right = V::load(b + V::N);
            for (int r = 0; r < R; r++) {
                V x(a[r * ROW]);
                at[r][0] = V::fma(x, left, at[r][0]);
                at[r][1] = V::fma(x, right, at[r][1]);
            }
        }
    }
    // The same where row r has no elements before k = r.
    template <int ROW, int FIRST = 0> inline void add_lower(const float* a, i64 a_step, const float* b, i64 b_step, i64 K) {
        if constexpr (FIRST < R) {
            if (FIRST >= K) return;
            V left = V::load(b), right = V::load(b + V::N);
            for (int r = FIRST; r < R; r++) {
                V x(a[r * ROW]);
                at[r][0] = V::fma(x, left, at[r][0]);
                at[r][1] = V::fma(x, right, at[r][1]);
            }
            add_lower<ROW, FIRST + 1>(a + a_step, a_step, b + b_step, b_step, K);
        }
    }
};

// f(Count<R>, first row) for tiles that cover n rows, the last tile up to UNIT - 1 rows too many.
template <class F> static inline void in_tiles(i64 n, F f) {
    i64 row = 0;
    while (row < n) {
        i64 left = n - row;
        if (left > 4 * UNIT || (left > 2 * UNIT && left <= 3 * UNIT)) {
            f(Count<3 * UNIT>(), row);
            row += 3 * UNIT;
        } else if (left > UNIT) {
            f(Count<2 * UNIT>(), row);
            row += 2 * UNIT;
        } else {
            f(Count<UNIT>(), row);
            row += UNIT;
        }
    }
}

// The left factor of a product with n rows, K columns in tiles as in_tiles cuts them: element (r, k) of the tile at row i
// at i * K + k * R + r. A tile that lies together leaves the first level cache to the right factor.
static void pack_tiles(const float* from_t, i64 ld, i64 n, i64 K, float* to) {
    in_tiles(n, [&](auto rows, i64 i) {
        const int R = decltype(rows)::value;
        for (i64 k = 0; k < K; k++)
            for (int r = 0; r < R; r++) to[i * K + k * R + r] = from_t[k * ld + i + r];
    });
}

// to[c][r] = from[r][c] for r < rows and c < columns, and 0 for rows <= r < width.
template <class From, class To>
static void transpose(const From* from, i64 ld, i64 rows, i64 columns, To* to, i64 to_ld, i64 width) {
    for (i64 r = 0; r < width; r += V::N)
        for (i64 c = 0; c < columns; c += V::N) {
            int high = int(least<i64>(V::N, columns - c)), wide = int(least<i64>(V::N, width - r));
            V block[V::N];
            for (int i = 0; i < V::N; i++) {
                const From* row = from + (r + i) * ld + c;
                block[i] = r + i >= rows ? V::zero() : high == V::N ? V::load(row) : V::load(row, high);
            }
            V::transpose(block);
            To* out = to + c * to_ld + r;
            if (high == V::N && wide == V::N)
                for (int i = 0; i < V::N; i++) block[i].store(out + i * to_ld);
            else
                for (int i = 0; i < high; i++) block[i].store(out + i * to_ld, wide);
        }
}

// Asks for rows that will be read soon, into the second level cache.
template <class T> static inline void fetch_rows(const T* from, i64 ld, i64 rows, i64 columns) {
    for (i64 r = 0; r < rows; r++)
        for (i64 c = 0; c < columns; c += 64 / i64(sizeof(T))) __builtin_prefetch(from + r * ld + c, 0, 2);
}

// Rows as panels of PANEL_WIDTH columns, `panel` floats from one to the next; zeros beyond the last column.
template <class T>
static void to_panels(const T* from, i64 ld, i64 rows, i64 columns, float* to, i64 panel) {
    for (i64 c = 0; c < columns; c += PANEL_WIDTH, to += panel)
        for (i64 r = 0; r < rows; r++)
            for (i64 i = 0; i < PANEL_WIDTH; i += V::N) {
                i64 left = columns - c - i;
                const T* row = from + r * ld + c + i;
                V x = left >= V::N ? V::load(row) : left > 0 ? V::load(row, int(left)) : V::zero();
                x.store(to + r * PANEL_WIDTH + i);
            }
}

// Rows of panels times a factor each.
static void scale_panels(const float* from, const float* by, i64 rows, i64 panels, float* to, i64 panel) {
    for (i64 p = 0; p < panels; p++)
        for (i64 r = 0; r < rows; r++) {
            const float* row = from + p * panel + r * PANEL_WIDTH;
            float* out = to + p * panel + r * PANEL_WIDTH;
            V factor(by[r]);
            (V::load(row) * factor).store(out);
            (V::load(row + V::N) * factor).store(out + V::N);
        }
}
