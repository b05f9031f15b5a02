// Depthwise causal convolution over time, then SiLU. B batch, T time, C channels, W taps.

static const i64 CONV_ROWS = 4;       // steps that share loaded taps and sums
static const i64 CONV_STEPS = 16;     // steps whose gradients wait in the L1 cache for their successors'
static const i64 CONV_CHANNELS = 512;  // channels of such a tile
static const i64 MOST_TAPS = 16;

// The inputs: x (B, T, C) with strides, and past (B, W-1, C), the steps before it. ids (B, T) may be null.
template <class X> struct ConvInput {
    i64 B, T, C, W;
    const X *x, *past;
    i64 batch_stride, step_stride;
    const i64* ids;
    const float *taps, *bias;  // (W, C), (C,)

    const X* at(i64 b, i64 t) const {
        return t < 0 ? past + (b * (W - 1) + t + W - 1) * C : x + b * batch_stride + t * step_stride;
    }
    // Whether step t continues the document of the step before it; what precedes the row is the first document's.
    bool continues(i64 b, i64 t) const { return t <= 0 || !ids || ids[b * T + t] == ids[b * T + t - 1]; }
    // Number of steps before t, at most W-1, that t reads.
    i64 behind(i64 b, i64 t) const {
        i64 n = 0;
        while (n < W - 1 && continues(b, t - n)) n++;
        return n;
    }
    // Number of steps after t, at most W-1, that read t.
    i64 ahead(i64 b, i64 t) const {
        i64 n = 0;
        while (n < W - 1 && t + n + 1 < T && continues(b, t + n + 1)) n++;
        return n;
    }
};

// Where R steps from t on, and those before them, lie: step t + r reads rows[r + first .. r + W-1].
template <class X> struct ConvWindow {
    const X* rows[MOST_TAPS + CONV_ROWS];
    i64 first, count;
    // Takes CONV_ROWS steps where all of them read all their W taps, else one; no step at or after `end`.
    ConvWindow(const ConvInput<X>& in, i64 b, i64 t, i64 end, i64 channel) : first(0), count(CONV_ROWS) {
        if (t + CONV_ROWS > end) count = 1;
        for (i64 r = 0; in.ids && r < count; r++)
            if (in.behind(b, t + r) < in.W - 1) count = 1;
        if (count == 1) first = in.W - 1 - in.behind(b, t);
        for (i64 k = 0; k < in.W - 1 + count; k++) rows[k] = in.at(b, t - (in.W - 1) + k) + channel;
    }
};

// Results before SiLU of R steps at channels i.
template <i64 R, class X, class L>
static inline void convolve(L lanes, const ConvWindow<X>& at, const float* taps, const float* bias, i64 C, i64 W, i64 i, V* total) {
    for (i64 r = 0; r < R; r++) total[r] = lanes.load(bias + i);
    for (i64 w = at.first; w < W; w++) {
        V tap = lanes.load(taps + w * C + i);
        for (i64 r = 0; r < R; r++) total[r] = V::fma(tap, lanes.load(at.rows[r + w] + i), total[r]);
    }
}

template <i64 R, class X>
static inline void conv_steps(const ConvInput<X>& in, const ConvWindow<X>& at, i64 channel, i64 n, X* out) {
    const X* next = at.rows[in.W - 1 + R - 1];
    over(n, [&](auto lanes, i64 i) {
        V total[R];
        for (i64 r = 0; r < R; r++) {
            __builtin_prefetch(next + (r + 1) * in.step_stride + i);
            __builtin_prefetch(out + r * in.C + i, 1);
        }
        convolve<R>(lanes, at, in.taps + channel, in.bias + channel, in.C, in.W, i, total);
        for (i64 r = 0; r < R; r++) lanes.store(vsilu(total[r]), out + r * in.C + i);
    });
}

template <class X> static int conv_forward(const ConvInput<X>& in, X* out, int threads) {
    const i64 STEPS = 64, CHANNELS = 512;
    i64 pieces = (in.T + STEPS - 1) / STEPS, strips = (in.C + CHANNELS - 1) / CHANNELS;
#pragma omp parallel for schedule(static) num_threads(threads) if (in.B * in.T * in.C > 16384)
    for (i64 task = 0; task < in.B * pieces * strips; task++) {
        i64 b = task / (pieces * strips), channel = task % strips * CHANNELS, n = least(CHANNELS, in.C - channel);
        i64 start = task / strips % pieces * STEPS, end = least(start + STEPS, in.T);
        for (i64 t = start; t < end;) {
            ConvWindow<X> at(in, b, t, end, channel);
            X* row = out + (b * in.T + t) * in.C + channel;
            if (at.count == CONV_ROWS) conv_steps<CONV_ROWS>(in, at, channel, n, row);
            else conv_steps<1>(in, at, channel, n, row);
            t += at.count;
        }
    }
    return DONE;
}

// Gradients: of out (with strides) in, of x (with strides), past, taps and bias out.
template <class X> struct ConvGradients {
    const X* dout;
    i64 batch_stride, step_stride;
    X *dx, *dpast;
    i64 dx_batch_stride, dx_step_stride;
    float *dtaps, *dbias;
};

