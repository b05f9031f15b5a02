// y = x w^T, squared-ReLU MLP and routed experts with weights as data and scale, for any number of rows: each row is
// rounded once, then every thread takes its outputs of all rows.

// Rows rounded for one matrix.
struct RoundedRows {
    Buffer<char> memory;
    char* data;
    i64 stride;
    RoundedRows(const Weights& w, i64 rows, i64 I) : memory(rows * rounded_row_bytes(w.type, I) + 64) {
        stride = rounded_row_bytes(w.type, I);
        data = memory.data + (64 - uintptr_t(memory.data) % 64) % 64;
    }
    bool ok() const { return memory.ok(); }
    char* at(i64 row) const { return data + row * stride; }
};

// Outputs a task takes: of many rows more, since each task packs all rows anew.
static i64 rounded_slice(i64 M, i64 O, int threads) {
    return M > 64 && O >= 8 * SLICE * threads ? 4 * SLICE : SLICE;
}

static int rounded_linear(
    const float* x, i64 M, const Weights& w, i64 O, i64 I, void* y, int y_type, int threads) {
    const i64 slice = rounded_slice(M, O, threads), slices = (O + slice - 1) / slice;
    RoundedRows rows(w, M, I);
    Buffer<float> parts(y_type == F32 ? 0 : threads * M * slice);
    if (!rows.ok() || !parts.ok()) return NO_MEMORY;
#pragma omp parallel num_threads(threads) if (O * I * (M + READING) > ALONE)
    {
#pragma omp for schedule(static)
        for (i64 m = 0; m < M; m++) round_row(w, x + m * I, I, rows.at(m));
        float* part = parts.at(y_type == F32 ? 0 : omp_get_thread_num() * M * slice);
#pragma omp for schedule(static)
        for (i64 s = 0; s < slices; s++) {
            const i64 start = s * slice, count = least(slice, O - start);
            if (y_type == F32) {
                product_rounded(rows.data, rows.stride, M, w, start, count, I, (float*)y + start, O);
            } else {
                product_rounded(rows.data, rows.stride, M, w, start, count, I, part, slice);
                store_part(part, slice, y, y_type, M, O, start, count);
            }
        }
    }
    return DONE;
}

static int rounded_mlp(const float* x, i64 M, const Weights& up, const Weights& down, i64 F, i64 D, void* y, int y_type,
                       int threads) {
    Buffer<float> hidden(M * F);
    if (!hidden.ok()) return NO_MEMORY;
    int outcome = rounded_linear(x, M, up, F, D, hidden.data, F32, threads);
    if (outcome != DONE) return outcome;
#pragma omp parallel for schedule(static) num_threads(threads) if (M * F > ALONE)
    for (i64 m = 0; m < M; m++) squared_relu(hidden.at(m * F), F, 1.0f);
    return rounded_linear(hidden.data, M, down, D, F, y, y_type, threads);
}

static int rounded_experts(
    const float* x, const Weights& up, const Weights& down, const i64* expert_ids, const float* gates, i64 S, i64 K, i64 E,
    i64 F, i64 D, void* y, int y_type, int threads) {
    const i64 n = S * K;
    Buffer<i64> order(n), ends(E + 1);
    int sorted = sort_choices(expert_ids, n, E, order, ends);
    if (sorted != DONE) return sorted;
    Buffer<ExpertSlice> up_slices(E * ((F + SLICE - 1) / SLICE)), down_slices(E * ((D + SLICE - 1) / SLICE));
    if (!up_slices.ok() || !down_slices.ok()) return NO_MEMORY;
    const i64 n_up = expert_slices(ends, E, F, up_slices), n_down = expert_slices(ends, E, D, down_slices);
    RoundedRows tokens(up, S, D), rows(up, n, D), active(down, n, F);
    Buffer<float> hidden(n * F), out(n * D), totals(threads * D);
    Buffer<i64> places(n);
    if (!tokens.ok() || !rows.ok() || !active.ok() || !hidden.ok() || !out.ok() || !totals.ok() || !places.ok())
        return NO_MEMORY;
    const i64 read = least(E, n);  // experts
#pragma omp parallel num_threads(threads) if (2 * F * D * (n + READING * read) > ALONE)
    {
#pragma omp for schedule(static)
        for (i64 s = 0; s < S; s++) round_row(up, x + s * D, D, tokens.at(s));
#pragma omp for schedule(static)
        for (i64 r = 0; r < n; r++) {
            std::memcpy(rows.at(r), tokens.at(order[r] / K), rows.stride);
            places[order[r]] = r;
        }
#pragma omp for schedule(dynamic, 1)
        for (i64 s = 0; s < n_up; s++) {
            const i64 e = up_slices[s].expert, start = up_slices[s].start, count = least(SLICE, F - start), first = ends[e];
            product_rounded(rows.at(first), rows.stride, ends[e + 1] - first, up, e * F + start, count, D,
                            hidden.at(first * F + start), F);
        }
#pragma omp for schedule(static)
        for (i64 r = 0; r < n; r++) {
            squared_relu(hidden.at(r * F), F, 1.0f);
            round_row(down, hidden.at(r * F), F, active.at(r));
        }
#pragma omp for schedule(dynamic, 1)
        for (i64 s = 0; s < n_down; s++) {
            const i64 e = down_slices[s].expert, start = down_slices[s].start, count = least(SLICE, D - start);
            const i64 first = ends[e];
            product_rounded(active.at(first), active.stride, ends[e + 1] - first, down, e * D + start, count, F,
                            out.at(first * D + start), D);
        }
        // A token's experts in the order of its choices, so that the sum always has the same order.
        float* total = totals.at(omp_get_thread_num() * D);
#pragma omp for schedule(static)
        for (i64 s = 0; s < S; s++) {
            for (i64 k = 0; k < K; k++) {
                const float *row = out.at(places[s * K + k] * D), gate = gates[s * K + k];
                for (i64 d = 0; d < D; d++) total[d] = k ? total[d] + gate * row[d] : gate * row[d];
            }
            if (y_type == F32) narrow_row(total, (float*)y + s * D, D);
            else narrow_row(total, (bf16*)y + s * D, D);
        }
    }
    return DONE;
}
