extern "C" int EXPORT(paged_attention)(
    const void* q, const void* keys, const void* values, int type, const i64* table, i64 table_width, const i64* lengths,
    i64 n, i64 heads, i64 R, i64 Dh, i64 page_size, void* y, int threads) {
    if (type == F32)
        return attention_of((const float*)q, (const float*)keys, (const float*)values, table, table_width, lengths, n, heads, R, Dh,
                     page_size, (float*)y, threads);
    return attention_of((const bf16*)q, (const bf16*)keys, (const bf16*)values, table, table_width, lengths, n, heads, R, Dh,
                     page_size, (bf16*)y, threads);
}
