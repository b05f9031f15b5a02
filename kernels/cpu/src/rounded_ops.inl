// y = x w^T, squared-ReLU MLP and routed experts with weights as data and scale, for any number of rows: each row is
// rounded once, then every thread takes its outputs of all rows.

// Rows rounded for one matrix.
struct RoundedRows {
    Buffer<char> memory;
    char* data;
    i64 stride;
    RoundedRows(const Weights& w, i64 rows, i64 I) : memory((rows + SPARE_ROWS) * rounded_row_bytes(w.type, I) + 64) {
        stride = rounded_row_bytes(w.type, I);
        data = memory.data + (64 - uintptr_t(memory.data) % 64) % 64;
    }
    bool ok() const { return memory.ok(); }
    char* at(i64 row) const { return data + row * stride; }
};

// Rows as they are given.
struct Given {
    const void* data;
    int type;
    // Row m of I numbers; room: for I of them.
    const float* row(i64 m, i64 I, float* room) const {
        if (type == F32) return (const float*)data + m * I;
        widen_row((const bf16*)data + m * I, room, I);
        return room;
    }
};

// Where each thread lays out panels.
struct Rooms {
    Buffer<char> memory;
    i64 size;
    Rooms(int threads, i64 I) : memory(threads * panel_bytes(I) + 64), size(threads ? panel_bytes(I) : 0) {}
    bool ok() const { return memory.ok(); }
    char* own() const { return memory.data + (64 - uintptr_t(memory.data) % 64) % 64 + omp_get_thread_num() * size; }
};

// Outputs a task takes: of many rows more, since each task packs all rows anew.
static i64 rounded_slice(i64 M, i64 O, int threads) {
    return M > 64 && O >= 8 * SLICE * threads ? 4 * SLICE : SLICE;
}

static int rounded_linear(
    const Given& x, i64 M, const Weights& w, i64 O, i64 I, void* y, int y_type, int threads) {
    const bool panels = by_panels(w, M);
    const i64 slice = panels ? SLICE : rounded_slice(M, O, threads), slices = (O + slice - 1) / slice;
    RoundedRows rows(w, M, I);
    Buffer<float> parts(y_type == F32 || panels ? 0 : threads * M * slice);
    Rooms rooms(panels ? threads : 0, I);
    Buffer<float> wide(threads * I);
    if (!rows.ok() || !parts.ok() || !rooms.ok() || !wide.ok()) return NO_MEMORY;
#pragma omp parallel num_threads(threads) if (O * I * (M + READING) > ALONE)
    {
#pragma omp for schedule(static)
        for (i64 m = 0; m < M; m++)
            round_row(w, x.row(m, I, wide.at(omp_get_thread_num() * I)), I, rows.at(m), panels);
        float* part = parts.at(!parts.size ? 0 : omp_get_thread_num() * M * slice);
#pragma omp for schedule(static)
        for (i64 s = 0; s < slices; s++) {
            const i64 start = s * slice, count = least(slice, O - start);
            if (panels) {
                const Outputs to = Outputs{y, y_type, O}.from(0, start);
                product_by_panels(rows.data, rows.stride, M, w, start, count, I, to, rooms.own());
            } else if (y_type == F32) {
                product_rounded(rows.data, rows.stride, M, w, start, count, I, (float*)y + start, O);
            } else {
                product_rounded(rows.data, rows.stride, M, w, start, count, I, part, slice);
                store_part(part, slice, y, y_type, M, O, start, count);
            }
        }
    }
    return DONE;
}

static int rounded_mlp(const Given& x, i64 M, const Weights& up, const Weights& down, i64 F, i64 D, void* y, int y_type,
                       int threads) {
    Buffer<float> hidden(M * F);
    if (!hidden.ok()) return NO_MEMORY;
    int outcome = rounded_linear(x, M, up, F, D, hidden.data, F32, threads);
    if (outcome != DONE) return outcome;
#pragma omp parallel for schedule(static) num_threads(threads) if (M * F > ALONE)
    for (i64 m = 0; m < M; m++) squared_relu(hidden.at(m * F), F, 1.0f);
    return rounded_linear({hidden.data, F32}, M, down, D, F, y, y_type, threads);
}

