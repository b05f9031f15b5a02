// RMSNorm.

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

template <class X, class W> static int rms_norm_of(const X* x, const W* w, i64 M, i64 D, float eps, X* y, int threads) {
    Buffer<float> rows(threads * D);
    if (!rows.ok()) return NO_MEMORY;
#pragma omp parallel num_threads(threads) if (M * D > 16384)
    {
        float* row = rows.at(omp_get_thread_num() * D);
#pragma omp for schedule(static)
        for (i64 m = 0; m < M; m++) {
            widen_row(x + m * D, row, D);
            norm_group(row, w, D, eps, y + m * D);
        }
    }
    return DONE;
}
