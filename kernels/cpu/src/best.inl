// The most probable token of a row of logits, and the logarithm of the sum of the row's exponentials.

static float row_top(const float* x, i64 n) {
    V most(-INFINITY);
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) most = V::max(V::load(x + i), most);
    float top = most.top();
    for (; i < n; i++) top = most_of(x[i], top);
    return top;
}

// The first place of `value`, 0 where it is not (among nan).
static i64 place_of(float value, const float* x, i64 n) {
    const i64 STRETCH = 512;
    for (i64 start = 0; start < n; start += STRETCH) {
        i64 stop = least(start + STRETCH, n);
        if (row_top(x + start, stop - start) != value) continue;
        for (i64 i = start; i < stop; i++)
            if (x[i] == value) return i;
    }
    return 0;
}

// Sum of exp(x - top); nan where an entry is nan, or the largest is `top` and infinite.
static double exp_total(const float* x, i64 n, float top) {
    const V shift(top);
    double sum = 0;
    for (i64 start = 0; start < n; start += SUMMED) {
        i64 i = start, stop = least(start + SUMMED, n);
        V total = V::zero();
        for (; i + V::N <= stop; i += V::N) total = total + vexp(V::load(x + i) - shift);
        sum += total.sum();
        for (; i < stop; i++) sum += std::exp(x[i] - top);
    }
    return sum;
}

static double log_total(const float* x, i64 n, float top) { return double(top) + std::log(exp_total(x, n, top)); }

static void best_token_row(const float* x, i64 n, i64 limit, i64* id, float* total) {
    float best = row_top(x, limit), top = limit < n ? most_of(row_top(x + limit, n - limit), best) : best;
    *id = place_of(best, x, limit);
    *total = float(log_total(x, n, top));
}