static void product_of_expert(const char* rows, i64 stride, i64 M, const Weights& w, i64 first, i64 count, i64 I, float* y,
                              i64 ldy, char* room) {
    if (by_panels(w, M)) product_by_panels(rows, stride, M, w, first, count, I, {y, F32, ldy}, room);
    else product_rounded(rows, stride, M, w, first, count, I, y, ldy);
}

static int rounded_experts(
    const Given& x, const Weights& up, const Weights& down, const i64* expert_ids, const float* gates, i64 S, i64 K, i64 E,
    i64 F, i64 D, void* y, int y_type, int threads) {
    const i64 n = S * K;
    Buffer<i64> order(n), ends(E + 1);
    int sorted = sort_choices(expert_ids, n, E, order, ends);
    if (sorted != DONE) return sorted;
    Buffer<ExpertSlice> up_slices(E * ((F + SLICE - 1) / SLICE)), down_slices(E * ((D + SLICE - 1) / SLICE));
    if (!up_slices.ok() || !down_slices.ok()) return NO_MEMORY;
    const i64 n_up = expert_slices(ends, E, F, up_slices), n_down = expert_slices(ends, E, D, down_slices);
    // Of 4 bits, how rows are laid out depends on how many an expert has.
    Weights plain = up;
    if (up.type == INT4) plain.type = INT8;
    RoundedRows tokens(plain, S, D), rows(up, n, D), active(down, n, F);
    Buffer<float> hidden(n * F), out(n * D), totals(threads * D);
    Buffer<i64> places(n);
    Rooms rooms(threads, most_of(F, D));
    if (!tokens.ok() || !rows.ok() || !active.ok() || !hidden.ok() || !out.ok() || !totals.ok() || !places.ok() ||
        !rooms.ok())
        return NO_MEMORY;
    const i64 read = least(E, n);  // experts
    const auto rows_of = [&](i64 e) { return ends[e + 1] - ends[e]; };
#pragma omp parallel num_threads(threads) if (2 * F * D * (n + READING * read) > ALONE)
    {
#pragma omp for schedule(static)
        for (i64 s = 0; s < S; s++) round_row(plain, x.row(s, D, totals.at(omp_get_thread_num() * D)), D, tokens.at(s));
#pragma omp for schedule(static)
        for (i64 r = 0; r < n; r++) {
            const char* token = tokens.at(order[r] / K);
            std::memcpy(rows.at(r), token, up.type == INT4 ? ROUNDED_HEAD : rows.stride);
            if (up.type == INT4)
                spread((const int8_t*)token + ROUNDED_HEAD, D, by_panels(up, rows_of(expert_ids[order[r]])),
                       rows.at(r) + ROUNDED_HEAD);
            places[order[r]] = r;
        }
#pragma omp for schedule(dynamic, 1)
        for (i64 s = 0; s < n_up; s++) {
            const i64 e = up_slices[s].expert, start = up_slices[s].start, count = least(SLICE, F - start), first = ends[e];
            product_of_expert(rows.at(first), rows.stride, rows_of(e), up, e * F + start, count, D,
                              hidden.at(first * F + start), F, rooms.own());
        }
#pragma omp for schedule(static)
        for (i64 r = 0; r < n; r++) {
            squared_relu(hidden.at(r * F), F, 1.0f);
            round_row(down, hidden.at(r * F), F, active.at(r), by_panels(down, rows_of(expert_ids[order[r]])));
        }
#pragma omp for schedule(dynamic, 1)
        for (i64 s = 0; s < n_down; s++) {
            const i64 e = down_slices[s].expert, start = down_slices[s].start, count = least(SLICE, D - start);
            const i64 first = ends[e];
            product_of_expert(active.at(first), active.stride, rows_of(e), down, e * D + start, count, F,
                              out.at(first * D + start), D, rooms.own());
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
