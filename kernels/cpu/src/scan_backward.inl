// The chunked scan, backward: the chunks in reverse, from their start states that the forward pass kept. Matrices of a
// token by a token are [i][j], j not after i; those that end in _t have a column a token, for factors and sums along it.

struct BackwardSpace {
    float *B, *C, *B_t, *C_t, *B_tiles;
    float *scores, *diagonal;  // C_i . B_j, the diagonal apart: a token's own term does not decay, and left in it would
                               // cancel only up to rounding in the gradient of the decays
    float *decay, *weights;    // decay from j to i, 0 for other documents; scores * decay
    float *dscores, *dscores_t, *dB_t, *dC_t;  // summed over the heads
    float *x, *dy, *dy_start;  // panels; dy_start: decayed from the chunk's start
    float *x_t, *dy_t;
    float *dstates;
    float *row, *column, *by_start, *by_end, *dstep, *dlog;  // a number a token
    Documents documents;
    Decays decays;

    BackwardSpace(const Scan& s, i64 heads, Cutter c)
        : B(c.take(s.L * s.ld_n())), C(c.take(s.L * s.ld_n())), B_t(states_t(s, c)), C_t(states_t(s, c)),
          B_tiles(c.take(round_up(s.L, UNIT) * s.N)), scores(tokens(s, c)), diagonal(c.take(s.L)), decay(tokens(s, c)),
          weights(tokens(s, c)), dscores(tokens(s, c)), dscores_t(tokens(s, c)), dB_t(states_t(s, c)),
          dC_t(states_t(s, c)), x(panels(s, c)), dy(panels(s, c)), dy_start(panels(s, c)), x_t(c.take(s.P * s.ld_l())),
          dy_t(c.take(s.P * s.ld_l())), dstates(c.take(heads * s.state())), row(c.take(s.ld_l())),
          column(c.take(s.ld_l())), by_start(c.take(s.ld_l())), by_end(c.take(s.ld_l())), dstep(c.take(s.ld_l())),
          dlog(c.take(s.ld_l())), documents(s, c), decays(s, c), used(c.used) {}
    static float* states_t(const Scan& s, Cutter& c) { return c.take(round_up(s.N, UNIT) * s.ld_l()); }
    static float* tokens(const Scan& s, Cutter& c) { return c.take(round_up(s.L, UNIT) * s.ld_l()); }
    static float* panels(const Scan& s, Cutter& c) { return c.take(s.panels() * s.tokens_panel()); }
    i64 used;
};

static void clear(float* at, i64 n) { std::memset(at, 0, sizeof(float) * n); }

// decay and weights of one head; zero after the diagonal as far as tiles and panels read, which is never written.
static void backward_weights(const Scan& s, const BackwardSpace& w, i64 L) {
    const float* sum = w.decays.sum;
    for (i64 i = 0; i < L; i++) {
        i64 at = i * s.ld_l(), from = w.documents.from[i];
        V own(sum[i]);
        for (i64 j = from / V::N * V::N; j <= i; j += V::N) {
            V factor = decay(own - V::load(sum + j));
            factor.store(w.decay + at + j);
            (factor * V::load(w.scores + at + j)).store(w.weights + at + j);
        }
        V::zero().store(w.decay + at + i + 1);
        V::zero().store(w.weights + at + i + 1);
        clear(w.decay + at, from);
        clear(w.weights + at, from);
    }
}

