extern "C" int EXPORT(grouped_mlp)(
    const void* x, int x_type, const void* up, const void* down, int w_type, const i64* expert_ids, const float* gates,
    i64 S, i64 K, i64 E, i64 F, i64 D, void* y, int threads) {
    Rows rows(x, x_type, S, D);
    if (!rows.ok()) return NO_MEMORY;
    if (w_type == F32)
        return experts_of(rows.data, (const float*)up, (const float*)down, expert_ids, gates, S, K, E, F, D, y, x_type, threads);
    return experts_of(rows.data, (const bf16*)up, (const bf16*)down, expert_ids, gates, S, K, E, F, D, y, x_type, threads);
}
