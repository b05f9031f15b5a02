// The C interface of one instruction set. Every function returns an Outcome.
// Bump ABI in native.py and in abi.cpp whenever a signature changes.

extern "C" int EXPORT(linear)(
    const void* x, int x_type, i64 M, const void* w, int w_type, i64 O, i64 I, void* y, int y_type, int threads) {
    Rows rows(x, x_type, M, I);
    if (!rows.ok()) return NO_MEMORY;
    if (w_type == F32) return linear_of(rows.data, M, (const float*)w, O, I, y, y_type, threads);
    return linear_of(rows.data, M, (const bf16*)w, O, I, y, y_type, threads);
}

extern "C" int EXPORT(squared_relu_mlp)(
    const void* x, int x_type, i64 M, const void* up, const void* down, int w_type, i64 F, i64 D, void* y, int y_type,
    int threads) {
    Rows rows(x, x_type, M, D);
    if (!rows.ok()) return NO_MEMORY;
    if (w_type == F32) return mlp_of(rows.data, M, (const float*)up, (const float*)down, F, D, y, y_type, threads);
    return mlp_of(rows.data, M, (const bf16*)up, (const bf16*)down, F, D, y, y_type, threads);
}

extern "C" int EXPORT(rms_norm)(
    const void* x, int x_type, const void* w, int w_type, i64 M, i64 D, float eps, void* y, int threads) {
    if (x_type == F32 && w_type == F32) return rms_norm_of((const float*)x, (const float*)w, M, D, eps, (float*)y, threads);
    if (x_type == F32) return rms_norm_of((const float*)x, (const bf16*)w, M, D, eps, (float*)y, threads);
    if (w_type == F32) return rms_norm_of((const bf16*)x, (const float*)w, M, D, eps, (bf16*)y, threads);
    return rms_norm_of((const bf16*)x, (const bf16*)w, M, D, eps, (bf16*)y, threads);
}

extern "C" int EXPORT(grouped_mlp)(
    const void* x, int x_type, const void* up, const void* down, int w_type, const i64* expert_ids, const float* gates,
    i64 S, i64 K, i64 E, i64 F, i64 D, void* y, int threads) {
    Rows rows(x, x_type, S, D);
    if (!rows.ok()) return NO_MEMORY;
    if (w_type == F32)
        return experts_of(rows.data, (const float*)up, (const float*)down, expert_ids, gates, S, K, E, F, D, y, x_type, threads);
    return experts_of(rows.data, (const bf16*)up, (const bf16*)down, expert_ids, gates, S, K, E, F, D, y, x_type, threads);
}

extern "C" int EXPORT(mamba_step)(
    const void* xBC, const void* dt, const void* z, int type, i64 x_stride, i64 dt_stride, i64 z_stride, void* conv_state,
    float* ssm_state, const i64* slots, i64 B, i64 H, i64 P, i64 N, i64 G, i64 W, const void* taps, const void* bias,
    const void* norm_weight, int w_type, const float* A_log, const float* D, const float* dt_bias, float eps, void* y,
    int threads) {
    MambaStep m = {B, H, P, N, G, W, x_stride, z_stride, dt_stride, slots};
    auto run = type == F32 ? mamba_step_typed<float> : mamba_step_typed<bf16>;
    return run(m, xBC, dt, z, conv_state, ssm_state, taps, bias, norm_weight, w_type, A_log, D, dt_bias, eps, y, threads);
}

extern "C" int EXPORT(paged_attention)(
    const void* q, const void* keys, const void* values, int type, const i64* table, i64 table_width, const i64* lengths,
    i64 n, i64 heads, i64 R, i64 Dh, i64 page_size, void* y, int threads) {
    if (type == F32)
        return attention_of((const float*)q, (const float*)keys, (const float*)values, table, table_width, lengths, n, heads, R, Dh,
                     page_size, (float*)y, threads);
    return attention_of((const bf16*)q, (const bf16*)keys, (const bf16*)values, table, table_width, lengths, n, heads, R, Dh,
                     page_size, (bf16*)y, threads);
}
