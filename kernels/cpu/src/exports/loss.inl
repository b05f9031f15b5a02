extern "C" int EXPORT(softmax)(
    void* logits, int type, i64 n, i64 O, const i64* targets, float* log_probs, float* inverse, int threads) {
    if (type == F32) return softmax_of((float*)logits, n, O, targets, log_probs, inverse, threads);
    return softmax_of((bf16*)logits, n, O, targets, log_probs, inverse, threads);
}
