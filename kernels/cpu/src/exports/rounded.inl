extern "C" int EXPORT(rounded_linear)(
    const void* x, int x_type, i64 M, const Weights* w, i64 O, i64 I, void* y, int y_type, int threads) {
    return rounded_linear({x, x_type, false}, M, *w, O, I, y, y_type, threads);
}

extern "C" int EXPORT(rounded_mlp)(
    const void* x, int x_type, i64 M, const Weights* up, const Weights* down, i64 F, i64 D, void* y, int y_type,
    int threads) {
    return rounded_mlp({x, x_type, false}, M, *up, *down, F, D, y, y_type, threads);
}

extern "C" int EXPORT(rounded_experts)(
    const void* x, int x_type, const Weights* up, const Weights* down, const i64* expert_ids, const float* gates, i64 S,
    i64 K, i64 E, i64 F, i64 D, void* y, int threads) {
    return rounded_experts({x, x_type, false}, *up, *down, expert_ids, gates, S, K, E, F, D, y, x_type, threads);
}

#ifdef MORE_VNNI
// Whether the processor has the instructions for integers that this level may use beside its own.
extern "C" void EXPORT(use_vnni)(int on) { use_vnni = on; }
#endif
