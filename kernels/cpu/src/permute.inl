// What lies around the matrix products of experts with many tokens: choices sorted by expert, rows gathered and added
// back, the activation. S tokens, K chosen experts each; row r of the sorted choices belongs to choice order[r], which
// is of token order[r] / K.

// Numbers in the rows of a call below which waking the other threads costs more than they save.
static const i64 ROWS_ALONE = 1 << 14;

// fresh[r]: whether no row before r belongs to the same token, or REPEATED: row r - 1 does, and has the same expert.
static const uint8_t REPEATED = 2;
static int group_choices(const i64* expert_ids, i64 S, i64 K, i64 E, i64* order, i64* ends, uint8_t* fresh) {
    Buffer<i64> sorted(S * K), bounds(E + 1);
    Buffer<uint8_t> seen(S);
    if (!seen.ok()) return NO_MEMORY;
    int outcome = sort_choices(expert_ids, S * K, E, sorted, bounds);
    if (outcome != DONE) return outcome;
    std::memcpy(order, sorted.data, sizeof(i64) * S * K);
    std::memcpy(ends, bounds.data, sizeof(i64) * (E + 1));
    std::memset(seen.data, 0, S);
    for (i64 r = 0; r < S * K; r++) {
        i64 token = order[r] / K;
        const bool again = r && order[r - 1] / K == token && expert_ids[order[r - 1]] == expert_ids[order[r]];
        fresh[r] = again ? REPEATED : !seen[token];
        seen[token] = 1;
    }
    return DONE;
}

// ahead: the row that is needed next; rows lie anywhere, so the processor cannot foresee it.
template <class X, class T> static void convert_row(const X* x, T* y, i64 n, const void* ahead) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) {
        __builtin_prefetch((const char*)ahead + i * sizeof(X));
        V::load(x + i).store(y + i);
    }
    if (i < n) V::load(x + i, int(n - i)).store(y + i, int(n - i));
}

static const i64 AHEAD = 2;

template <class X, class T>
static int gather_rows_of(const X* x, const i64* order, i64 K, i64 n, i64 D, T* rows, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * D > ROWS_ALONE)
    for (i64 r = 0; r < n; r++) {
        const X* ahead = x + order[least(r + AHEAD, n - 1)] / K * D;
        convert_row(x + order[r] / K * D, rows + r * D, D, ahead);
    }
    return DONE;
}

template <class T> static void add_row(const T* row, float* y, i64 D, const float* ahead) {
    i64 i = 0;
    for (; i + V::N <= D; i += V::N) {
        __builtin_prefetch(ahead + i, 1);
        (V::load(y + i) + V::load(row + i)).store(y + i);
    }
    if (i < D) (V::load(y + i, int(D - i)) + V::load(row + i, int(D - i))).store(y + i, int(D - i));
}

// total (S, D) += the n rows, each onto its token; the first row of a token is written, so total needs no zeros.
// The rows belong to one expert: those of the same token follow one another, and the thread of the first adds them all.
template <class T>
static int scatter_rows_of(
    const T* rows, const i64* order, i64 K, const uint8_t* fresh, i64 n, i64 D, float* total, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * D > ROWS_ALONE)
    for (i64 r = 0; r < n; r++) {
        if (r && fresh[r] == REPEATED) continue;
        float* y = total + order[r] / K * D;
        const float* ahead = total + order[least(r + AHEAD, n - 1)] / K * D;
        if (fresh[r] == 1) convert_row(rows + r * D, y, D, ahead);
        else add_row(rows + r * D, y, D, ahead);
        for (i64 next = r + 1; next < n && fresh[next] == REPEATED; next++) add_row(rows + next * D, y, D, ahead);
    }
    return DONE;
}

// One row: active = gate relu(hidden)^2, in place or not; kept (may be null) gets hidden in another type.
template <class T, class H> static void activate_row(const T* hidden, float gate, i64 F, T* active, H* kept) {
    for (i64 i = 0; i < F; i += V::N) {
        int n = int(least<i64>(V::N, F - i));
        bool whole = n == V::N;
        V h = whole ? V::load(hidden + i) : V::load(hidden + i, n);
        if (kept) whole ? h.store(kept + i) : h.store(kept + i, n);
        V a = V::max(V::zero(), h);  // nan stays nan
        a = a * a * V(gate);
        whole ? a.store(active + i) : a.store(active + i, n);
    }
}

template <class T, class H>
static int activate_of(const T* hidden, const float* gates, const i64* order, i64 n, i64 F, T* active, H* kept, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * F > ROWS_ALONE)
    for (i64 r = 0; r < n; r++)
        activate_row(hidden + r * F, gates ? gates[order[r]] : 1.0f, F, active + r * F, kept ? kept + r * F : nullptr);
    return DONE;
}

// One row: dactive becomes the gradient of hidden, active is computed anew; returns the gradient of the gate.
template <class T, class H>
static float activate_row_backward(const H* hidden, float gate, i64 F, T* dactive, T* active) {
    V sum = V::zero();
    for (i64 i = 0; i < F; i += V::N) {
        int n = int(least<i64>(V::N, F - i));
        bool whole = n == V::N;
        V positive = V::max(V::zero(), whole ? V::load(hidden + i) : V::load(hidden + i, n));
        V d = whole ? V::load(dactive + i) : V::load(dactive + i, n);
        V square = positive * positive, dhidden = d * positive * V(2 * gate);
        sum = V::fma(d, square, sum);
        square = square * V(gate);
        whole ? square.store(active + i) : square.store(active + i, n);
        whole ? dhidden.store(dactive + i) : dhidden.store(dactive + i, n);
    }
    return sum.sum();
}

// gates, order and dgates may be null together; dgates is in the order of the choices.
template <class T, class H>
static int activate_backward_of(
    const H* hidden, const float* gates, const i64* order, i64 n, i64 F, T* dactive, T* active, float* dgates, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * F > ROWS_ALONE)
    for (i64 r = 0; r < n; r++) {
        float gate = gates ? gates[order[r]] : 1.0f;
        float dgate = activate_row_backward(hidden + r * F, gate, F, dactive + r * F, active + r * F);
        if (dgates) dgates[order[r]] = dgate;
    }
    return DONE;
}
