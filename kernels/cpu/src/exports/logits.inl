extern "C" int EXPORT(log_probs_product)(
    const bf16* x, i64 M, const bf16* w, i64 O, i64 I, float sharp, const i64* targets, float* log_probs, float* tops,
    float* log_sums, float* entropies, int threads) {
    return log_probs_product(x, M, w, O, I, {sharp, targets, log_probs, tops, log_sums, entropies}, threads);
}

// out (M, O): gradients of the logits.
extern "C" int EXPORT(log_probs_product_backward)(
    const bf16* x, i64 M, const bf16* w, i64 O, i64 I, float sharp, const i64* targets, const float* tops,
    const float* log_sums, const float* entropies, const float* dlog_probs, const float* dentropies, bf16* out,
    int threads) {
    return log_probs_product_gradients(
        x, M, w, O, I, {sharp, targets, tops, log_sums, entropies, dlog_probs, dentropies}, out, threads);
}
