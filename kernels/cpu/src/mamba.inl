// One token of many sequences through a Mamba-2 block's sequence mixing, on state slots in place.
// H heads, P head width, N state, G groups, C = H P + 2 G N channels, W taps.

struct MambaStep {
    i64 B, H, P, N, G, W;
    i64 x_stride, z_stride, dt_stride;  // of one sequence's row
    const i64* slots;
};

template <class X, class T, class K>
static void conv_row(const X* x, T* state, const K* taps, const K* bias, i64 C, i64 W, float* y) {
    for (i64 c = 0; c < C; c++) {
        T* past = state + c * (W - 1);
        float total = to_float(bias[c]);
        for (i64 w = 0; w < W - 1; w++) total += to_float(taps[c * W + w]) * to_float(past[w]);
        total += to_float(taps[c * W + W - 1]) * to_float(x[c]);
        for (i64 w = 0; w + 1 < W - 1; w++) past[w] = past[w + 1];
        if (W > 1) store_as(past + W - 2, to_float(x[c]));
        y[c] = total;
    }
    i64 c = 0;
    for (; c + V::N <= C; c += V::N) vsilu(V::load(y + c)).store(y + c);
    if (c < C) vsilu(V::load(y + c, int(C - c))).store(y + c, int(C - c));
}

// V::N channels of four taps in registers, for all sequences.
struct FourTaps {
    V taps[4], bias;
    template <class K> FourTaps(const K* w, const K* b) : bias(V::load(b)) {
        float part[4][V::N];
        for (int c = 0; c < V::N; c++)
            for (int i = 0; i < 4; i++) part[i][c] = to_float(w[4 * c + i]);
        for (int i = 0; i < 4; i++) taps[i] = V::load(part[i]);
    }
    template <class X, class T> void step(const X* x, T* past, float* y) const {
        V a, b, c, now = V::load(x);
        V::split3(V::load(past), V::load(past + V::N), V::load(past + 2 * V::N), a, b, c);
        V total = V::fma(taps[1], b, V::fma(taps[0], a, bias));
        vsilu(V::fma(taps[3], now, V::fma(taps[2], c, total))).store(y);
        V::join3(b, c, now, a, b, c);
        a.store(past), b.store(past + V::N), c.store(past + 2 * V::N);
    }
};

// C channels of n sequences, whose states lie at state + slots[m] * state_stride.
template <class X, class T, class K>
static void conv_rows(const X* x, i64 x_stride, T* state, i64 state_stride, const i64* slots, i64 n, const K* taps,
                      const K* bias, i64 C, i64 W, float* y, i64 y_stride) {
    i64 c = 0;
    for (; W == 4 && c + V::N <= C; c += V::N) {
        const FourTaps four(taps + 4 * c, bias + c);
        for (i64 m = 0; m < n; m++) four.step(x + m * x_stride + c, state + slots[m] * state_stride + 3 * c, y + m * y_stride + c);
    }
    for (i64 m = 0; m < n && c < C; m++)
        conv_row(x + m * x_stride + c, state + slots[m] * state_stride + (W - 1) * c, taps + c * W, bias + c, C - c, W,
                 y + m * y_stride + c);
}

// state (R, N) <- decay state + (step x) B^T; y = state C, for R rows at a time.
template <int R>
static inline void head_rows(float* state, const float* x, const float* B, const float* C, i64 N, float decay, float step,
                             float D, float* y) {
    V scale(decay), add[R], total[R];
    for (int r = 0; r < R; r++) add[r] = V(step * x[r]), total[r] = V::zero();
    i64 n = 0;
    for (; n + V::N <= N; n += V::N) {
        V b = V::load(B + n), c = V::load(C + n);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            V s = V::fma(add[r], b, V::load(state + r * N + n) * scale);
            s.store(state + r * N + n);
            total[r] = V::fma(s, c, total[r]);
        }
    }
    if (n < N) {
        int left = int(N - n);
        V b = V::load(B + n, left), c = V::load(C + n, left);
        for (int r = 0; r < R; r++) {
            V s = V::fma(add[r], b, V::load(state + r * N + n, left) * scale);
            s.store(state + r * N + n, left);
            total[r] = V::fma(s, c, total[r]);
        }
    }
    for (int r = 0; r < R; r++) y[r] = total[r].sum() + D * x[r];
}
static void head_step(float* state, const float* x, const float* B, const float* C, i64 P, i64 N, float decay, float step,
                      float D, float* y) {
    i64 p = 0;
    for (; p + 4 <= P; p += 4) head_rows<4>(state + p * N, x + p, B, C, N, decay, step, D, y + p);
    for (; p < P; p++) head_rows<1>(state + p * N, x + p, B, C, N, decay, step, D, y + p);
}

