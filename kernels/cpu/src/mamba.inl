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

// state (P, N) <- decay state + (step x) B^T; y = state C.
static void head_step(float* state, const float* x, const float* B, const float* C, i64 P, i64 N, float decay, float step,
                      float D, float* y) {
    for (i64 p = 0; p < P; p++) {
        float* row = state + p * N;
        V scale(decay), add(step * x[p]), total = V::zero();
        i64 n = 0;
        for (; n + V::N <= N; n += V::N) {
            V s = V::fma(add, V::load(B + n), V::load(row + n) * scale);
            s.store(row + n);
            total = V::fma(s, V::load(C + n), total);
        }
        if (n < N) {
            int left = int(N - n);
            V s = V::fma(add, V::load(B + n, left), V::load(row + n, left) * scale);
            s.store(row + n, left);
            total = V::fma(s, V::load(C + n, left), total);
        }
        y[p] = total.sum() + D * x[p];
    }
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
        for (i64 b = 0; b < m.B; b++)
            conv_row(xBC + b * m.x_stride, conv_state + m.slots[b] * C * (m.W - 1), taps, bias, C, m.W, mixed + b * C);
#pragma omp for schedule(static)
        for (i64 task = 0; task < m.B * m.H; task++) {
            i64 b = task / m.H, h = task % m.H, g = h / (m.H / m.G);
            const float* row = mixed + b * C;
            float step = softplus(to_float(dt[b * m.dt_stride + h]) + dt_bias[h]);
            head_step(ssm_state + (m.slots[b] * m.H + h) * m.P * m.N, row + h * m.P, row + inner + g * m.N,
                      row + inner + groups + g * m.N, m.P, m.N, std::exp(-step * std::exp(A_log[h])), step, D[h],
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
