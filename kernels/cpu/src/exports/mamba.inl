extern "C" int EXPORT(mamba_step)(
    const void* xBC, const void* dt, const void* z, int type, i64 x_stride, i64 dt_stride, i64 z_stride, void* conv_state,
    float* ssm_state, i64 n_slots, const i64* slots, i64 B, i64 H, i64 P, i64 N, i64 G, i64 W, const void* taps,
    const void* bias, const void* norm_weight, int w_type, const float* A_log, const float* D, const float* dt_bias,
    float eps, void* y, int threads) {
    for (i64 b = 0; b < B; b++)
        if (slots[b] < 0 || slots[b] >= n_slots) return BAD_INDEX;
    MambaStep m = {B, H, P, N, G, W, x_stride, z_stride, dt_stride, slots};
    auto run = type == F32 ? mamba_step_typed<float> : mamba_step_typed<bf16>;
    return run(m, xBC, dt, z, conv_state, ssm_state, taps, bias, norm_weight, w_type, A_log, D, dt_bias, eps, y, threads);
}
