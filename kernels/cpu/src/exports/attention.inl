extern "C" int EXPORT(paged_attention)(
    const void* q, const void* keys, const void* values, int type, i64 pages, const i64* table, i64 table_width,
    const i64* lengths, i64 n, i64 heads, i64 R, i64 Dh, i64 page_size, void* y, int threads) {
    if (type == F32)
        return attention_of((const float*)q, (const float*)keys, (const float*)values, pages, table, table_width, lengths, n,
                            heads, R, Dh, page_size, (float*)y, threads);
    return attention_of((const bf16*)q, (const bf16*)keys, (const bf16*)values, pages, table, table_width, lengths, n, heads,
                        R, Dh, page_size, (bf16*)y, threads);
}

// `by`: strides of q, k and v, three each, in numbers; the last dimension is dense.
extern "C" int EXPORT(attention)(
    const void* q, const void* k, const void* v, const i64* by, int type, i64 B, i64 T, i64 S, i64 heads, i64 R, i64 Dh,
    const i64* starts, void* y, float* log_sums, int threads) {
    if (type == F32) {
        const float* qkv[3] = {(const float*)q, (const float*)k, (const float*)v};
        return attention_rows(qkv, (const Strides*)by, B, T, S, heads, R, Dh, starts, (float*)y, log_sums, threads);
    }
    const bf16* qkv[3] = {(const bf16*)q, (const bf16*)k, (const bf16*)v};
    return attention_rows(qkv, (const Strides*)by, B, T, S, heads, R, Dh, starts, (bf16*)y, log_sums, threads);
}

// `by`: strides of q, k, v and dout; all else is dense.
extern "C" int EXPORT(attention_backward)(
    const void* q, const void* k, const void* v, const void* dout, const i64* by, int type, const void* out,
    float* log_sums, i64 B, i64 T, i64 S, i64 heads, i64 R, i64 Dh, const i64* starts, void* dq, void* dk, void* dv,
    int threads) {
    if (type == F32) {
        const float* inputs[4] = {(const float*)q, (const float*)k, (const float*)v, (const float*)dout};
        return attention_gradients(inputs, (const Strides*)by, (const float*)out, log_sums, B, T, S, heads, R, Dh, starts,
                                   (float*)dq, (float*)dk, (float*)dv, threads);
    }
    const bf16* inputs[4] = {(const bf16*)q, (const bf16*)k, (const bf16*)v, (const bf16*)dout};
    return attention_gradients(inputs, (const Strides*)by, (const bf16*)out, log_sums, B, T, S, heads, R, Dh, starts,
                               (bf16*)dq, (bf16*)dk, (bf16*)dv, threads);
}

extern "C" int EXPORT(paged_queries)(
    const void* q, const void* keys, const void* values, int type, i64 pages, const i64* table, i64 table_width,
    const i64* query_lengths, const i64* key_lengths, i64 n, i64 heads, i64 R, i64 Dh, i64 page_size, void* y,
    int threads) {
    if (type == F32)
        return attention_pages((const float*)q, (const float*)keys, (const float*)values, pages, table, table_width,
                               query_lengths, key_lengths, n, heads, R, Dh, page_size, (float*)y, threads);
    return attention_pages((const bf16*)q, (const bf16*)keys, (const bf16*)values, pages, table, table_width,
                           query_lengths, key_lengths, n, heads, R, Dh, page_size, (bf16*)y, threads);
}