// Through the products of tokens with tokens: adds to dscores, and the gradient of the summed decays to row and column.
static void backward_scores(const Scan& s, const BackwardSpace& w, i64 L) {
    i64 ld = s.ld_l();
    clear(w.column, ld);
    in_tiles(L, [&](auto rows, i64 i) {
        const int R = decltype(rows)::value;
        V total[R];
        for (int r = 0; r < R; r++) total[r] = V::zero();
        for (i64 j = 0; j < least(i + R, L); j += PANEL_WIDTH) {
            Block<R> sum;
            sum.clear();
            sum.template add<1>(w.dy_t + i, ld, w.x_t + j, ld, s.P);
            for (int c = 0; c < 2; c++) {
                i64 lane = j + c * V::N;
                V step = V::load(w.decays.step + lane), column = V::load(w.column + lane);
                for (int r = 0; r < R && i + r < L; r++) {
                    i64 at = (i + r) * ld + lane;
                    V grad = sum.at[r][c] * step;
                    V::fma(grad, V::load(w.decay + at), V::load(w.dscores + at)).store(w.dscores + at);
                    V through = grad * V::load(w.weights + at);
                    total[r] = total[r] + through;
                    column = column + through;
                }
                column.store(w.column + lane);
            }
        }
        for (int r = 0; r < R && i + r < L; r++) w.row[i + r] = total[r].sum();
    });
}

// grad_t (N, L) += state tokens_t scaled by token; sums: of what was added, times other_t, by token.
static void backward_state(const Scan& s, const float* state, const float* tokens_t, const float* scale, i64 L,
                           const float* other_t, float* grad_t, float* sums) {
    i64 ld = s.ld_l();
    for (i64 j = 0; j < L; j += PANEL_WIDTH) {
        V by[2] = {V::load(scale + j), V::load(scale + j + V::N)}, total[2] = {V::zero(), V::zero()};
        in_tiles(s.N, [&](auto rows, i64 n) {
            const int R = decltype(rows)::value;
            Block<R> sum;
            sum.clear();
            for (i64 p = 0; p < s.P; p += PANEL_WIDTH)
                sum.template add<PANEL_WIDTH>(state + p / PANEL_WIDTH * s.panel() + n * PANEL_WIDTH, 1, tokens_t + p * ld + j, ld,
                                        least<i64>(PANEL_WIDTH, s.P - p));
            for (int r = 0; r < R; r++)
                for (int c = 0; c < 2; c++) {
                    i64 at = (n + r) * ld + j + c * V::N;
                    V grad = sum.at[r][c] * by[c];
                    total[c] = V::fma(grad, V::load(other_t + at), total[c]);
                    (V::load(grad_t + at) + grad).store(grad_t + at);
                }
        });
        total[0].store(sums + j);
        total[1].store(sums + j + V::N);
    }
}

// Gradient of x to dx, of the steps that multiply x to dstep; returns that of D. `dstate` is none where it is zero.
template <class T>
static float backward_inputs(const Scan& s, const BackwardSpace& w, i64 L, const float* dstate, float D, T* dx) {
    i64 ld = s.ld_l();
    V dD = V::zero();
    clear(w.dstep, L);
    for (i64 panel = 0; panel < s.panels(); panel++) {
        const float *x = w.x + panel * s.tokens_panel(), *dy = w.dy + panel * s.tokens_panel();
        in_tiles(L, [&](auto rows, i64 j) {
            const int R = decltype(rows)::value;
            Block<R> sum;
            sum.clear();
            if (dstate) {
                sum.add_packed(w.B_tiles + j * s.N, dstate + panel * s.panel(), PANEL_WIDTH, s.N);
                sum.scale_rows(w.decays.to_end + j);
            }
            sum.template add<1>(w.weights + j * ld + j, ld, dy + j * PANEL_WIDTH, PANEL_WIDTH, L - j);
            for (int r = 0; r < R && j + r < L; r++) {
                V through = V::zero(), step(w.decays.step[j + r]);
                for (int c = 0; c < 2; c++) {
                    i64 at = (j + r) * PANEL_WIDTH + c * V::N;
                    V from = V::load(dy + at), value = V::load(x + at);
                    through = V::fma(sum.at[r][c], value, through);
                    dD = V::fma(from, value, dD);
                    sum.at[r][c] = V::fma(sum.at[r][c], step, V(D) * from);
                }
                w.dstep[j + r] += through.sum();
            }
            store_tokens(sum, L - j, s.P - panel * PANEL_WIDTH, dx + j * s.H * s.P + panel * PANEL_WIDTH, s.H * s.P);
        });
    }
    return dD.sum();
}

