extern "C" int EXPORT(rms_norm)(
    const void* x, int x_type, const void* w, int w_type, i64 M, i64 D, float eps, void* y, int threads) {
    if (x_type == F32 && w_type == F32) return rms_norm_of((const float*)x, (const float*)w, M, D, eps, (float*)y, threads);
    if (x_type == F32) return rms_norm_of((const float*)x, (const bf16*)w, M, D, eps, (float*)y, threads);
    if (w_type == F32) return rms_norm_of((const bf16*)x, (const float*)w, M, D, eps, (bf16*)y, threads);
    return rms_norm_of((const bf16*)x, (const bf16*)w, M, D, eps, (bf16*)y, threads);
}
