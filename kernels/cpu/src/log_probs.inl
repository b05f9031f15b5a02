// Log-probabilities of targets, entropies, and their gradients. x: a row's logits or a part of them; sharp: 1 / temperature;
// z = sharp (x - top). O outputs (the vocabulary).

// Softmax of a part of a row: the largest logit, the sum of exp(z), the sum of z exp(z).
struct Softmax {
    double sum, moment;
    float top;
};

static const float LEAST_Z = -100;  // exp of it and of less counts nothing; keeps z exp(z) finite where a logit is -inf

template <bool MOMENT> static Softmax part_of(const float* x, i64 n, float sharp) {
    const float top = row_top(x, n);
    Softmax all{0.0, 0.0, top};
    if (top == -INFINITY) {  // nothing is possible here, or nothing is a number
        for (i64 i = 0; i < n; i++)
            if (x[i] != x[i]) all.sum = all.moment = NAN;
        return all;
    }
    const V scale(sharp), shift(top), bottom(LEAST_Z);
    for (i64 start = 0; start < n; start += SUMMED) {
        i64 i = start, stop = least(start + SUMMED, n);
        V sum[2] = {V::zero(), V::zero()}, moment[2] = {V::zero(), V::zero()};
        for (; i + 2 * V::N <= stop; i += 2 * V::N)
            for (int k = 0; k < 2; k++) {
                V z = V::max(bottom, (V::load(x + i + k * V::N) - shift) * scale), e = vexp(z);  // nan stays nan
                sum[k] = sum[k] + e;
                if (MOMENT) moment[k] = V::fma(e, z, moment[k]);
            }
        all.sum += (sum[0] + sum[1]).sum();
        if (MOMENT) all.moment += (moment[0] + moment[1]).sum();
        for (; i < stop; i += V::N) {
            float terms[V::N], places[V::N];
            int left = int(least(i64(V::N), stop - i));
            V z = V::max(bottom, (V::load(x + i, left) - shift) * scale), e = vexp(z);
            e.store(terms), z.store(places);
            for (int k = 0; k < left; k++) all.sum += terms[k], all.moment += MOMENT ? terms[k] * places[k] : 0.0f;
        }
    }
    return all;
}

// What is known of each row after its softmax. `entropies` may be null.
struct RowSoftmaxes {
    float sharp;
    const i64* targets;
    float *log_probs, *tops, *log_sums, *entropies;

    Softmax part(const float* x, i64 n) const {
        return entropies ? part_of<true>(x, n, sharp) : part_of<false>(x, n, sharp);
    }
    void settle(i64 r, Softmax all, float own) const {
        const double log_sum = std::log(all.sum);
        tops[r] = all.top, log_sums[r] = float(log_sum);
        log_probs[r] = float(double((own - all.top) * sharp) - log_sum);
        if (entropies) entropies[r] = float(log_sum - all.moment / all.sum);
    }
};

// Gradients to logits from those to log-probabilities and entropies; `entropies` and `dentropies` may both be null.
struct SoftmaxGradients {
    float sharp;
    const i64* targets;
    const float *tops, *log_sums, *entropies, *dlog_probs, *dentropies;

    // Outputs start .. start + n of row r; `to` may be x. With l = log p: dz = p (-g - h (l + H)), and g more at the target.
    template <class T> void write(i64 r, i64 start, const float* x, i64 n, T* to) const {
        const float g = sharp * dlog_probs[r], h = dentropies ? sharp * dentropies[r] : 0.0f;
        const float constant = -g - (dentropies ? h * entropies[r] : 0.0f);
        const i64 place = targets[r] - start;
        const bool here = place >= 0 && place < n;
        float own = here ? (x[place] - tops[r]) * sharp - log_sums[r] : 0.0f;
        const V scale(sharp), shift(tops[r]), log_sum(log_sums[r]), floor(SMALLEST_LOG_PROB), base(constant), slope(-h);
        for (i64 i = 0; i < n; i += V::N) {
            const int left = int(least(i64(V::N), n - i));
            V l = ((left < V::N ? V::load(x + i, left) : V::load(x + i)) - shift) * scale - log_sum;
            l = V::max(floor, l);  // nan stays nan
            V d = vexp(l) * V::fma(slope, l, base);
            if (left < V::N) d.store(to + i, left);
            else d.store(to + i);
        }
        if (!here) return;
        own = own < SMALLEST_LOG_PROB ? SMALLEST_LOG_PROB : own;
        store_as(to + place, std::fma(std::exp(own), constant - h * own, g));
    }
};

static bool outside(const i64* targets, i64 n, i64 O) {
    for (i64 r = 0; r < n; r++)
        if (targets[r] < 0 || targets[r] >= O) return true;
    return false;
}

static int log_probs_of(const float* logits, i64 n, i64 O, const RowSoftmaxes& all, int threads) {
    if (outside(all.targets, n, O)) return BAD_INDEX;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * O * 16 > ALONE)
    for (i64 r = 0; r < n; r++) all.settle(r, all.part(logits + r * O, O), logits[r * O + all.targets[r]]);
    return DONE;
}

static int log_probs_gradients(float* logits, i64 n, i64 O, const SoftmaxGradients& all, int threads) {
    if (outside(all.targets, n, O)) return BAD_INDEX;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * O * 16 > ALONE)
    for (i64 r = 0; r < n; r++) all.write(r, 0, logits + r * O, O, logits + r * O);
    return DONE;
}