// dstate from the chunk's end to its start; returns the gradient of the whole chunk's log decay.
static float retreat_state(const Scan& s, const BackwardSpace& w, i64 L, bool ending, const float* state, float* dstate) {
    V whole(w.decays.whole(L)), total = V::zero();
    for (i64 panel = 0; panel < s.panels(); panel++)
        in_tiles(s.N, [&](auto rows, i64 n) {
            const int R = decltype(rows)::value;
            i64 at = panel * s.panel() + n * PANEL_WIDTH;
            Block<R> sum;
            if (ending) {
                sum.load(dstate + at, PANEL_WIDTH);
                sum.scale(whole);
                for (int r = 0; state && r < R; r++)
                    for (int c = 0; c < 2; c++)
                        total = V::fma(sum.at[r][c], V::load(state + at + r * PANEL_WIDTH + c * V::N), total);
            } else {
                sum.clear();
            }
            sum.template add<1>(w.C + n, s.ld_n(), w.dy_start + panel * s.tokens_panel(), PANEL_WIDTH,
                                least(w.documents.first, L));
            sum.store(dstate + at, PANEL_WIDTH);
        });
    return total.sum();
}

// dB_t and dC_t through the scores, once for all heads.
static void backward_group(const Scan& s, const BackwardSpace& w, i64 L) {
    i64 ld = s.ld_l();
    transpose(w.dscores, ld, L, L, w.dscores_t, ld, round_up(L, PANEL_WIDTH));
    for (i64 j = 0; j < L; j += PANEL_WIDTH)
        in_tiles(s.N, [&](auto rows, i64 n) {
            const int R = decltype(rows)::value;
            Block<R> sum;
            sum.load(w.dB_t + n * ld + j, ld);
            sum.template add<1>(w.C + j * s.ld_n() + n, s.ld_n(), w.dscores + j * ld + j, ld, L - j);
            sum.store(w.dB_t + n * ld + j, ld);
            sum.load(w.dC_t + n * ld + j, ld);
            sum.template add<1>(w.B + n, s.ld_n(), w.dscores_t + j, ld, least<i64>(L, j + PANEL_WIDTH));
            sum.store(w.dC_t + n * ld + j, ld);
        });
}

// Where gradients go. x, dt, B, C: as the inputs, tokens one after another; the sums in double, one a batch row and head.
template <class T> struct ScanGrads {
    T *x, *dt, *B, *C;
    float *B_parts, *C_parts;  // instead of B and C: (parts, B, T, G, N), to be added up
    double *A, *D, *dt_bias;
    float* initial;
};

