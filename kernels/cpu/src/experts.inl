// Routed experts for few tokens. S tokens, K chosen experts each, E experts, F hidden width, D model width.

// Rows sorted by expert: row r belongs to choice order[r]; expert e owns rows ends[e] .. ends[e + 1].
static int sort_choices(const i64* expert_ids, i64 n, i64 E, Buffer<i64>& order, Buffer<i64>& ends) {
    Buffer<i64> next(E + 1);
    if (!next.ok() || !order.ok() || !ends.ok()) return NO_MEMORY;
    for (i64 c = 0; c < n; c++)
        if (expert_ids[c] < 0 || expert_ids[c] >= E) return BAD_INDEX;
    std::memset(next.data, 0, sizeof(i64) * (E + 1));
    for (i64 c = 0; c < n; c++) next[expert_ids[c] + 1]++;
    for (i64 e = 0; e < E; e++) next[e + 1] += next[e];
    std::memcpy(ends.data, next.data, sizeof(i64) * (E + 1));
    for (i64 c = 0; c < n; c++) order[next[expert_ids[c]]++] = c;
    return DONE;
}

// Pieces of work: SLICE outputs of one expert that has rows. Returns how many there are.
struct ExpertSlice {
    i64 expert, start;
};
static i64 expert_slices(Buffer<i64>& ends, i64 E, i64 width, Buffer<ExpertSlice>& slices) {
    i64 count = 0;
    for (i64 e = 0; e < E; e++)
        if (ends[e + 1] > ends[e])
            for (i64 start = 0; start < width; start += SLICE) slices[count++] = {e, start};
    return count;
}

template <class W>
static int experts_of(
    const float* x, const W* up, const W* down, const i64* expert_ids, const float* gates, i64 S, i64 K, i64 E, i64 F,
    i64 D, void* y, int y_type, int threads) {
    Buffer<i64> order(S * K), ends(E + 1);
    int sorted = sort_choices(expert_ids, S * K, E, order, ends);
    if (sorted != DONE) return sorted;
    Buffer<ExpertSlice> up_slices(E * ((F + SLICE - 1) / SLICE)), down_slices(E * ((D + SLICE - 1) / SLICE));
    if (!up_slices.ok() || !down_slices.ok()) return NO_MEMORY;
    i64 n_up = expert_slices(ends, E, F, up_slices), n_down = expert_slices(ends, E, D, down_slices);
    Buffer<float> rows(S * K * D), hidden(S * K * F), out(S * K * D);
    if (!rows.ok() || !hidden.ok() || !out.ok()) return NO_MEMORY;
    const i64 read = least(E, S * K);  // experts
#pragma omp parallel num_threads(threads) if (2 * F * D * (S * K + READING * read) > ALONE)
    {
#pragma omp for schedule(static)
        for (i64 r = 0; r < S * K; r++) std::memcpy(rows.at(r * D), x + order[r] / K * D, sizeof(float) * D);
#pragma omp for schedule(dynamic, 1)
        for (i64 s = 0; s < n_up; s++) {
            i64 e = up_slices[s].expert, start = up_slices[s].start, count = least(SLICE, F - start);
            i64 first = ends[e], n = ends[e + 1] - first;
            product(rows.at(first * D), D, n, up + (e * F + start) * D, count, D, hidden.at(first * F + start), F);
            for (i64 r = first; r < first + n; r++) squared_relu(hidden.at(r * F + start), count, gates[order[r]]);
        }
#pragma omp for schedule(dynamic, 1)
        for (i64 s = 0; s < n_down; s++) {
            i64 e = down_slices[s].expert, start = down_slices[s].start, count = least(SLICE, D - start);
            i64 first = ends[e], n = ends[e + 1] - first;
            product(hidden.at(first * F), F, n, down + (e * D + start) * F, count, F, out.at(first * D + start), D);
        }
        // Back to the order of the choices, so that the sum over a token's experts always has the same order.
#pragma omp for schedule(static)
        for (i64 r = 0; r < S * K; r++) std::memcpy(rows.at(order[r] * D), out.at(r * D), sizeof(float) * D);
#pragma omp for schedule(static)
        for (i64 s = 0; s < S; s++) {
            float* total = rows.at(s * K * D);
            for (i64 k = 1; k < K; k++)
                for (i64 d = 0; d < D; d++) total[d] += total[k * D + d];
            if (y_type == F32) narrow_row(total, (float*)y + s * D, D);
            else narrow_row(total, (bf16*)y + s * D, D);
        }
    }
    return DONE;
}
