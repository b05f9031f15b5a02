// Attention of many queries without their scores in memory (arXiv 2205.14135), forward.
// Letters: T queries and S keys a sequence, Dh head width, R query heads a key head. Queries are columns here, one for
// each position and each of the R heads, so that maxima and sums over keys run over vectors and the R heads share keys.
// A task takes some columns of one sequence and key head; scores exist for KEYS keys and a group of columns at a time.

static const int TILE_ROWS = V::N == 16 ? 8 : 4;  // with three vectors a row: accumulators that fit the registers
static const i64 GROUP = 3 * V::N;                // most columns whose scores exist at a time
static const i64 COLUMNS = 4 * GROUP;             // columns of a task
static const i64 KEYS = 64;
static const float LOWEST = -86.0f;  // floor of exponents of two: their products stay clear of subnormal numbers
static const float LOG2E = 1.44269504f;

// 2^x for x up to 127, to about two units in the last place.
static inline V vexp2(V x) {
    x = V::max(V(LOWEST), x);  // nan stays nan
    V n = V::round(x), r = x - n;
    V p = V::fma(V(1.33952916e-3f), r, V(9.61844949e-3f));
    p = V::fma(p, r, V(5.55032731e-2f));
    p = V::fma(p, r, V(2.40226462e-1f));
    p = V::fma(p, r, V(6.93147182e-1f));
    p = V::fma(p, r, V(1.0f));
    return p * V::power_of_two(n);
}

// The same, but exactly 0 for the smallest: a key that is not seen must not count, whatever its value.
static inline V vexp2_to_zero(V x) { return vexp2(x) - V::power_of_two(V(LOWEST)); }


// Where a buffer that has LINE numbers to spare reaches a cache line's start: vectors across two lines load slowly.
static const i64 LINE = 64 / sizeof(float);
static inline float* aligned(Buffer<float>& x) {
    const i64 off = i64(reinterpret_cast<uintptr_t>(x.data) / sizeof(float)) % LINE;
    return x.at((LINE - off) % LINE);
}

// What a tile of C starts from: zero, what is there, what is there times a row of factors.
enum Start { ZERO, ADD, SCALE };

// C[r][c] = start + sum_k A(r, k) B[k][c] for TILE_ROWS rows and N vectors of columns, all in registers.
// A(r, k) is a[r * lda + k], or with ACROSS a[k * lda + r].
template <int N, bool ACROSS, Start START>
static inline void flash_tile(const float* a, i64 lda, const float* b, i64 ldb, i64 inner, float* c, i64 ldc,
                              const float* factors) {
    V acc[TILE_ROWS][N];
    for (int r = 0; r < TILE_ROWS; r++)
        for (int j = 0; j < N; j++) {
            acc[r][j] = START == ZERO ? V::zero() : V::load(c + r * ldc + j * V::N);
            if (START == SCALE) acc[r][j] = acc[r][j] * V::load(factors + j * V::N);
        }
    for (i64 k = 0; k < inner; k++) {
        V row[N];
        for (int j = 0; j < N; j++) row[j] = V::load(b + k * ldb + j * V::N);
        for (int r = 0; r < TILE_ROWS; r++) {
            V x(ACROSS ? a[k * lda + r] : a[r * lda + k]);
            for (int j = 0; j < N; j++) acc[r][j] = V::fma(x, row[j], acc[r][j]);
        }
    }
    for (int r = 0; r < TILE_ROWS; r++)
        for (int j = 0; j < N; j++) acc[r][j].store(c + r * ldc + j * V::N);
}

// The same for any multiple of TILE_ROWS rows.
template <int N, bool ACROSS, Start START>
static void flash_rows(const float* a, i64 lda, const float* b, i64 ldb, i64 rows, i64 inner, float* c, i64 ldc,
                       const float* factors = nullptr) {
    for (i64 r = 0; r < rows; r += TILE_ROWS)
        flash_tile<N, ACROSS, START>(ACROSS ? a + r : a + r * lda, lda, b, ldb, inner, c + r * ldc, ldc, factors);
}

// (rows, columns) -> (columns, rows), both multiples of V::N.
static void transpose(const float* x, i64 ldx, i64 rows, i64 columns, float* y, i64 ldy) {
    for (i64 r = 0; r < rows; r += V::N)
        for (i64 c = 0; c < columns; c += V::N) {
            V part[V::N];
            for (int i = 0; i < V::N; i++) part[i] = V::load(x + (r + i) * ldx + c);
            V::transpose(part);
            for (int i = 0; i < V::N; i++) part[i].store(y + (c + i) * ldy + r);
        }
}

