extern "C" int EXPORT(log_probs)(
    const float* logits, i64 n, i64 O, float sharp, const i64* targets, float* log_probs, float* tops, float* log_sums,
    float* entropies, int threads) {
    return log_probs_of(logits, n, O, {sharp, targets, log_probs, tops, log_sums, entropies}, threads);
}

// The logits become their gradients.
extern "C" int EXPORT(log_probs_backward)(
    float* logits, i64 n, i64 O, float sharp, const i64* targets, const float* tops, const float* log_sums,
    const float* entropies, const float* dlog_probs, const float* dentropies, int threads) {
    return log_probs_gradients(logits, n, O, {sharp, targets, tops, log_sums, entropies, dlog_probs, dentropies}, threads);
}
