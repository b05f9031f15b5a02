// The chunked scan, forward: y = C S decayed from the chunk's start + (scores * decays) x + D x, without the scores or
// decays of a chunk ever leaving the cache.

struct ForwardSpace {
    float *B, *B_t, *C_t, *C_tiles;  // (L, N), (N, L), (N, L)
    float *scores, *weights;         // [j][i]: B_j . C_i, and what x_j counts in y_i
    float *x, *x_end;                // panels of (L, P); x_end: times its step and its decay to the chunk's end
    float* states;
    Documents documents;
    Decays decays;

    ForwardSpace(const Scan& s, i64 heads, Cutter c)
        : B(c.take(s.L * s.ld_n())), B_t(c.take(s.N * s.ld_l())), C_t(c.take(s.N * s.ld_l())),
          C_tiles(c.take(round_up(s.L, UNIT) * s.N)), scores(c.take(round_up(s.L, UNIT) * s.ld_l())),
          weights(c.take(s.L * s.ld_l())), x(c.take(s.panels() * s.tokens_panel())), x_end(c.take(s.panels() * s.tokens_panel())),
          states(c.take(heads * s.state())), documents(s, c), decays(s, c), used(c.used) {}
    i64 used;
};

// weights[j][i] = scores * step_j * decay from j to i, plus D where i = j; 0 where i is in a later document; not set
// where i is before j.
static void forward_weights(const Scan& s, const ForwardSpace& w, i64 L, float D) {
    const float* sum = w.decays.sum;
    for (i64 j = 0; j < L; j++) {
        const float* scores = w.scores + j * s.ld_l();
        float* row = w.weights + j * s.ld_l();
        V own(sum[j]), step(w.decays.step[j]);
        i64 end = w.documents.to[j];
        for (i64 i = j / V::N * V::N; i < end; i += V::N)
            (decay(V::load(sum + i) - own) * (V::load(scores + i) * step)).store(row + i);
        if (end < L) std::memset(row + end, 0, sizeof(float) * (L - end));
        row[j] += D;
    }
}

template <int R, class T>
static inline void store_tokens(const Block<R>& tile, i64 rows, i64 columns, T* y, i64 ld) {
    for (int r = 0; r < R && r < rows; r++) {
        T* row = y + r * ld;
        if (columns >= PANEL_WIDTH) {
            tile.at[r][0].store(row), tile.at[r][1].store(row + V::N);
        } else {
            tile.at[r][0].store(row, int(least<i64>(columns, V::N)));
            if (columns > V::N) tile.at[r][1].store(row + V::N, int(columns - V::N));
        }
    }
}

// y of one head's chunk; `state` is none where it is zero. Meanwhile `next`, what is read after it, comes to the cache.
template <class T>
static void forward_outputs(const Scan& s, const ForwardSpace& w, i64 L, const float* state, T* y, const T* next) {
    i64 ld = s.ld_l();
    for (i64 panel = 0; panel < s.panels(); panel++) {
        const float* x = w.x + panel * s.tokens_panel();
        in_tiles(L, [&](auto rows, i64 i) {
            const int R = decltype(rows)::value;
            i64 columns = s.P - panel * PANEL_WIDTH;
            if (next) fetch_rows(next + i * s.x_row + panel * PANEL_WIDTH, s.x_row, least<i64>(R, L - i), least<i64>(columns, PANEL_WIDTH));
            Block<R> sum;
            sum.clear();
            if (state && i < w.documents.first) {
                sum.add_packed(w.C_tiles + i * s.N, state + panel * s.panel(), PANEL_WIDTH, s.N);
                sum.scale_rows(w.decays.from_start + i);
            }
            const i64 from = w.documents.from[i];
            sum.template add<1>(w.weights + from * ld + i, ld, x + from * PANEL_WIDTH, PANEL_WIDTH, i - from);
            sum.template add_lower<1>(w.weights + i * ld + i, ld, x + i * PANEL_WIDTH, PANEL_WIDTH, L - i);
            store_tokens(sum, L - i, columns, y + i * s.H * s.P + panel * PANEL_WIDTH, s.H * s.P);
        });
    }
}

// State at the chunk's end into `after`, which may be `before`; none where it is zero.
static void advance_state(const Scan& s, const ForwardSpace& w, i64 L, const float* before, float* after) {
    i64 start = w.documents.last;
    V whole(w.decays.whole(L));
    for (i64 panel = 0; panel < s.panels(); panel++) {
        const float* x = w.x_end + panel * s.tokens_panel() + start * PANEL_WIDTH;
        in_tiles(s.N, [&](auto rows, i64 n) {
            const int R = decltype(rows)::value;
            i64 at = panel * s.panel() + n * PANEL_WIDTH;
            Block<R> sum;
            if (before && w.documents.first == L) {
                sum.load(before + at, PANEL_WIDTH);
                sum.scale(whole);
            } else {
                sum.clear();
            }
            sum.template add<1>(w.B + start * s.ld_n() + n, s.ld_n(), x, PANEL_WIDTH, L - start);
            sum.store(after + at, PANEL_WIDTH);
        });
    }
}

