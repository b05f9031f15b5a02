extern "C" int EXPORT(draw_tokens)(
    const float* x, i64 rows, i64 n, i64 limit, const Draw* draws, i64* ids, double* log_probs, int threads) {
    if (rows * n * 4 <= ALONE) threads = 1;
    threads = int(least(i64(threads), rows));
    Arena measure = {nullptr, 0};
    draw_scratch(limit, measure);
    Buffer<char> memory(measure.used * threads + 64);
    if (!memory.ok()) return NO_MEMORY;
    char* start = memory.data + 63 - (uintptr_t(memory.data) + 63) % 64;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Arena arena = {start + omp_get_thread_num() * measure.used, 0};
        DrawScratch scratch = draw_scratch(limit, arena);
#pragma omp for schedule(dynamic, 1)
        for (i64 r = 0; r < rows; r++)
            if (draws[r].temperature >= 0)
                draw_row(x + r * n, n, limit, draws[r], scratch, ids + r, log_probs + 2 * r);
    }
    return DONE;
}
