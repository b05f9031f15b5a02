// Dense products of few rows: y = x w^T, squared-ReLU MLP, RMSNorm.

// Outputs a thread takes at a time: enough to stream, few enough to share out.
static const i64 SLICE = 64;

template <class X> static float* widen_rows(const void* x, i64 M, i64 I) {
    float* wide = (float*)std::malloc(sizeof(float) * M * I);
    for (i64 m = 0; m < M; m++) widen_row((const X*)x + m * I, wide + m * I, I);
    return wide;
}
// float rows of x: x itself, or a copy that the caller frees.
static const float* as_float(const void* x, int type, i64 M, i64 I, float** owned) {
    *owned = type == F32 ? nullptr : widen_rows<bf16>(x, M, I);
    return *owned ? *owned : (const float*)x;
}
static void store_part(const float* part, i64 ld_part, void* y, int type, i64 M, i64 O, i64 start, i64 count) {
    for (i64 m = 0; m < M; m++) {
        if (type == F32) narrow_row(part + m * ld_part, (float*)y + m * O + start, count);
        else narrow_row(part + m * ld_part, (bf16*)y + m * O + start, count);
    }
}

template <class W>
static void linear_of(const float* x, i64 M, const W* w, i64 O, i64 I, void* y, int y_type, int threads) {
    i64 slices = (O + SLICE - 1) / SLICE;
#pragma omp parallel num_threads(threads)
    {
        float* part = (float*)std::malloc(sizeof(float) * M * SLICE);
#pragma omp for schedule(static)
        for (i64 s = 0; s < slices; s++) {
            i64 start = s * SLICE, count = least(SLICE, O - start);
            if (y_type == F32) {
                product(x, I, M, w + start * I, count, I, (float*)y + start, O);
            } else {
                product(x, I, M, w + start * I, count, I, part, SLICE);
                store_part(part, SLICE, y, y_type, M, O, start, count);
            }
        }
        std::free(part);
    }
}

extern "C" void EXPORT(linear)(
    const void* x, int x_type, i64 M, const void* w, int w_type, i64 O, i64 I, void* y, int y_type, int threads) {
    float* owned;
    const float* rows = as_float(x, x_type, M, I, &owned);
    if (w_type == F32) linear_of(rows, M, (const float*)w, O, I, y, y_type, threads);
    else linear_of(rows, M, (const bf16*)w, O, I, y, y_type, threads);
    std::free(owned);
}

static inline void squared_relu(float* x, i64 n, float gate) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) {
        V a = V::max(V::load(x + i), V::zero());
        (a * a * V(gate)).store(x + i);
    }
    for (; i < n; i++) {
        float a = x[i] > 0 ? x[i] : 0;
        x[i] = a * a * gate;
    }
}

template <class W>
static void mlp_of(const float* x, i64 M, const W* up, const W* down, i64 F, i64 D, void* y, int y_type, int threads) {
    float* hidden = (float*)std::malloc(sizeof(float) * M * F);
#pragma omp parallel num_threads(threads)
    {
        float* part = (float*)std::malloc(sizeof(float) * M * SLICE);
#pragma omp for schedule(static)
        for (i64 start = 0; start < F; start += SLICE) {
            i64 count = least(SLICE, F - start);
            product(x, D, M, up + start * D, count, D, hidden + start, F);
            for (i64 m = 0; m < M; m++) squared_relu(hidden + m * F + start, count, 1.0f);
        }
#pragma omp for schedule(static)
        for (i64 start = 0; start < D; start += SLICE) {
            i64 count = least(SLICE, D - start);
            product(hidden, F, M, down + start * F, count, F, part, SLICE);
            store_part(part, SLICE, y, y_type, M, D, start, count);
        }
        std::free(part);
    }
    std::free(hidden);
}

extern "C" void EXPORT(squared_relu_mlp)(
    const void* x, int x_type, i64 M, const void* up, const void* down, int w_type, i64 F, i64 D, void* y, int y_type,
    int threads) {
    float* owned;
    const float* rows = as_float(x, x_type, M, D, &owned);
    if (w_type == F32) mlp_of(rows, M, (const float*)up, (const float*)down, F, D, y, y_type, threads);
    else mlp_of(rows, M, (const bf16*)up, (const bf16*)down, F, D, y, y_type, threads);
    std::free(owned);
}

// One group of values: y = v * w / rms(v).
template <class T, class W> static void norm_group(const float* v, const W* w, i64 n, float eps, T* y) {
    V total = V::zero();
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) {
        V a = V::load(v + i);
        total = V::fma(a, a, total);
    }
    float squares = total.sum();
    for (; i < n; i++) squares += v[i] * v[i];
    float scale = 1.0f / std::sqrt(squares / float(n) + eps);
    for (i = 0; i + V::N <= n; i += V::N) (V::load(v + i) * V(scale) * V::load(w + i)).store(y + i);
    for (; i < n; i++) store_as(y + i, v[i] * scale * to_float(w[i]));
}

template <class X, class W> static void rms_norm_of(const X* x, const W* w, i64 M, i64 D, float eps, X* y, int threads) {
#pragma omp parallel num_threads(threads) if (M * D > 16384)
    {
        float* row = (float*)std::malloc(sizeof(float) * D);
#pragma omp for schedule(static)
        for (i64 m = 0; m < M; m++) {
            widen_row(x + m * D, row, D);
            norm_group(row, w, D, eps, y + m * D);
        }
        std::free(row);
    }
}

extern "C" void EXPORT(rms_norm)(
    const void* x, int x_type, const void* w, int w_type, i64 M, i64 D, float eps, void* y, int threads) {
    if (x_type == F32 && w_type == F32) rms_norm_of((const float*)x, (const float*)w, M, D, eps, (float*)y, threads);
    else if (x_type == F32) rms_norm_of((const float*)x, (const bf16*)w, M, D, eps, (float*)y, threads);
    else if (w_type == F32) rms_norm_of((const bf16*)x, (const float*)w, M, D, eps, (bf16*)y, threads);
    else rms_norm_of((const bf16*)x, (const bf16*)w, M, D, eps, (bf16*)y, threads);
}