template <class T> struct BackwardTask {
    const Scan& s;
    BackwardSpace w;
    ScanInputs<T> in;  // of the batch row
    i64 b, h0, heads, part;
    const T* dy;
    const float *dfinal, *kept;
    const ScanGrads<T>& to;

    float* dstate(i64 r) const { return w.dstates + r * s.state(); }

    void load_group(i64 t, i64 L) {
        i64 n = h0 / s.R() * s.N, wide = round_up(L, PANEL_WIDTH), ld = s.ld_l();
        const T *B = in.B + t * s.B_row + n, *C = in.C + t * s.C_row + n;
        w.documents.find(s.ids ? s.ids + b * s.T : nullptr, t, L);
        to_rows(B, s.B_row, L, s.N, w.B, s.ld_n());
        to_rows(C, s.C_row, L, s.N, w.C, s.ld_n());
        transpose(B, s.B_row, L, s.N, w.B_t, ld, wide);
        transpose(C, s.C_row, L, s.N, w.C_t, ld, wide);
        pack_tiles(w.B_t, ld, L, s.N, w.B_tiles);
        token_products(s, w.C_t, w.B_t, L, true, w.scores);
        for (i64 i = 0; i < L; i++) {
            w.diagonal[i] = w.scores[i * ld + i];
            w.scores[i * ld + i] = 0;
        }
        clear(w.dscores, L * ld);
        clear(w.dB_t, s.N * ld);
        clear(w.dC_t, s.N * ld);
    }
    void load_head(i64 h, i64 t, i64 L) {
        const T *x = in.x + t * s.x_row + h * s.P, *grad = dy + ((b * s.T + t) * s.H + h) * s.P;
        i64 row = s.H * s.P, wide = round_up(L, PANEL_WIDTH);
        w.decays.find(s, in.dt + t * s.dt_row, h, L, w.documents);
        to_panels(x, s.x_row, L, s.P, w.x, s.tokens_panel());
        to_panels(grad, row, L, s.P, w.dy, s.tokens_panel());
        scale_panels(w.dy, w.decays.from_start, L, s.panels(), w.dy_start, s.tokens_panel());
        transpose(x, s.x_row, L, s.P, w.x_t, s.ld_l(), wide);
        transpose(grad, row, L, s.P, w.dy_t, s.ld_l(), wide);
    }
    void head_chunk(i64 r, i64 t, i64 L) {
        i64 h = h0 + r, chunk = t / s.L, sums = b * s.H + h;
        bool ending = dfinal || t + L < s.T;
        const float* state = chunk || s.initial ? kept + (sums * s.chunks() + chunk) * s.state() : nullptr;
        load_head(h, t, L);
        backward_weights(s, w, L);
        backward_scores(s, w, L);
        for (i64 i = 0; i < L; i++) w.weights[i * s.ld_l() + i] = w.diagonal[i];
        clear(w.by_start, L);
        clear(w.by_end, L);
        if (state) backward_state(s, state, w.dy_t, w.decays.from_start, L, w.C_t, w.dC_t, w.by_start);
        if (ending) backward_state(s, dstate(r), w.x_t, w.decays.arriving, L, w.B_t, w.dB_t, w.by_end);
        T* dx = to.x + ((b * s.T + t) * s.H + h) * s.P;
        to.D[sums] += backward_inputs(s, w, L, ending ? dstate(r) : nullptr, s.D[h], dx);
        steps(h, t, L, retreat_state(s, w, L, ending, state, dstate(r)));
    }
    // Gradients of dt, A and dt_bias from those of the steps and of the summed decays.
    void steps(i64 h, i64 t, i64 L, float whole) {
        i64 sums = b * s.H + h;
        float after = whole, before = 0;
        for (i64 i = L; i-- > 0;) w.dlog[i] = after += w.row[i] - w.column[i] + w.by_start[i];
        double dA = 0, dbias = 0;
        for (i64 i = 0; i < L; i++) {
            w.dlog[i] += before;
            before += w.by_end[i];
            dA += double(w.dlog[i]) * w.decays.step[i];
        }
        for (i64 i = 0; i < L; i += V::N) {
            V dstep = V::fma(V::load(w.dlog + i), V(s.A[h]), V::load(w.dstep + i));
            (dstep / (V(1.0f) + vexp(V::zero() - V::load(w.decays.raw + i)))).store(w.dstep + i);
        }
        T* ddt = to.dt + (b * s.T + t) * s.H + h;
        for (i64 i = 0; i < L; i++) {
            dbias += w.dstep[i];
            store_as(ddt + i * s.H, w.dstep[i]);
        }
        to.A[sums] += dA;
        to.dt_bias[sums] += dbias;
    }
    void store_group(i64 t, i64 L) {
        backward_group(s, w, L);
        i64 row = s.G * s.N, at = (b * s.T + t) * row + h0 / s.R() * s.N, parts = part * s.B * s.T * row;
        if (to.B_parts) {
            transpose(w.dB_t, s.ld_l(), s.N, L, to.B_parts + parts + at, row, s.N);
            transpose(w.dC_t, s.ld_l(), s.N, L, to.C_parts + parts + at, row, s.N);
        } else {
            transpose(w.dB_t, s.ld_l(), s.N, L, to.B + at, row, s.N);
            transpose(w.dC_t, s.ld_l(), s.N, L, to.C + at, row, s.N);
        }
    }
    void run() {
        for (i64 r = 0; dfinal && r < heads; r++) state_in(s, dfinal + (b * s.H + h0 + r) * s.P * s.N, dstate(r));
        for (i64 t = (s.chunks() - 1) * s.L; t >= 0; t -= s.L) {
            i64 L = least(s.L, s.T - t);
            load_group(t, L);
            for (i64 r = 0; r < heads; r++) head_chunk(r, t, L);
            store_group(t, L);
        }
        for (i64 r = 0; to.initial && r < heads; r++)
            state_out(s, dstate(r), to.initial + (b * s.H + h0 + r) * s.P * s.N);
    }
};

