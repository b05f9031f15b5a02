extern "C" int EXPORT(route)(
    const void* x, int x_type, const void* w, int w_type, const float* bias, i64 S, i64 D, i64 E, i64 K, float scale,
    float* scores, i64* chosen, float* weights, int threads) {
    Rows rows(x, x_type, x ? S : 0, D);
    if (!rows.ok()) return NO_MEMORY;
    const float* data = x ? rows.data : nullptr;
    if (w_type == F32)
        return route_of(data, (const float*)w, bias, S, D, E, K, scale, scores, chosen, weights, threads);
    return route_of(data, (const bf16*)w, bias, S, D, E, K, scale, scores, chosen, weights, threads);
}

extern "C" int EXPORT(route_backward)(
    const float* scores, const i64* chosen, const float* dweights, const float* dscores, i64 S, i64 E, i64 K, float scale,
    float* dproducts, int threads) {
    return route_backward_of(scores, chosen, dweights, dscores, S, E, K, scale, dproducts, threads);
}
