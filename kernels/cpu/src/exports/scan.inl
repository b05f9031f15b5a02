// strides: between tokens and between batch rows, of x, dt, B and C.
static Scan scan_sizes(const i64* sizes, const i64* strides, const float* A, const float* D, const float* dt_bias,
                       const float* initial, const i64* ids) {
    return {sizes[0],   sizes[1],   sizes[2],   sizes[3],   sizes[4],   sizes[5],   sizes[6], strides[0],
            strides[1], strides[2], strides[3], strides[4], strides[5], strides[6], strides[7], A,
            D,          dt_bias,    initial,    ids};
}

// sizes: B, T, H, P, G, N, L. kept: room for the start states of all chunks, or none.
extern "C" int EXPORT(ssd_scan)(
    const void* x, const void* dt, const void* B, const void* C, int type, const i64* sizes, const i64* strides,
    const float* A, const float* D, const float* dt_bias, const float* initial, const i64* ids, void* y, float* final,
    float* kept, int threads) {
    Scan s = scan_sizes(sizes, strides, A, D, dt_bias, initial, ids);
    if (type == F32) {
        ScanInputs<float> in = {(const float*)x, (const float*)dt, (const float*)B, (const float*)C};
        return scan_forward_of(s, in, (float*)y, final, kept, threads);
    }
    ScanInputs<bf16> in = {(const bf16*)x, (const bf16*)dt, (const bf16*)B, (const bf16*)C};
    return scan_forward_of(s, in, (bf16*)y, final, kept, threads);
}

// dfinal: gradient of the final states, or none; dinitial: none where it is not asked for; sums: (3, H), gradients of A, D
// and dt_bias.
extern "C" int EXPORT(ssd_scan_backward)(
    const void* x, const void* dt, const void* B, const void* C, int type, const i64* sizes, const i64* strides,
    const float* A, const float* D, const float* dt_bias, const float* initial, const i64* ids, const void* dy,
    const float* dfinal, const float* kept, void* dx, void* ddt, void* dB, void* dC, float* sums, float* dinitial,
    int threads) {
    Scan s = scan_sizes(sizes, strides, A, D, dt_bias, initial, ids);
    if (type == F32) {
        ScanInputs<float> in = {(const float*)x, (const float*)dt, (const float*)B, (const float*)C};
        ScanGrads<float> to = {(float*)dx, (float*)ddt, (float*)dB, (float*)dC, nullptr, nullptr,
                               nullptr,    nullptr,     nullptr,    dinitial};
        return scan_backward_of(s, in, (const float*)dy, dfinal, kept, to, sums, threads);
    }
    ScanInputs<bf16> in = {(const bf16*)x, (const bf16*)dt, (const bf16*)B, (const bf16*)C};
    ScanGrads<bf16> to = {(bf16*)dx, (bf16*)ddt, (bf16*)dB, (bf16*)dC, nullptr, nullptr, nullptr, nullptr, nullptr, dinitial};
    return scan_backward_of(s, in, (const bf16*)dy, dfinal, kept, to, sums, threads);
}
