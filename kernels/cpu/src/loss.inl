// Softmax of logits, row by row while a row is in the cache. O outputs (the vocabulary), n rows.

static const float SMALLEST_LOG_PROB = -60.0f;  // as in eager/loss.py: keeps products free of subnormal numbers

template <class T> static float row_top(const T* x, i64 O) {
    V top[4] = {V(-INFINITY), V(-INFINITY), V(-INFINITY), V(-INFINITY)};
    i64 i = 0;
    for (; i + 4 * V::N <= O; i += 4 * V::N)
        for (int k = 0; k < 4; k++) top[k] = V::max(top[k], V::load(x + i + k * V::N));
    float most = V::max(V::max(top[0], top[1]), V::max(top[2], top[3])).top();
    for (; i < O; i++) most = most_of(most, to_float(x[i]));
    return most;
}

// Numbers that a row adds up in float before they join a double.
static const i64 ROW_SUMMED = 8192;

// Sum of exp(x - top); with WRITE the terms replace x, none below exp(SMALLEST_LOG_PROB).
template <bool WRITE, class T> static float row_exp(T* x, i64 O, float top) {
    const V shift(top), floor(SMALLEST_LOG_PROB);
    double total = 0;
    for (i64 start = 0; start < O; start += ROW_SUMMED) {
        i64 i = start, stop = least(start + ROW_SUMMED, O);
        V sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
        for (; i + 4 * V::N <= stop; i += 4 * V::N)
            for (int k = 0; k < 4; k++) {
                V e = vexp(V::max(floor, V::load(x + i + k * V::N) - shift));  // nan stays nan
                sum[k] = sum[k] + e;
                if (WRITE) e.store(x + i + k * V::N);
            }
        float part = ((sum[0] + sum[1]) + (sum[2] + sum[3])).sum(), rest[V::N];
        for (; i < stop; i += V::N) {
            int left = int(least(i64(V::N), stop - i));
            V e = vexp(V::max(floor, V::load(x + i, left) - shift));
            e.store(rest);
            for (int k = 0; k < left; k++) part += rest[k];
            if (WRITE) e.store(x + i, left);
        }
        total += part;
    }
    return float(total);
}

// log_probs[r] = log softmax(logits[r])[targets[r]]. With `inverse`, logits[r] becomes the gradient of -log_probs[r]
// times a factor whose inverse is inverse[r]: softmax - onehot, without the pass that would divide by the sum.
template <class T>
static int softmax_of(T* logits, i64 n, i64 O, const i64* targets, float* log_probs, float* inverse, int threads) {
    for (i64 r = 0; r < n; r++)
        if (targets[r] < 0 || targets[r] >= O) return BAD_INDEX;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * O * 16 > ALONE)
    for (i64 r = 0; r < n; r++) {
        T* x = logits + r * O;
        const float top = row_top(x, O), own = to_float(x[targets[r]]) - top;
        const float sum = inverse ? row_exp<true>(x, O, top) : row_exp<false>(x, O, top);
        log_probs[r] = own - std::log(sum);
        if (!inverse) continue;
        inverse[r] = 1.0f / sum;
        store_as(x + targets[r], std::exp(own < SMALLEST_LOG_PROB ? SMALLEST_LOG_PROB : own) - sum);
    }
    return DONE;
}
