// Buffers, and elementwise mathematics on vectors.

// What an exported function returns.
enum Outcome { DONE = 0, NO_MEMORY = 1, BAD_INDEX = 2 };

// Not the standard library's: a template that two units share could be linked from the one for the wrong processor.
template <class T> static inline T least(T a, T b) { return a < b ? a : b; }
template <class T> static inline T most_of(T a, T b) { return a > b ? a : b; }
static inline i64 round_up(i64 n, i64 step) { return (n + step - 1) / step * step; }

// Work of a call, in about products, below which waking the other threads costs more than they save.
static const i64 ALONE = 1 << 18, READING = 3;  // READING: products in the time of reading one number from afar

// Entries of a long row whose sum may be kept in float; beyond it sums are of such sums, in double.
static const i64 SUMMED = 512;

template <class T> struct Buffer {
    T* data;
    i64 size;
    explicit Buffer(i64 n) : data((T*)std::malloc(sizeof(T) * (n ? n : 1))), size(n) {}
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
    bool ok() const { return data != nullptr; }
    T& operator[](i64 i) { return data[i]; }
    T* at(i64 i) { return data + i; }
};

// Takes pieces of one allocation; with no memory behind it, it measures.
struct Arena {
    char* start;
    i64 used;
    template <class T> T* take(i64 count) {
        T* piece = start ? (T*)(start + used) : nullptr;
        used += (count * i64(sizeof(T)) + 63) / 64 * 64;
        return piece;
    }
};

// exp to about one unit in the last place of float: 2^n times a polynomial on [-ln2/2, ln2/2].
static inline V vexp(V x) {
    x = V::min(V(88.0f), V::max(V(-87.0f), x));  // nan is the second operand: it stays nan
    V n = V::round(x * V(1.44269504f));
    V r = V::fma(n, V(-0.693145752f), x);
    r = V::fma(n, V(-1.42860677e-6f), r);
    V p = V(1.98412698e-4f);
    p = V::fma(p, r, V(1.38888889e-3f));
    p = V::fma(p, r, V(8.33333333e-3f));
    p = V::fma(p, r, V(4.16666667e-2f));
    p = V::fma(p, r, V(1.66666667e-1f));
    p = V::fma(p, r, V(0.5f));
    p = V::fma(p, r, V(1.0f));
    p = V::fma(p, r, V(1.0f));
    return p * V::power_of_two(n);
}
static inline V vsilu(V x) { return x / (V(1.0f) + vexp(V::zero() - x)); }

static inline float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

template <class T> static void widen_row(const T* x, float* y, i64 n) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) V::load(x + i).store(y + i);
    if (i < n) V::load(x + i, int(n - i)).store(y + i, int(n - i));
}
template <class T> static void narrow_row(const float* x, T* y, i64 n) {
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) V::load(x + i).store(y + i);
    if (i < n) V::load(x + i, int(n - i)).store(y + i, int(n - i));
}
