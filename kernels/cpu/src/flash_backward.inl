// Gradients of flash.inl's attention: probabilities are computed again from the log sums of the forward pass.
// A task takes a sequence, a key head and every J-th block of queries; the sums for keys and values of the J tasks that
// share a key head are kept apart and added in order, so that results depend on the number of threads alone.

template <class T> struct Gradients {
    Places<T> dout;
    const T* out;     // (T, Hq, Dh), dense
    T *dq, *dk, *dv;  // dense
};

// Scratch of one thread, like FlashScratch. q_rows and dout_rows are columns as rows, q and dout the same across.
struct BackwardScratch {
    float *q_rows, *dout_rows, *q, *dout, *dq, *k, *v, *p, *ds, *log_sums, *delta;
    i64 *low, *high;
    static i64 floats(i64 width) { return 5 * COLUMNS * width + 2 * KEYS * width + 2 * KEYS * GROUP + 6 * COLUMNS; }
    BackwardScratch(float* start, i64 width) {
        q_rows = start, dout_rows = q_rows + COLUMNS * width, q = dout_rows + COLUMNS * width;
        dout = q + COLUMNS * width, dq = dout + COLUMNS * width, k = dq + COLUMNS * width, v = k + KEYS * width;
        p = v + KEYS * width, ds = p + KEYS * GROUP, log_sums = ds + KEYS * GROUP, delta = log_sums + COLUMNS;
        low = (i64*)(delta + COLUMNS), high = low + COLUMNS;
    }
};

// c (rows, width) += a (rows, inner) b (inner, width); width is a multiple of V::N.
static void add_product(const float* a, i64 lda, const float* b, i64 rows, i64 inner, float* c, i64 width) {
    for (i64 d = 0; d < width;) {
        const i64 left = (width - d) / V::N, take = left == 4 || left == 2 ? 2 : least(left, i64(3));
        switch (take) {
            case 3: flash_rows<3, false, ADD>(a, lda, b + d, width, rows, inner, c + d, width); break;
            case 2: flash_rows<2, false, ADD>(a, lda, b + d, width, rows, inner, c + d, width); break;
            default: flash_rows<1, false, ADD>(a, lda, b + d, width, rows, inner, c + d, width);
        }
        d += take * V::N;
    }
}

// p: scores -> probabilities; ds: gradients of probabilities -> of scores.
template <int N>
static void backward_softmax(float* p, float* ds, i64 from, i64 to, const float* log_sums, const float* delta) {
    for (i64 i = from; i < to; i++)
        for (int j = 0; j < N; j++) {
            const i64 place = (i * N + j) * V::N;
            const V e = vexp2_to_zero(V::load(p + place) - V::load(log_sums + j * V::N));
            e.store(p + place);
            (e * (V::load(ds + place) - V::load(delta + j * V::N))).store(ds + place);
        }
}

// One group of columns and one block of keys; dk and dv are rows of this block.
template <int N>
static void backward_group(const BackwardScratch& w, i64 column, i64 width, i64 start, const Span& span, float* dk,
                           float* dv) {
    const i64 n = N * V::N, from = span.from, to = span.to, rows = to - from;
    const i64 *low = w.low + column, *high = w.high + column;
    float *p = w.p + from * n, *ds = w.ds + from * n;
    flash_rows<N, false, ZERO>(w.k + from * width, width, w.q + column, COLUMNS, rows, width, p, n);
    flash_rows<N, false, ZERO>(w.v + from * width, width, w.dout + column, COLUMNS, rows, width, ds, n);
    backward_softmax<N>(w.p, w.ds, from, to, w.log_sums + column, w.delta + column);
    if (span.masked) {
        mask(w.p, n, n, low, high, start, from, to, 0);
        mask(w.ds, n, n, low, high, start, from, to, 0);
    }
    flash_rows<N, true, ADD>(w.k + from * width, width, ds, n, width, rows, w.dq + column, COLUMNS);
    add_product(p, n, w.dout_rows + column * width, rows, n, dv + from * width, width);
    add_product(ds, n, w.q_rows + column * width, rows, n, dk + from * width, width);
}

// Loads the columns of one block of queries; returns how many.
template <class T>
static i64 load_columns(const Sequence<T>& s, const Gradients<T>& g, const FlashTask& task, i64 heads, i64 R, i64 Dh,
                        const BackwardScratch& w, i64 width) {
    FlashScratch forward(nullptr, 0);
    forward.rows = w.q_rows, forward.q = w.q, forward.low = w.low, forward.high = w.high;
    const i64 columns = load_queries(s, task, R, Dh, forward, width), real = (task.stop - task.start) * R;
    for (i64 c = 0; c < columns; c++) {
        float* row = w.dout_rows + c * width;
        w.log_sums[c] = w.delta[c] = 0;
        if (c >= real) {
            std::memset(row, 0, sizeof(float) * width);
            continue;
        }
        const i64 t = task.start + c / R, head = task.head * R + c % R, place = t * heads * R + head;
        load_row(g.dout.at(t, head), Dh, 1.0f, row, width);
        const T* out = g.out + place * Dh;
        V sum = V::zero();
        i64 d = 0;
        for (; d + V::N <= Dh; d += V::N) sum = V::fma(V::load(out + d), V::load(row + d), sum);
        if (d < Dh) sum = V::fma(V::load(out + d, int(Dh - d)), V::load(row + d), sum);
        w.delta[c] = sum.sum(), w.log_sums[c] = s.log_sums[place];
    }
    transpose(w.dout_rows, width, columns, width, w.dout, COLUMNS);
    return columns;
}

