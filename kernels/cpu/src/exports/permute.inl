extern "C" int EXPORT(group_choices)(
    const i64* expert_ids, i64 S, i64 K, i64 E, i64* order, i64* ends, uint8_t* fresh, int) {
    return group_choices(expert_ids, S, K, E, order, ends, fresh);
}

extern "C" int EXPORT(gather_rows)(
    const void* x, int x_type, const i64* order, i64 K, i64 n, i64 D, void* rows, int type, int threads) {
    if (x_type == F32 && type == F32) return gather_rows_of((const float*)x, order, K, n, D, (float*)rows, threads);
    if (x_type == F32) return gather_rows_of((const float*)x, order, K, n, D, (bf16*)rows, threads);
    if (type == F32) return gather_rows_of((const bf16*)x, order, K, n, D, (float*)rows, threads);
    return gather_rows_of((const bf16*)x, order, K, n, D, (bf16*)rows, threads);
}

extern "C" int EXPORT(scatter_rows)(
    const void* rows, int type, const i64* order, i64 K, const uint8_t* fresh, i64 n, i64 D, float* total, int threads) {
    if (type == F32) return scatter_rows_of((const float*)rows, order, K, fresh, n, D, total, threads);
    return scatter_rows_of((const bf16*)rows, order, K, fresh, n, D, total, threads);
}

// kept: null where hidden itself is kept, else its copy in bfloat16.
extern "C" int EXPORT(activate)(
    const void* hidden, int type, const float* gates, const i64* order, i64 n, i64 F, void* active, void* kept, int threads) {
    if (type == F32)
        return activate_of((const float*)hidden, gates, order, n, F, (float*)active, (bf16*)kept, threads);
    return activate_of((const bf16*)hidden, gates, order, n, F, (bf16*)active, (bf16*)kept, threads);
}

extern "C" int EXPORT(activate_backward)(
    const void* hidden, int hidden_type, const float* gates, const i64* order, i64 n, i64 F, void* dactive, void* active,
    int type, float* dgates, int threads) {
    if (type == BF16)
        return activate_backward_of((const bf16*)hidden, gates, order, n, F, (bf16*)dactive, (bf16*)active, dgates, threads);
    if (hidden_type == BF16)
        return activate_backward_of((const bf16*)hidden, gates, order, n, F, (float*)dactive, (float*)active, dgates, threads);
    return activate_backward_of((const float*)hidden, gates, order, n, F, (float*)dactive, (float*)active, dgates, threads);
}