// y = x * factor, n numbers, with zeros behind up to `padded`.
template <class T> static inline void load_row(const T* x, i64 n, float factor, float* y, i64 padded) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) (V::load(x + i) * V(factor)).store(y + i);
    if (i < n) (V::load(x + i, int(n - i)) * V(factor)).store(y + i), i += V::N;
    for (; i < padded; i += V::N) V::zero().store(y + i);
}

// y = x * factor, n numbers; x is padded to a multiple of V::N.
template <class T> static inline void store_row(const float* x, float factor, T* y, i64 n) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) (V::load(x + i) * V(factor)).store(y + i);
    if (i < n) (V::load(x + i) * V(factor)).store(y + i, int(n - i));
}

// Where the rows (Dh numbers) of one sequence lie: evenly spaced, or in pages.
template <class T> struct Places {
    const T* base;
    i64 step, head_step;  // from position to position (within a page), from head to head
    const i64* table;     // pages in order; null: no pages
    i64 page_size, page_step;
    const T* at(i64 position, i64 head) const {
        const T* page = base + head * head_step;
        if (!table) return page + position * step;
        return page + table[position / page_size] * page_step + position % page_size * step;
    }
};

template <class T> struct Sequence {
    Places<T> q, k, v;
    i64 T_, S;          // queries, keys
    const i64* starts;  // of each query: the first key it sees; null: 0
    T* y;               // (T, Hq, Dh), dense
    float* log_sums;    // (T, Hq) log2 of the sum of 2^(score log2 e); null: not wanted
    i64 first_key(i64 t) const { return starts ? starts[t] : 0; }
};

struct FlashTask {
    i64 sequence, head, start, stop;  // of positions among the queries
};

// Scratch of one thread; `width` is Dh up to a multiple of V::N.
struct FlashScratch {
    float *rows, *q, *out, *k, *v, *scores, *top, *sum, *keep;
    i64 *low, *high;  // keys that each column sees
    static i64 floats(i64 width) { return 3 * COLUMNS * width + 2 * KEYS * width + KEYS * GROUP + 7 * COLUMNS; }
    FlashScratch(float* p, i64 width) {
        rows = p, q = rows + COLUMNS * width, out = q + COLUMNS * width, k = out + COLUMNS * width;
        v = k + KEYS * width, scores = v + KEYS * width, top = scores + KEYS * GROUP, sum = top + COLUMNS;
        keep = sum + COLUMNS, low = (i64*)(keep + COLUMNS), high = low + COLUMNS;
    }
};

template <class T> static void load_keys(const Places<T>& from, i64 head, i64 start, i64 n, i64 Dh, float* to, i64 width) {
    for (i64 j = 0; j < n; j++) load_row(from.at(start + j, head), Dh, 1.0f, to + j * width, width);
    if (n < KEYS) std::memset(to + n * width, 0, sizeof(float) * (KEYS - n) * width);
}

// `value` where a column does not see a key of the block start..start+KEYS, in rows from..to of its scores.
static void mask(float* scores, i64 ld, i64 columns, const i64* low, const i64* high, i64 start, i64 from, i64 to,
                 float value) {
    for (i64 c = 0; c < columns; c++) {
        for (i64 j = from; j < least(to, low[c] - start); j++) scores[j * ld + c] = value;
        for (i64 j = most_of(from, high[c] - start); j < to; j++) scores[j * ld + c] = value;
    }
}