template <class T>
static void backward_queries(const Sequence<T>& s, const Gradients<T>& g, const FlashTask& task, i64 heads, i64 R, i64 Dh,
                             const BackwardScratch& w, i64 width, float* dk, float* dv) {
    const i64 columns = load_columns(s, g, task, heads, R, Dh, w, width), last = w.high[columns - 1];
    std::memset(w.dq, 0, sizeof(float) * COLUMNS * width);
    for (i64 start = w.low[0]; start < last; start += KEYS) {
        const i64 n = least(KEYS, last - start);
        load_keys(s.k, task.head, start, n, Dh, w.k, width);
        load_keys(s.v, task.head, start, n, Dh, w.v, width);
        for (i64 column = 0; column < columns; column += GROUP) {
            const i64 group = least(GROUP, columns - column);
            const Span span = seen(w.low + column, w.high + column, group, start);
            if (span.from >= span.to) continue;
            switch (group / V::N) {
                case 3: backward_group<3>(w, column, width, start, span, dk + start * width, dv + start * width); break;
                case 2: backward_group<2>(w, column, width, start, span, dk + start * width, dv + start * width); break;
                default: backward_group<1>(w, column, width, start, span, dk + start * width, dv + start * width);
            }
        }
    }
    transpose(w.dq, COLUMNS, width, columns, w.q_rows, width);
    const float factor = 1.0f / std::sqrt(float(Dh));
    for (i64 c = 0; c < (task.stop - task.start) * R; c++)
        store_row(w.q_rows + c * width, factor, g.dq + (((task.start + c / R) * heads + task.head) * R + c % R) * Dh, Dh);
}

// Adds the parts' sums of one position and key head, and stores them.
template <class T>
static void store_sums(const float* parts, i64 J, i64 part_size, float factor, i64 Dh, i64 width, float* sum, T* to) {
    std::memcpy(sum, parts, sizeof(float) * width);
    for (i64 j = 1; j < J; j++)
        for (i64 d = 0; d < width; d += V::N) (V::load(sum + d) + V::load(parts + j * part_size + d)).store(sum + d);
    store_row(sum, factor, to, Dh);
}

template <class T>
static int backward_of(const Sequence<T>* s, const Gradients<T>* g, i64 B, i64 heads, i64 R, i64 Dh, int threads) {
    const i64 step = COLUMNS / R, width = round_up(Dh, V::N), S = s->S, blocks = (s->T_ + step - 1) / step;
    const i64 J = most_of(i64(1), least(blocks, (2 * threads + B * heads - 1) / (B * heads)));
    const i64 part = (S + KEYS) * width;  // the last block may reach behind S
    const bool alone = B * s->T_ * S * heads * R * Dh <= ALONE;
    Buffer<float> sums(B * heads * J * 2 * part + LINE), scratch((alone ? 1 : threads) * BackwardScratch::floats(width) + LINE);
    if (!sums.ok() || !scratch.ok()) return NO_MEMORY;
#pragma omp parallel num_threads(threads) if (!alone)
    {
        float* own = aligned(scratch) + omp_get_thread_num() * BackwardScratch::floats(width);
        BackwardScratch w(own, width);
#pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < B * heads * J; i++) {
            const i64 b = i / J / heads, head = i / J % heads;
            float *dk = aligned(sums) + i * 2 * part, *dv = dk + part;
            std::memset(dk, 0, sizeof(float) * 2 * part);
            for (i64 block = i % J; block < blocks; block += J) {
                const FlashTask task = {b, head, block * step, least(block * step + step, s->T_)};
                backward_queries(s[b], g[b], task, heads, R, Dh, w, width, dk, dv);
            }
        }
#pragma omp for schedule(static)
        for (i64 i = 0; i < B * heads * S; i++) {
            const i64 task = i / S, position = i % S, b = task / heads, place = (position * heads + task % heads) * Dh;
            const float* dk = aligned(sums) + task * J * 2 * part + position * width;
            store_sums(dk, J, 2 * part, 1 / LOG2E, Dh, width, own, g[b].dk + place);  // the queries carried log2 e
            store_sums(dk + part, J, 2 * part, 1.0f, Dh, width, own, g[b].dv + place);
        }
    }
    return DONE;
}

template <class T>
static int attention_gradients(const T* const* qkv_dout, const Strides* by, const T* out, float* log_sums, i64 B, i64 T_,
                               i64 S, i64 heads, i64 R, i64 Dh, const i64* starts, T* dq, T* dk, T* dv, int threads) {
    Buffer<Sequence<T>> sequences(B);
    Buffer<Gradients<T>> gradients(B);
    if (!sequences.ok() || !gradients.ok()) return NO_MEMORY;
    for (i64 b = 0; b < B; b++) {
        const i64 first = b * T_ * heads * R, key = b * S * heads * Dh;
        sequences[b] = {rows_of(qkv_dout[0], by[0], b), rows_of(qkv_dout[1], by[1], b), rows_of(qkv_dout[2], by[2], b),
                        T_, S, starts ? starts + b * T_ : nullptr, nullptr, log_sums + first};
        gradients[b] = {rows_of(qkv_dout[3], by[3], b), out + first * Dh, dq + first * Dh, dk + key, dv + key};
    }
    return backward_of(sequences.data, gradients.data, B, heads, R, Dh, threads);
}
