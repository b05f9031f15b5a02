// What the forward and the backward pass of the chunked scan share: sizes, scratch, decays, documents.
// Letters as in ops.py; L tokens a chunk, R heads a group. A task walks the chunks of some heads of one group in order, so
// that their states stay in its core's cache. States lie as panels: element (n, p) of a head at
// (p / PANEL_WIDTH) * panel + n * PANEL_WIDTH + p % PANEL_WIDTH, with rows up to a multiple of UNIT that stay zero.

struct Scan {
    i64 B, T, H, P, G, N, L;
    i64 x_row, x_batch, dt_row, dt_batch, B_row, B_batch, C_row, C_batch;  // distances between tokens and batch rows
    const float *A, *D, *dt_bias, *initial;
    const i64* ids;  // (B, T), or none

    i64 R() const { return H / G; }
    i64 work() const { return B * T * H * P * (2 * N + least(L, T)); }
    i64 chunks() const { return (T + L - 1) / L; }
    i64 ld_l() const { return leading(L); }  // of matrices with a column a token; leaves 16 floats behind the last
    i64 ld_n() const { return leading(N); }
    i64 panels() const { return (P + PANEL_WIDTH - 1) / PANEL_WIDTH; }
    i64 panel() const { return round_up(N, UNIT) * PANEL_WIDTH; }
    i64 state() const { return panels() * panel(); }
    i64 tokens_panel() const { return L * PANEL_WIDTH; }
    const float* initial_of(i64 b, i64 h) const { return initial ? initial + (b * H + h) * P * N : nullptr; }
};

// Cuts one buffer into pieces of whole cache lines; without a buffer it only counts.
struct Cutter {
    float* base;
    i64 used = 0;
    float* take(i64 n) {
        float* piece = base ? base + used : nullptr;
        used += round_up(n, 16);
        return piece;
    }
};

// One zeroed piece of scratch a thread.
struct Scratch {
    i64 each;
    Buffer<float> data;
    Scratch(i64 floats, int threads) : each(floats), data(floats * threads + 16) {}
    bool ok() const { return data.ok(); }
    float* mine() {
        float* aligned = (float*)(((uintptr_t)data.data + 63) & ~(uintptr_t)63);
        float* piece = aligned + omp_get_thread_num() * each;
        std::memset(piece, 0, sizeof(float) * each);
        return piece;
    }
};

// log(1 + u) for u in [0, 1]: twice the inverse hyperbolic tangent of u / (2 + u), as an odd polynomial.
static inline V vlog1p(V u) {
    V s = u / (u + V(2.0f)), z = s * s;
    V p = V::fma(V(0.140122329f), z, V(0.139995697f));
    p = V::fma(p, z, V(0.200108496f));
    p = V::fma(p, z, V(0.333332066f));
    V twice = s + s;
    return V::fma(twice * z, p, twice);
}
// vexp stops at e^-87; a step of minus infinity must be no step at all.
static inline V exp_to_zero(V x) { return V::max(V::zero(), vexp(x) - vexp(V(-87.0f))); }
static inline V vsoftplus(V x) { return V::max(V::zero(), x) + vlog1p(exp_to_zero(V::min(x, V::zero() - x))); }

// e^-60 changes no result, and keeps exp, products and sums free of subnormal numbers, which cost 30 times as much.
static inline V decay(V log) { return vexp(V::max(V(-60.0f), V::min(V::zero(), log))); }

// Where documents start in a chunk.
struct Documents {
    i64 first;      // token of the first start, L when there is none: the tokens before it continue the start state
    i64 last;       // token of the last start, 0 when there is none: the tokens from it on reach the end state
    int *from, *to;  // of each token's document, inside the chunk

    explicit Documents(const Scan& s, Cutter& c) : from((int*)c.take(s.L)), to((int*)c.take(s.L)) {}
    void find(const i64* ids, i64 t, i64 L) {
        first = L, last = 0;
        for (i64 i = 0; i < L; i++) {
            if (ids && t + i && ids[t + i] != ids[t + i - 1]) {
                first = least(first, i);
                last = i;
            }
            from[i] = int(last);
        }
        for (i64 i = L; i-- > 0;) to[i] = i + 1 == L ? int(L) : from[i + 1] == from[i] ? to[i + 1] : int(i + 1);
    }
};