template <class T> struct ScanInputs {
    const T *x, *dt, *B, *C;
    ScanInputs of(const Scan& s, i64 b) const {
        return {x + b * s.x_batch, dt + b * s.dt_batch, B + b * s.B_batch, C + b * s.C_batch};
    }
};

// Some heads of one group in one batch row.
template <class T> struct ForwardTask {
    const Scan& s;
    ForwardSpace w;
    ScanInputs<T> in;  // of the batch row
    i64 b, h0, heads;
    float* kept;  // start states of all chunks, (B, H, chunks, state), or none

    float* state(i64 r, i64 chunk) const {
        if (kept && chunk < s.chunks()) return kept + ((b * s.H + h0 + r) * s.chunks() + chunk) * s.state();
        return w.states + r * s.state();
    }
    void load_group(i64 t, i64 L) {
        i64 n = h0 / s.R() * s.N;
        const T *B = in.B + t * s.B_row + n, *C = in.C + t * s.C_row + n;
        w.documents.find(s.ids ? s.ids + b * s.T : nullptr, t, L);
        to_rows(B, s.B_row, L, s.N, w.B, s.ld_n());
        transpose(B, s.B_row, L, s.N, w.B_t, s.ld_l(), round_up(L, PANEL_WIDTH));
        transpose(C, s.C_row, L, s.N, w.C_t, s.ld_l(), round_up(L, PANEL_WIDTH));
        pack_tiles(w.C_t, s.ld_l(), L, s.N, w.C_tiles);
        token_products(s, w.B_t, w.C_t, L, false, w.scores);
    }
    // A head's share of the group's numbers of the chunk at t.
    void fetch_group(i64 r, i64 t) const {
        i64 n = h0 / s.R() * s.N, each = (s.L + heads - 1) / heads;
        i64 first = t + r * each, rows = least(each, s.T - first);
        fetch_rows(in.B + first * s.B_row + n, s.B_row, rows, s.N);
        fetch_rows(in.C + first * s.C_row + n, s.C_row, rows, s.N);
    }
    void head_chunk(i64 r, i64 t, i64 L, T* y) {
        i64 h = h0 + r, chunk = t / s.L;
        w.decays.find(s, in.dt + t * s.dt_row, h, L, w.documents);
        forward_weights(s, w, L, s.D[h]);
        to_panels(in.x + t * s.x_row + h * s.P, s.x_row, L, s.P, w.x, s.tokens_panel());
        const float* before = chunk || s.initial ? state(r, chunk) : nullptr;
        fetch_group(r, t + L);
        const T* next = in.x + t * s.x_row + (h + 1) * s.P;
        if (r + 1 == heads) next = t + 2 * L <= s.T ? in.x + (t + L) * s.x_row + h0 * s.P : nullptr;
        forward_outputs(s, w, L, before, y + ((b * s.T + t) * s.H + h) * s.P, next);
        scale_panels(w.x, w.decays.arriving, L, s.panels(), w.x_end, s.tokens_panel());
        advance_state(s, w, L, before, state(r, chunk + 1));
    }
    void run(T* y, float* final) {
        for (i64 r = 0; s.initial && r < heads; r++) state_in(s, s.initial_of(b, h0 + r), state(r, 0));
        for (i64 t = 0; t < s.T; t += s.L) {
            i64 L = least(s.L, s.T - t);
            load_group(t, L);
            for (i64 r = 0; r < heads; r++) head_chunk(r, t, L, y);
        }
        for (i64 r = 0; r < heads; r++)
            state_out(s, w.states + r * s.state(), final + (b * s.H + h0 + r) * s.P * s.N);
    }
};

template <class T>
static int scan_forward_of(const Scan& s, ScanInputs<T> in, T* y, float* final, float* kept, int threads) {
    i64 parts = head_parts(s, threads, s.R()), heads = s.R() / parts, tasks = s.B * s.G * parts;
    threads = int(least<i64>(threads, tasks));
    Scratch scratch(ForwardSpace(s, heads, Cutter{nullptr}).used, threads);
    if (!scratch.ok()) return NO_MEMORY;
#pragma omp parallel num_threads(threads) if (s.work() > ALONE)
    {
        ForwardSpace space(s, heads, Cutter{scratch.mine()});
#pragma omp for schedule(static)
        for (i64 task = 0; task < tasks; task++) {
            i64 b = task / (s.G * parts), h0 = task % (s.G * parts) * heads;
            ForwardTask<T>{s, space, in.of(s, b), b, h0, heads, kept}.run(y, final);
        }
    }
    return DONE;
}
