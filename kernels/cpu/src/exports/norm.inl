namespace {
template <class T>
int norm_typed(const Norm& s, const void* y, i64 y_stride, const void* z, i64 z_stride, const float* w, float eps, void* out,
               float* rstd) {
    Matrix<const T> values{(const T*)y, y_stride}, gate{(const T*)z, z_stride};
    if (z) return norm_forward<true>(s, values, gate, w, eps, (T*)out, rstd);
    return norm_forward<false>(s, values, gate, w, eps, (T*)out, rstd);
}
template <class T>
int norm_backward_typed(const Norm& s, const void* y, i64 y_stride, const void* z, i64 z_stride, const void* dout,
                        i64 dout_stride, const float* w, const float* rstd, void* dy, i64 dy_stride, void* dz, i64 dz_stride,
                        float* dw) {
    NormGradients<T> a{{(const T*)y, y_stride}, {(const T*)z, z_stride}, {(const T*)dout, dout_stride}, w, rstd,
                       {(T*)dy, dy_stride}, {(T*)dz, dz_stride}};
    return z ? norm_backward<true>(s, a, dw) : norm_backward<false>(s, a, dw);
}
}  // namespace

extern "C" int EXPORT(gated_norm)(
    const void* y, i64 y_stride, const void* z, i64 z_stride, int type, const float* w, i64 M, i64 D, i64 G, float eps,
    void* out, float* rstd, int threads) {
    Norm s{M, D, G, threads};
    auto norm = type == F32 ? norm_typed<float> : norm_typed<bf16>;
    return norm(s, y, y_stride, z, z_stride, w, eps, out, rstd);
}

extern "C" int EXPORT(gated_norm_backward)(
    const void* y, i64 y_stride, const void* z, i64 z_stride, const void* dout, i64 dout_stride, int type, const float* w,
    const float* rstd, i64 M, i64 D, i64 G, void* dy, i64 dy_stride, void* dz, i64 dz_stride, float* dw, int threads) {
    Norm s{M, D, G, threads};
    auto backward = type == F32 ? norm_backward_typed<float> : norm_backward_typed<bf16>;
    return backward(s, y, y_stride, z, z_stride, dout, dout_stride, w, rstd, dy, dy_stride, dz, dz_stride, dw);
}
