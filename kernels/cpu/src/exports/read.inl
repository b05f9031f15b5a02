extern "C" int EXPORT(read)(const float* p, i64 n, i64 passes, int streams, i64 ahead, float* total, int threads) {
    *total = read_all(p, n, passes, streams, ahead, threads);
    return DONE;
}