// Sum of n numbers over parts that lie `distance` apart.
template <class T> static void add_parts(const float* parts, i64 count, i64 distance, i64 n, T* sum) {
    for (i64 i = 0; i < n; i += V::N) {
        int wide = int(least<i64>(V::N, n - i));
        V total = V::load(parts + i, wide);
        for (i64 part = 1; part < count; part++) total = total + V::load(parts + part * distance + i, wide);
        total.store(sum + i, wide);
    }
}

// sums: (3, H) gradients of A, D and dt_bias.
template <class T>
static int scan_backward_of(const Scan& s, ScanInputs<T> in, const T* dy, const float* dfinal, const float* kept,
                            ScanGrads<T> to, float* sums, int threads) {
    const int most_parts = 4;  // each has its own gradients of B and C
    i64 parts = head_parts(s, threads, most_parts), heads = s.R() / parts, tasks = s.B * s.G * parts, n = s.T * s.G * s.N;
    threads = int(least<i64>(threads, tasks));
    Scratch scratch(BackwardSpace(s, heads, Cutter{nullptr}).used, threads);
    Buffer<float> partial(parts > 1 ? 2 * parts * s.B * n : 0);
    Buffer<double> heads_sums(3 * s.B * s.H);
    if (!scratch.ok() || !partial.ok() || !heads_sums.ok()) return NO_MEMORY;
    for (i64 i = 0; i < heads_sums.size; i++) heads_sums[i] = 0;
    to.A = heads_sums.data, to.D = to.A + s.B * s.H, to.dt_bias = to.D + s.B * s.H;
    to.B_parts = parts > 1 ? partial.data : nullptr, to.C_parts = partial.data + parts * s.B * n;
#pragma omp parallel num_threads(threads) if (s.work() > ALONE)
    {
        BackwardSpace space(s, heads, Cutter{scratch.mine()});
#pragma omp for schedule(static)
        for (i64 task = 0; task < tasks; task++) {
            i64 b = task / (s.G * parts), h0 = task % (s.G * parts) * heads;
            BackwardTask<T>{s, space, in.of(s, b), b, h0, heads, task % parts, dy, dfinal, kept, to}.run();
        }
        if (parts > 1) {
            i64 rows = s.B * s.T, width = s.G * s.N, all = rows * width;
#pragma omp for schedule(static)
            for (i64 row = 0; row < rows; row++) {
                add_parts(to.B_parts + row * width, parts, all, width, to.B + row * width);
                add_parts(to.C_parts + row * width, parts, all, width, to.C + row * width);
            }
        }
    }
    for (i64 i = 0; i < 3 * s.H; i++) {
        double total = 0;
        for (i64 b = 0; b < s.B; b++) total += heads_sums[(i / s.H * s.B + b) * s.H + i % s.H];
        sums[i] = float(total);
    }
    return DONE;
}
