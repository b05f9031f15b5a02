// Loops over a row of any length: whole vectors, then one partial vector whose missing lanes read zero.

struct Whole {
    template <class T> V load(const T* p) const { return V::load(p); }
    template <class T> void store(V v, T* p) const { v.store(p); }
};
struct Part {
    int n;
    template <class T> V load(const T* p) const { return V::load(p, n); }
    template <class T> void store(V v, T* p) const { v.store(p, n); }
};

// body(lanes, i) for i = 0, V::N, 2 V::N, ... below n.
template <class F> static inline void over(i64 n, F body) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) body(Whole(), i);
    if (i < n) body(Part{int(n - i)}, i);
}

static inline V vsigmoid(V x) { return V(1.0f) / (V(1.0f) + vexp(V::zero() - x)); }
// Derivative of x sigmoid(x), s = sigmoid(x).
static inline V silu_slope(V x, V s) { return s * V::fma(x, V(1.0f) - s, V(1.0f)); }
