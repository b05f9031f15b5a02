// Dense products of few rows: y = x w^T, squared-ReLU MLP.

// Outputs a thread takes at a time: enough to stream, few enough to share out.
static const i64 SLICE = 64;

// float rows of x: x itself, or a widened copy.
struct Rows {
    Buffer<float> copy;
    const float* data;
    Rows(const void* x, int type, i64 M, i64 I) : copy(type == F32 ? 0 : M * I), data((const float*)x) {
        if (type == F32 || !copy.ok()) return;
        widen_row((const bf16*)x, copy.data, M * I);
        data = copy.data;
    }
    bool ok() const { return copy.ok(); }
};
static void store_part(const float* part, i64 ld_part, void* y, int type, i64 M, i64 O, i64 start, i64 count) {
    for (i64 m = 0; m < M; m++) {
        if (type == F32) narrow_row(part + m * ld_part, (float*)y + m * O + start, count);
        else narrow_row(part + m * ld_part, (bf16*)y + m * O + start, count);
    }
}

template <class W>
static int linear_of(const float* x, i64 M, const W* w, i64 O, i64 I, void* y, int y_type, int threads) {
    i64 slices = (O + SLICE - 1) / SLICE;
    Buffer<float> parts(threads * M * SLICE);
    if (!parts.ok()) return NO_MEMORY;
#pragma omp parallel num_threads(threads) if (O * I * (M + READING) > ALONE)
    {
        float* part = parts.at(omp_get_thread_num() * M * SLICE);
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
    }
    return DONE;
}

static inline void squared_relu(float* x, i64 n, float gate) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) {
        V a = V::max(V::zero(), V::load(x + i));  // nan stays nan
        (a * a * V(gate)).store(x + i);
    }
    for (; i < n; i++) {
        float a = x[i] < 0 ? 0 : x[i];
        x[i] = a * a * gate;
    }
}

template <class W>
static int mlp_of(const float* x, i64 M, const W* up, const W* down, i64 F, i64 D, void* y, int y_type, int threads) {
    Buffer<float> hidden(M * F), parts(threads * M * SLICE);
    if (!hidden.ok() || !parts.ok()) return NO_MEMORY;
#pragma omp parallel num_threads(threads) if (2 * F * D * (M + READING) > ALONE)
    {
        float* part = parts.at(omp_get_thread_num() * M * SLICE);
#pragma omp for schedule(static)
        for (i64 start = 0; start < F; start += SLICE) {
            i64 count = least(SLICE, F - start);
            product(x, D, M, up + start * D, count, D, hidden.at(start), F);
            for (i64 m = 0; m < M; m++) squared_relu(hidden.at(m * F + start), count, 1.0f);
        }
#pragma omp for schedule(static)
        for (i64 start = 0; start < D; start += SLICE) {
            i64 count = least(SLICE, D - start);
            product(hidden.data, F, M, down + start * F, count, F, part, SLICE);
            store_part(part, SLICE, y, y_type, M, D, start, count);
        }
    }
    return DONE;
}
