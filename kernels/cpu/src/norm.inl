// RMSNorm, and Mamba-2's: of y silu(z), in groups. M rows of D values in G groups.

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

// A matrix whose rows lie `stride` values apart.
template <class T> struct Matrix {
    T* data;
    i64 stride;
    T* at(i64 m) const { return data + m * stride; }
};
struct Norm {
    i64 M, D, G;
    int threads;
    i64 width() const { return D / G; }
    bool small() const { return M * D <= 16384; }  // sharing out costs more than it gains
};

// Fills v with the values of one group and returns the sum of their squares. Meanwhile out, which is written next, and the
// rows that are read next (ahead) are fetched: the processor's own look-ahead stops at each row's end.
template <bool GATED, class T>
static inline float norm_values(const T* y, const T* z, i64 n, i64 y_ahead, i64 z_ahead, float* v, const T* out) {
    V total = V::zero();
    over(n, [&](auto lanes, i64 i) {
        __builtin_prefetch(y + i + y_ahead);
        __builtin_prefetch(out + i, 1);
        V a = lanes.load(y + i);
        if (GATED) {
            __builtin_prefetch(z + i + z_ahead);
            a = a * vsilu(lanes.load(z + i));
        }
        lanes.store(a, v + i);
        total = V::fma(a, a, total);
    });
    return total.sum();
}

// rstd (M, G) may be null.
template <bool GATED, class T>
static int norm_forward(const Norm& s, Matrix<const T> y, Matrix<const T> z, const float* w, float eps, T* out, float* rstd) {
    i64 n = s.width();
    Buffer<float> values(s.threads * n);
    if (!values.ok()) return NO_MEMORY;
#pragma omp parallel num_threads(s.threads) if (!s.small())
    {
        float* v = values.at(omp_get_thread_num() * n);
#pragma omp for schedule(static)
        for (i64 m = 0; m < s.M; m++) {
            for (i64 start = 0, g = 0; g < s.G; g++, start += n) {
                T* row = out + m * s.D + start;
                const T* gate = GATED ? z.at(m) + start : nullptr;
                float squares = norm_values<GATED>(y.at(m) + start, gate, n, y.stride, z.stride, v, row);
                float scale = 1.0f / std::sqrt(squares / float(n) + eps);
                if (rstd) rstd[m * s.G + g] = scale;
                over(n, [&](auto lanes, i64 i) {
                    lanes.store(lanes.load(v + i) * V(scale) * lanes.load(w + start + i), row + i);
                });
            }
        }
    }
    return DONE;
}

// What the backward pass reads and writes.
template <class T> struct NormGradients {
    Matrix<const T> y, z, dout;
    const float *w, *rstd;
    Matrix<T> dy, dz;
};

// One group of row m, from column `start` on, added to dw; gates: room for n values.
template <bool GATED, class T>
static inline void norm_group_backward(const NormGradients<T>& a, i64 m, i64 start, i64 n, float rstd, float* gates, float* dw) {
    const T *y = a.y.at(m) + start, *z = GATED ? a.z.at(m) + start : nullptr, *dout = a.dout.at(m) + start;
    T *dy = a.dy.at(m) + start, *dz = GATED ? a.dz.at(m) + start : nullptr;
    const float* w = a.w + start;
    V scale(rstd), dot = V::zero();
    over(n, [&](auto lanes, i64 i) {
        __builtin_prefetch(y + i + a.y.stride);
        __builtin_prefetch(dout + i + a.dout.stride);
        V v = lanes.load(y + i), d = lanes.load(dout + i);
        if (GATED) {
            __builtin_prefetch(z + i + a.z.stride);
            V gate = lanes.load(z + i), s = vsigmoid(gate);
            lanes.store(s, gates + i);
            v = v * gate * s;
        }
        v = v * scale * d;
        lanes.store(lanes.load(dw + start + i) + v, dw + start + i);
        dot = V::fma(v, lanes.load(w + i), dot);
    });
    V pull(-dot.sum() / float(n) * rstd);
    over(n, [&](auto lanes, i64 i) {
        V v = lanes.load(y + i), d = lanes.load(dout + i) * lanes.load(w + i);
        if (!GATED) return lanes.store(V::fma(v * scale, pull, d * scale), dy + i);
        V gate = lanes.load(z + i), s = lanes.load(gates + i), silu = gate * s;
        d = V::fma(v * silu * scale, pull, d * scale);
        lanes.store(d * silu, dy + i);
        lanes.store(d * v * silu_slope(gate, s), dz + i);
    });
}

// dw (D,) is the sum of the threads' own sums, in their order.
template <bool GATED, class T> static int norm_backward(const Norm& s, const NormGradients<T>& a, float* dw) {
    i64 n = s.width(), room = n + s.D;
    Buffer<float> scratch(s.threads * room);
    if (!scratch.ok()) return NO_MEMORY;
    for (i64 i = 0; i < scratch.size; i++) scratch[i] = 0;
#pragma omp parallel num_threads(s.threads) if (!s.small())
    {
        float *sums = scratch.at(omp_get_thread_num() * room), *gates = sums + s.D;
#pragma omp for schedule(static)
        for (i64 m = 0; m < s.M; m++)
            for (i64 g = 0; g < s.G; g++) norm_group_backward<GATED>(a, m, g * n, n, a.rstd[m * s.G + g], gates, sums);
    }
    for (i64 i = 0; i < s.D; i++) dw[i] = 0;
    for (int t = 0; t < s.threads; t++)
        for (i64 i = 0; i < s.D; i++) dw[i] += scratch[t * room + i];
    return DONE;
}
