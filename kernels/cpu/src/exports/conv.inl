namespace {
template <class X>
int conv_typed(i64 B, i64 T, i64 C, i64 W, const void* x, const void* past, i64 batch_stride, i64 step_stride, const i64* ids,
               const float* taps, const float* bias, void* out, int threads) {
    ConvInput<X> in{B, T, C, W, (const X*)x, (const X*)past, batch_stride, step_stride, ids, taps, bias};
    return conv_forward(in, (X*)out, threads);
}
template <class X>
int conv_backward_typed(i64 B, i64 T, i64 C, i64 W, const void* x, const void* past, i64 batch_stride, i64 step_stride,
                        const i64* ids, const float* taps, const float* bias, const void* dout, i64 dout_batch_stride,
                        i64 dout_step_stride, void* dx, i64 dx_batch_stride, i64 dx_step_stride, void* dpast, float* dtaps,
                        float* dbias, int threads) {
    ConvInput<X> in{B, T, C, W, (const X*)x, (const X*)past, batch_stride, step_stride, ids, taps, bias};
    ConvGradients<X> a{(const X*)dout, dout_batch_stride, dout_step_stride, (X*)dx, (X*)dpast, dx_batch_stride, dx_step_stride,
                       dtaps, dbias};
    return conv_backward(in, a, threads);
}
}  // namespace

extern "C" int EXPORT(causal_conv1d)(
    int type, i64 B, i64 T, i64 C, i64 W, const void* x, const void* past, i64 batch_stride, i64 step_stride, const i64* ids,
    const float* taps, const float* bias, void* out, int threads) {
    auto forward = type == F32 ? conv_typed<float> : conv_typed<bf16>;
    return forward(B, T, C, W, x, past, batch_stride, step_stride, ids, taps, bias, out, threads);
}

extern "C" int EXPORT(causal_conv1d_backward)(
    int type, i64 B, i64 T, i64 C, i64 W, const void* x, const void* past, i64 batch_stride, i64 step_stride, const i64* ids,
    const float* taps, const float* bias, const void* dout, i64 dout_batch_stride, i64 dout_step_stride, void* dx,
    i64 dx_batch_stride, i64 dx_step_stride, void* dpast, float* dtaps, float* dbias, int threads) {
    auto backward = type == F32 ? conv_backward_typed<float> : conv_backward_typed<bf16>;
    return backward(B, T, C, W, x, past, batch_stride, step_stride, ids, taps, bias, dout, dout_batch_stride,
                    dout_step_stride, dx, dx_batch_stride, dx_step_stride, dpast, dtaps, dbias, threads);
}
