extern "C" int EXPORT(best_tokens)(const float* x, i64 rows, i64 n, i64 limit, i64* ids, float* totals, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (rows > 1 && rows * n * 4 > ALONE)
    for (i64 r = 0; r < rows; r++) best_token_row(x + r * n, n, limit, ids + r, totals + r);
    return DONE;
}