// Gradients of R steps' results before SiLU into dtotal (rows ld apart); adds theirs to dtaps and dbias.
template <i64 R, class X>
static inline void conv_steps_backward(const ConvInput<X>& in, const ConvGradients<X>& a, const ConvWindow<X>& at, i64 channel,
                                       i64 n, const X* dout, float* dtotal, i64 ld) {
    const float *taps = in.taps + channel, *bias = in.bias + channel;
    float *dtaps = a.dtaps + channel, *dbias = a.dbias + channel;
    const X* next = at.rows[in.W - 1 + R - 1];
    over(n, [&](auto lanes, i64 i) {
        V total[R], sum = lanes.load(dbias + i);
        for (i64 r = 0; r < R; r++) {
            __builtin_prefetch(next + (r + 1) * in.step_stride + i);
            __builtin_prefetch(dout + (r + R) * a.step_stride + i);
        }
        convolve<R>(lanes, at, taps, bias, in.C, in.W, i, total);
        for (i64 r = 0; r < R; r++) {
            total[r] = lanes.load(dout + r * a.step_stride + i) * silu_slope(total[r], vsigmoid(total[r]));
            lanes.store(total[r], dtotal + r * ld + i);
            sum = sum + total[r];
        }
        lanes.store(sum, dbias + i);
        for (i64 w = at.first; w < in.W; w++) {
            sum = lanes.load(dtaps + w * in.C + i);
            for (i64 r = 0; r < R; r++) sum = V::fma(total[r], lanes.load(at.rows[r + w] + i), sum);
            lanes.store(sum, dtaps + w * in.C + i);
        }
    });
}

// Gradient of one step: dtotal points at its own results' row, its successors' follow ld apart.
template <class X>
static inline void conv_input_gradient(const float* dtotal, i64 ld, const float* last_tap, i64 C, i64 ahead, i64 n, X* dx) {
    over(n, [&](auto lanes, i64 i) {
        V total = V::zero();
        for (i64 k = 0; k <= ahead; k++) total = V::fma(lanes.load(last_tap - k * C + i), lanes.load(dtotal + k * ld + i), total);
        lanes.store(total, dx + i);
    });
}

// One sequence of n channels; dtotal: room for W-1 + CONV_STEPS rows of n.
// Rows of dtotal hold steps from - (W-1) on relative to t: an input's gradient waits for the W-1 steps that follow it.
template <class X>
static void conv_strip_backward(const ConvInput<X>& in, const ConvGradients<X>& a, i64 b, i64 channel, i64 n, float* dtotal) {
    i64 lag = in.W - 1;
    for (i64 i = 0; i < lag * n; i++) dtotal[i] = 0;
    for (i64 start = 0; start < in.T; start += CONV_STEPS) {
        i64 end = least(start + CONV_STEPS, in.T);
        for (i64 t = start; t < end;) {
            ConvWindow<X> at(in, b, t, end, channel);
            const X* dout = a.dout + b * a.batch_stride + t * a.step_stride + channel;
            float* row = dtotal + (lag + t - start) * n;
            if (at.count == CONV_ROWS) conv_steps_backward<CONV_ROWS>(in, a, at, channel, n, dout, row, n);
            else conv_steps_backward<1>(in, a, at, channel, n, dout, row, n);
            t += at.count;
        }
        i64 ready = end == in.T ? end : end - lag;
        for (i64 t = start - lag; t < ready; t++) {
            X* dx = t < 0 ? a.dpast + (b * lag + t + lag) * in.C : a.dx + b * a.dx_batch_stride + t * a.dx_step_stride;
            conv_input_gradient(dtotal + (lag + t - start) * n, n, in.taps + lag * in.C + channel, in.C, in.ahead(b, t), n,
                                dx + channel);
        }
        std::memmove(dtotal, dtotal + (end - start) * n, sizeof(float) * lag * n);
    }
}

// Threads share the channels out, so that every sum is one thread's, over time in order.
template <class X> static int conv_backward(const ConvInput<X>& in, const ConvGradients<X>& a, int threads) {
    i64 share = (in.C + threads - 1) / threads, parts = (share + CONV_CHANNELS - 1) / CONV_CHANNELS;
    i64 strip = ((share + parts - 1) / parts + V::N - 1) / V::N * V::N, strips = (in.C + strip - 1) / strip;
    i64 room = (in.W - 1 + CONV_STEPS) * strip;
    Buffer<float> dtotals(threads * room);
    if (!dtotals.ok()) return NO_MEMORY;
    for (i64 i = 0; i < in.C; i++) a.dbias[i] = 0;
    for (i64 i = 0; i < in.W * in.C; i++) a.dtaps[i] = 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (in.B * in.T * in.C > 16384)
    for (i64 s = 0; s < strips; s++) {
        i64 channel = s * strip, n = least(strip, in.C - channel);
        for (i64 b = 0; b < in.B; b++)
            conv_strip_backward(in, a, b, channel, n, dtotals.at(omp_get_thread_num() * room));
    }
    return DONE;
}
