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
