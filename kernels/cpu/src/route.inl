// The router of a mixture of experts. S tokens, D model width, E experts, K chosen experts a token.

static const float ROUTE_EPSILON = 1e-20f;

static void sigmoid_row(float* x, i64 n) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) (V(1.0f) / (V(1.0f) + vexp(V::zero() - V::load(x + i)))).store(x + i);
    if (i < n) (V(1.0f) / (V(1.0f) + vexp(V::zero() - V::load(x + i, int(n - i))))).store(x + i, int(n - i));
}

// One token. scores (E): products in, sigmoids out. chosen (K): the experts of largest score + bias, the largest first,
// of equal ones the lowest expert first; nan counts as largest, as in torch.topk. weights (K): sum to `scale`.
template <class Id>
static void route_row(float* scores, const float* bias, i64 E, i64 K, float scale, Id* chosen, float* weights) {
    sigmoid_row(scores, E);
    float* keys = weights;  // until the choice is made
    for (i64 e = 0; e < E; e++) {
        float key = scores[e] + bias[e];
        if (key != key) key = INFINITY;
        if (e >= K && !(key > keys[K - 1])) continue;
        i64 k = least(e, K - 1);
        for (; k > 0 && key > keys[k - 1]; k--) {
            keys[k] = keys[k - 1];
            chosen[k] = chosen[k - 1];
        }
        keys[k] = key;
        chosen[k] = Id(e);
    }
    float total = 0;
    for (i64 k = 0; k < K; k++) total += scores[chosen[k]];
    for (i64 k = 0; k < K; k++) weights[k] = scores[chosen[k]] / (total + ROUTE_EPSILON) * scale;
}

// Gradient of one token's products from those of its weights (K) and scores (E), either of which may be null.
static void route_row_backward(
    const float* scores, const i64* chosen, const float* dweights, const float* dscores, i64 E, i64 K, float scale,
    float* dproducts) {
    if (dscores) std::memcpy(dproducts, dscores, sizeof(float) * E);
    else std::memset(dproducts, 0, sizeof(float) * E);
    if (dweights) {
        float total = ROUTE_EPSILON, dot = 0;
        for (i64 k = 0; k < K; k++) {
            total += scores[chosen[k]];
            dot += scores[chosen[k]] * dweights[k];
        }
        for (i64 k = 0; k < K; k++) dproducts[chosen[k]] += scale / total * (dweights[k] - dot / total);
    }
    for (i64 e = 0; e < E; e++) dproducts[e] *= scores[e] * (1 - scores[e]);
}

// Work below which waking the other threads costs more than they save.
static const i64 ROUTE_ALONE = 1 << 18, ROUTE_OUTPUTS = 8;

// scores (S, E), chosen and weights (S, K); rows null: scores already holds the products.
template <class W>
static int route_of(
    const float* rows, const W* w, const float* bias, i64 S, i64 D, i64 E, i64 K, float scale, float* scores, i64* chosen,
    float* weights, int threads) {
    i64 work = rows ? S * E * D : S * E * 64;
    i64 parts = (E + ROUTE_OUTPUTS - 1) / ROUTE_OUTPUTS;
#pragma omp parallel num_threads(threads) if (work > ROUTE_ALONE)
    {
        if (rows) {
#pragma omp for schedule(static)
            for (i64 p = 0; p < parts; p++) {
                i64 start = p * ROUTE_OUTPUTS, count = least(ROUTE_OUTPUTS, E - start);
                product(rows, D, S, w + start * D, count, D, scores + start, E);
            }
        }
#pragma omp for schedule(static)
        for (i64 s = 0; s < S; s++) route_row(scores + s * E, bias, E, K, scale, chosen + s * K, weights + s * K);
    }
    return DONE;
}

static int route_backward_of(
    const float* scores, const i64* chosen, const float* dweights, const float* dscores, i64 S, i64 E, i64 K, float scale,
    float* dproducts, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (S * E * 16 > ROUTE_ALONE)
    for (i64 s = 0; s < S; s++)
        route_row_backward(
            scores + s * E, chosen + s * K, dweights ? dweights + s * K : nullptr, dscores ? dscores + s * E : nullptr, E,
            K, scale, dproducts + s * E);
    return DONE;
}