// Of the state in one step; with the floor of scan.inl. NaN passes.
static inline float decay_of(float step, float A_log) {
    float log = -step * std::exp(A_log);
    return std::exp(log < -60.0f ? -60.0f : log);
}

// values *= silu(gate).
template <class T> static void gate_row(float* values, const T* gate, i64 n) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) (V::load(values + i) * vsilu(V::load(gate + i))).store(values + i);
    for (; i < n; i++) values[i] *= to_float(gate[i]) / (1.0f + std::exp(-to_float(gate[i])));
}

template <class T, class K>
static int mamba_step_of(
    const MambaStep& m, const T* xBC, const T* dt, const T* z, T* conv_state, float* ssm_state, const K* taps,
    const K* bias, const float* A_log, const float* D, const float* dt_bias, const K* norm_weight, float eps, T* y,
    int threads) {
    i64 inner = m.H * m.P, groups = m.G * m.N, C = inner + 2 * groups, width = inner / m.G;
    Buffer<float> scratch(m.B * (C + inner));
    if (!scratch.ok()) return NO_MEMORY;
    float *mixed = scratch.data, *values = mixed + m.B * C;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (i64 c = 0; c < C; c += SLICE)
            conv_rows(xBC + c, m.x_stride, conv_state + c * (m.W - 1), C * (m.W - 1), m.slots, m.B, taps + c * m.W,
                      bias + c, least(SLICE, C - c), m.W, mixed + c, C);
#pragma omp for schedule(static)
        for (i64 task = 0; task < m.B * m.H; task++) {
            i64 b = task / m.H, h = task % m.H, g = h / (m.H / m.G);
            const float* row = mixed + b * C;
            float step = softplus(to_float(dt[b * m.dt_stride + h]) + dt_bias[h]);
            head_step(ssm_state + (m.slots[b] * m.H + h) * m.P * m.N, row + h * m.P, row + inner + g * m.N,
                      row + inner + groups + g * m.N, m.P, m.N, decay_of(step, A_log[h]), step, D[h],
                      values + b * inner + h * m.P);
        }
#pragma omp for schedule(static)
        for (i64 task = 0; task < m.B * m.G; task++) {
            i64 b = task / m.G, start = task % m.G * width;
            float* v = values + b * inner + start;
            const T* gate = z + b * m.z_stride + start;
            gate_row(v, gate, width);
            norm_group(v, norm_weight + start, width, eps, y + b * inner + start);
        }
    }
    return DONE;
}

template <class T>
static int mamba_step_typed(
    const MambaStep& m, const void* xBC, const void* dt, const void* z, void* conv_state, float* ssm_state, const void* taps,
    const void* bias, const void* norm_weight, int w_type, const float* A_log, const float* D, const float* dt_bias,
    float eps, void* y, int threads) {
    if (w_type == F32)
        return mamba_step_of(m, (const T*)xBC, (const T*)dt, (const T*)z, (T*)conv_state, ssm_state, (const float*)taps,
                      (const float*)bias, A_log, D, dt_bias, (const float*)norm_weight, eps, (T*)y, threads);
    return mamba_step_of(m, (const T*)xBC, (const T*)dt, (const T*)z, (T*)conv_state, ssm_state, (const bf16*)taps,
                      (const bf16*)bias, A_log, D, dt_bias, (const bf16*)norm_weight, eps, (T*)y, threads);
}