// Scores (rows from..to) into exponentials; updates top and sum, and says by what factor older sums shrink.
template <int N> static void flash_softmax(float* scores, i64 from, i64 to, float* top, float* sum, float* keep) {
    for (int j = 0; j < N; j++) {
        float* s = scores + j * V::N;
        const V old = V::load(top + j * V::N);
        V most[4] = {old, old, old, old};
        for (i64 i = from; i < to; i += 4)
            for (int k = 0; k < 4; k++) most[k] = V::max(most[k], V::load(s + (i + k) * N * V::N));
        const V now = V::max(V::max(most[0], most[1]), V::max(most[2], most[3]));
        V total[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
        for (i64 i = from; i < to; i += 4)
            for (int k = 0; k < 4; k++) {
                V e = vexp2_to_zero(V::load(s + (i + k) * N * V::N) - now);
                e.store(s + (i + k) * N * V::N);
                total[k] = total[k] + e;
            }
        const V shrink = vexp2_to_zero(old - now);
        V::fma(V::load(sum + j * V::N), shrink, (total[0] + total[1]) + (total[2] + total[3])).store(sum + j * V::N);
        now.store(top + j * V::N), shrink.store(keep + j * V::N);
    }
}

// Which keys of the block from `start` on some of the columns see, and whether some column does not see them all.
struct Span {
    i64 from, to;
    bool masked;
};
static Span seen(const i64* low, const i64* high, i64 columns, i64 start) {
    i64 first = low[0], last = low[0], stop = high[0], common = high[0];
    for (i64 c = 1; c < columns; c++) {
        first = least(first, low[c]), last = most_of(last, low[c]);
        stop = most_of(stop, high[c]), common = least(common, high[c]);
    }
    const i64 from = most_of(first - start, i64(0)) / TILE_ROWS * TILE_ROWS;
    const i64 to = least(round_up(most_of(stop - start, i64(0)), TILE_ROWS), KEYS);
    return {from, to, last > start + from || common < start + to};
}

// One group of N vectors of columns from `column` on and one block of keys.
template <int N>
static void flash_group(const FlashScratch& w, i64 column, i64 width, i64 start, const Span& span) {
    const i64 n = N * V::N, from = span.from, to = span.to;
    const i64 *low = w.low + column, *high = w.high + column;
    flash_rows<N, false, ZERO>(w.k + from * width, width, w.q + column, COLUMNS, to - from, width, w.scores + from * n, n);
    if (span.masked) mask(w.scores, n, n, low, high, start, from, to, -INFINITY);
    flash_softmax<N>(w.scores, from, to, w.top + column, w.sum + column, w.keep + column);
    flash_rows<N, true, SCALE>(w.v + from * width, width, w.scores + from * n, n, width, to - from, w.out + column, COLUMNS,
                               w.keep + column);
}

static void flash_block(const FlashScratch& w, i64 columns, i64 width, i64 start) {
    for (i64 column = 0; column < columns; column += GROUP) {
        const i64 group = least(GROUP, columns - column);
        const Span span = seen(w.low + column, w.high + column, group, start);
        if (span.from >= span.to) continue;
        switch (group / V::N) {
            case 3: flash_group<3>(w, column, width, start, span); break;
            case 2: flash_group<2>(w, column, width, start, span); break;
            default: flash_group<1>(w, column, width, start, span);
        }
    }
}

// Columns of a task: queries as columns of w.q, their limits in w.low and w.high. Returns how many, padding included.
template <class T>
static i64 load_queries(const Sequence<T>& s, const FlashTask& task, i64 R, i64 Dh, const FlashScratch& w, i64 width) {
    const float factor = LOG2E / std::sqrt(float(Dh));
    i64 column = 0;
    for (i64 t = task.start; t < task.stop; t++)
        for (i64 r = 0; r < R; r++, column++) {
            load_row(s.q.at(t, task.head * R + r), Dh, factor, w.rows + column * width, width);
            w.low[column] = s.first_key(t), w.high[column] = s.S - s.T_ + t + 1;
        }
    const i64 columns = round_up(column, V::N);
    std::memset(w.rows + column * width, 0, sizeof(float) * (columns - column) * width);
    for (; column < columns; column++) w.low[column] = w.low[column - 1], w.high[column] = w.high[column - 1];
    transpose(w.rows, width, columns, width, w.q, COLUMNS);
    return columns;
}

template <class T>
static void store_queries(const Sequence<T>& s, const FlashTask& task, i64 heads, i64 R, i64 Dh, const FlashScratch& w,
                          i64 width) {
    const i64 columns = (task.stop - task.start) * R;
    transpose(w.out, COLUMNS, width, round_up(columns, V::N), w.rows, width);
    for (i64 c = 0; c < columns; c++) {
        const i64 place = ((task.start + c / R) * heads + task.head) * R + c % R;
        store_row(w.rows + c * width, 1.0f / w.sum[c], s.y + place * Dh, Dh);
        if (s.log_sums) s.log_sums[place] = w.top[c] + std::log2(w.sum[c]);
    }
}

template <class T>
static void flash_task(const Sequence<T>& s, const FlashTask& task, i64 heads, i64 R, i64 Dh, const FlashScratch& w,
                       i64 width) {
    const i64 columns = load_queries(s, task, R, Dh, w, width);
    std::memset(w.out, 0, sizeof(float) * COLUMNS * width);
    for (i64 c = 0; c < columns; c++) w.top[c] = -1e30f, w.sum[c] = 0;
    for (i64 start = w.low[0]; start < w.high[columns - 1]; start += KEYS) {
        const i64 n = least(KEYS, w.high[columns - 1] - start);
        load_keys(s.k, task.head, start, n, Dh, w.k, width);
        load_keys(s.v, task.head, start, n, Dh, w.v, width);
        flash_block(w, columns, width, start);
    }
    store_queries(s, task, heads, R, Dh, w, width);
}

// Attention of n sequences; each query sees the keys up to its own position, the queries being the last.
template <class T>
static int flash_of(const Sequence<T>* sequences, i64 n, i64 heads, i64 R, i64 Dh, int threads) {
    const i64 step = COLUMNS / R, width = round_up(Dh, V::N);
    i64 count = 0, work = 0;
    for (i64 i = 0; i < n; i++) {
        count += (sequences[i].T_ + step - 1) / step * heads;
        work += sequences[i].T_ * sequences[i].S * heads * R * Dh;
    }
    threads = work > ALONE ? int(least<i64>(threads, count)) : 1;
    Buffer<FlashTask> tasks(count);
    Buffer<float> scratch(threads * FlashScratch::floats(width) + LINE);
    if (!tasks.ok() || !scratch.ok()) return NO_MEMORY;
    count = 0;
    for (i64 i = 0; i < n; i++)
        for (i64 start = 0; start < sequences[i].T_; start += step)
            for (i64 head = 0; head < heads; head++)
                tasks[count++] = {i, head, start, least(start + step, sequences[i].T_)};
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (i64 i = count - 1; i >= 0; i--) {  // the longest first
        FlashScratch w(aligned(scratch) + omp_get_thread_num() * FlashScratch::floats(width), width);
        flash_task(sequences[tasks[i].sequence], tasks[i], heads, R, Dh, w, width);
    }
    return DONE;
}

// Strides of (B, T, H, Dh), the last one 1.
struct Strides {
    i64 row, position, head;
};
template <class T> static Places<T> rows_of(const T* x, Strides by, i64 row) {
    return {x + row * by.row, by.position, by.head, nullptr, 0, 0};
}

template <class T>
static int attention_rows(const T* const* qkv, const Strides* by, i64 B, i64 T_, i64 S, i64 heads, i64 R, i64 Dh,
                          const i64* starts, T* y, float* log_sums, int threads) {
    Buffer<Sequence<T>> sequences(B);
    if (!sequences.ok()) return NO_MEMORY;
    for (i64 b = 0; b < B; b++) {
        const i64 first = b * T_ * heads * R;
        sequences[b] = {rows_of(qkv[0], by[0], b), rows_of(qkv[1], by[1], b), rows_of(qkv[2], by[2], b), T_, S,
                        starts ? starts + b * T_ : nullptr, y + first * Dh, log_sums ? log_sums + first : nullptr};
    }
    return flash_of(sequences.data, B, heads, R, Dh, threads);
}

template <class T>
static int attention_pages(const T* q, const T* keys, const T* values, i64 pages, const i64* table, i64 table_width,
                           const i64* query_lengths, const i64* key_lengths, i64 n, i64 heads, i64 R, i64 Dh,
                           i64 page_size, T* y, int threads) {
    Buffer<Sequence<T>> sequences(n);
    if (!sequences.ok()) return NO_MEMORY;
    const i64 step = heads * Dh;
    for (i64 i = 0, start = 0; i < n; start += query_lengths[i], i++) {
        const i64* own = table + i * table_width;
        if (query_lengths[i] && !pages_fit(own, table_width, key_lengths + i, 1, page_size, pages)) return BAD_INDEX;
        sequences[i] = {{q + start * step * R, step * R, Dh, nullptr, 0, 0},
                        {keys, step, Dh, own, page_size, page_size * step},
                        {values, step, Dh, own, page_size, page_size * step},
                        query_lengths[i], key_lengths[i], nullptr, y + start * step * R, nullptr};
    }
    return flash_of(sequences.data, n, heads, R, Dh, threads);
}
