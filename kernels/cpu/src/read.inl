// Reading memory as fast as it comes: what the bench holds the reading of weights against.

// The sum of n numbers from STREAMS places at once, each by vectors of its own; memory `ahead` bytes further on is asked
// for at the same time, unless 0.
template <int STREAMS> static float read_part(const float* p, i64 n, i64 ahead) {
    const int SUMS = 8, EACH = SUMS / STREAMS, LINE = 16;
    const i64 stretch = n / (STREAMS * EACH * V::N) * (EACH * V::N);
    V sums[SUMS];
    for (int s = 0; s < SUMS; s++) sums[s] = V::zero();
    for (i64 i = 0; i < stretch; i += EACH * V::N) {
        for (int s = 0; s < STREAMS; s++) {
            const float* from = p + s * stretch + i;
            if (ahead)
                for (int line = 0; line < EACH * V::N; line += LINE) V::prefetch((const char*)(from + line) + ahead);
            for (int k = 0; k < EACH; k++) sums[s * EACH + k] = sums[s * EACH + k] + V::load(from + k * V::N);
        }
    }
    for (int s = 1; s < SUMS; s++) sums[0] = sums[0] + sums[s];
    const float* rest = p + STREAMS * stretch;
    over(n - STREAMS * stretch, [&](auto lanes, i64 i) { sums[0] = sums[0] + lanes.load(rest + i); });
    return sums[0].sum();
}

static float read_by(int streams, const float* p, i64 n, i64 ahead) {
    switch (streams) {
        case 1: return read_part<1>(p, n, ahead);
        case 2: return read_part<2>(p, n, ahead);
        case 4: return read_part<4>(p, n, ahead);
        default: return read_part<8>(p, n, ahead);
    }
}

// Each thread reads a part of its own, `passes` times.
static float read_all(const float* p, i64 n, i64 passes, int streams, i64 ahead, int threads) {
    float total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const i64 count = omp_get_num_threads(), me = omp_get_thread_num();
        const i64 start = n * me / count, stop = n * (me + 1) / count;
        for (i64 pass = 0; pass < passes; pass++) {
            total += read_by(streams, p + start, stop - start, ahead);
            asm volatile("" ::: "memory");  // a pass is no repetition to the compiler
        }
    }
    return total;
}