// Steps and decays of one head in one chunk.
struct Decays {
    float *raw, *step, *sum;     // dt + dt_bias, softplus of it, summed log decay up to and with the token
    float *from_start, *to_end;  // of the start state at each token, and of each token at the end; 0 across documents
    float* arriving;             // step * to_end: what of x arrives in the end state

    Decays(const Scan& s, Cutter& c)
        : raw(c.take(s.ld_l())), step(c.take(s.ld_l())), sum(c.take(s.ld_l())), from_start(c.take(s.ld_l())),
          to_end(c.take(s.ld_l())), arriving(c.take(s.ld_l())) {}

    template <class T> void find(const Scan& s, const T* dt, i64 h, i64 L, const Documents& documents) {
        i64 wide = round_up(L, PANEL_WIDTH);
        for (i64 i = 0; i < L; i++) raw[i] = to_float(dt[i * s.dt_row + h]) + s.dt_bias[h];
        for (i64 i = L; i < wide; i++) raw[i] = 0;
        for (i64 i = 0; i < wide; i += V::N) vsoftplus(V::load(raw + i)).store(step + i);
        float total = 0;
        for (i64 i = 0; i < L; i++) sum[i] = total += step[i] * s.A[h];
        for (i64 i = L; i < wide; i++) sum[i] = total;
        for (i64 i = 0; i < wide; i += V::N) {
            V log = V::load(sum + i);
            decay(log).store(from_start + i);
            decay(V(total) - log).store(to_end + i);
        }
        for (i64 i = documents.first; i < wide; i++) from_start[i] = 0;
        for (i64 i = 0; i < documents.last; i++) to_end[i] = 0;
        for (i64 i = 0; i < wide; i += V::N) (V::load(step + i) * V::load(to_end + i)).store(arriving + i);
    }
    float whole(i64 L) const { return from_start[L - 1]; }
};

// Rows in float, zeros up to a whole vector.
template <class T> static void to_rows(const T* from, i64 ld, i64 rows, i64 columns, float* to, i64 to_ld) {
    for (i64 r = 0; r < rows; r++)
        for (i64 c = 0; c < columns; c += V::N) {
            const T* row = from + r * ld + c;
            (columns - c >= V::N ? V::load(row) : V::load(row, int(columns - c))).store(to + r * to_ld + c);
        }
}

// (P, N) -> panels and back.
static void state_in(const Scan& s, const float* from, float* to) {
    for (i64 p = 0; p < s.P; p += PANEL_WIDTH, to += s.panel()) {
        transpose(from + p * s.N, s.N, least<i64>(PANEL_WIDTH, s.P - p), s.N, to, PANEL_WIDTH, PANEL_WIDTH);
        std::memset(to + s.N * PANEL_WIDTH, 0, sizeof(float) * (s.panel() - s.N * PANEL_WIDTH));
    }
}
static void state_out(const Scan& s, const float* from, float* to) {
    for (i64 p = 0; p < s.P; p += PANEL_WIDTH, from += s.panel()) {
        i64 width = least<i64>(PANEL_WIDTH, s.P - p);
        transpose(from, PANEL_WIDTH, s.N, width, to + p * s.N, s.N, s.N);
    }
}

// product[a][b] = sum_n left[n][a] right[n][b] where a tile has b <= a (lower) or b >= a (not lower).
static void token_products(const Scan& s, const float* left, const float* right, i64 L, bool lower, float* product) {
    i64 ld = s.ld_l();
    in_tiles(L, [&](auto rows, i64 i) {
        const int R = decltype(rows)::value;
        for (i64 j = lower ? 0 : i / PANEL_WIDTH * PANEL_WIDTH; j < (lower ? least(i + R, L) : L); j += PANEL_WIDTH) {
            Block<R> sum;
            sum.clear();
            sum.template add<1>(left + i, ld, right + j, ld, s.N);
            sum.store(product + i * ld + j, ld);
        }
    });
}

// Parts that a group's heads are cut into, so that threads have equal work; a part does the group's own work again.
static i64 head_parts(const Scan& s, int threads, i64 most) {
    const double group_work = 0.3;  // in units of a head's
    i64 best = 1;
    double least_time = 0;
    for (i64 parts = 1; parts <= s.R(); parts++) {
        if (s.R() % parts || parts > most) continue;
        i64 rounds = (s.B * s.G * parts + threads - 1) / threads;
        double time = double(rounds) * (double(s.R()) / double(parts) + group_work);
        if (parts == 1 || time < 0.97 * least_time) best = parts, least_time = time;
    }
    return best;
}
