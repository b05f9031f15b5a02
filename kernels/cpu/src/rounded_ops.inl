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

// Rows as they are given, or of what their squared ReLU gives.
struct Given {
    const void* data;
    int type;
    bool squared;
    // Row m of I numbers; room: for I of them.
    const float* row(i64 m, i64 I, float* room) const {
        if (type == F32 && !squared) return (const float*)data + m * I;
        if (type == F32) std::memcpy(room, (const float*)data + m * I, I * sizeof(float));
        else widen_row((const bf16*)data + m * I, room, I);
        if (squared) squared_relu(room, I, 1.0f);
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
    return rounded_linear({hidden.data, F32, true}, M, down, D, F, y, y_type, threads);
}

static void product_of_expert(const char* rows, i64 stride, i64 M, const Weights& w, i64 first, i64 count, i64 I, float* y,
                              i64 ldy, char* room) {
    if (by_panels(w, M)) product_by_panels(rows, stride, M, w, first, count, I, {y, F32, ldy}, room);
    else product_rounded(rows, stride, M, w, first, count, I, y, ldy);
}

// Rows (n) sorted by expert and what becomes of them.
struct ExpertRows {
    const i64 *order, *ends, *expert_ids;
    i64 count_of(i64 e) const { return ends[e + 1] - ends[e]; }
    // Whether row r goes through panels with all of its expert's.
    bool by_panels(const Weights& w, i64 r) const { return ::by_panels(w, count_of(expert_ids[order[r]])); }
};

// total (S, count) = each token's sum over its experts, in the order of their numbers, of outputs `start` on.
static void experts_down(const ExpertRows& sorted, const RoundedRows& active, const Weights& down, const float* gates, i64 S,
                         i64 K, i64 E, i64 start, i64 count, i64 F, i64 D, float* part, float* total, char* room) {
    std::memset(total, 0, S * count * sizeof(float));
    for (i64 e = 0; e < E; e++) {
        const i64 first = sorted.ends[e], rows = sorted.count_of(e);
        if (!rows) continue;
        product_of_expert(active.at(first), active.stride, rows, down, e * D + start, count, F, part, count, room);
        for (i64 r = 0; r < rows; r++) {
            const i64 choice = sorted.order[first + r];
            float *to = total + choice / K * count, *from = part + r * count;
            const V gate(gates[choice]);
            over(count, [&](auto lanes, i64 i) {
                lanes.store(V::fma(gate, lanes.load(from + i), lanes.load(to + i)), to + i);
            });
        }
    }
}

static int rounded_experts(
    const Given& x, const Weights& up, const Weights& down, const i64* expert_ids, const float* gates, i64 S, i64 K, i64 E,
    i64 F, i64 D, void* y, int y_type, int threads) {
    const i64 n = S * K;
    Buffer<i64> order(n), ends(E + 1);
    int outcome = sort_choices(expert_ids, n, E, order, ends);
    if (outcome != DONE) return outcome;
    const ExpertRows sorted = {order.data, ends.data, expert_ids};
    Buffer<ExpertSlice> slices(E * ((F + SLICE - 1) / SLICE));
    if (!slices.ok()) return NO_MEMORY;
    const i64 n_up = expert_slices(ends, E, F, slices), slice = D < 2 * SLICE * threads ? SLICE / 2 : SLICE;
    i64 most = 0;
    for (i64 e = 0; e < E; e++) most = most_of(most, sorted.count_of(e));
    RoundedRows tokens(up, S, D), rows(up, n, D), active(down, n, F);
    Buffer<float> hidden(n * F), parts(threads * most * slice), totals(threads * S * slice);
    Buffer<float> wide(threads * most_of(F, D));
    Rooms rooms(threads, most_of(F, D));
    if (!tokens.ok() || !rows.ok() || !active.ok() || !hidden.ok() || !parts.ok() || !totals.ok() || !wide.ok() ||
        !rooms.ok())
        return NO_MEMORY;
    const i64 read = least(E, n);  // experts
#pragma omp parallel num_threads(threads) if (2 * F * D * (n + READING * read) > ALONE)
    {
        const int me = omp_get_thread_num();
        float* own = wide.at(me * most_of(F, D));
#pragma omp for schedule(static)
        for (i64 s = 0; s < S; s++) round_row(up, x.row(s, D, own), D, tokens.at(s), true);
#pragma omp for schedule(static)
        for (i64 r = 0; r < n; r++) {
            const i64 s = order[r] / K;
            if (up.type != INT4 || sorted.by_panels(up, r)) std::memcpy(rows.at(r), tokens.at(s), rows.stride);
            else round_row(up, x.row(s, D, own), D, rows.at(r));
        }
#pragma omp for schedule(dynamic, 1)
        for (i64 s = 0; s < n_up; s++) {
            const i64 e = slices[s].expert, start = slices[s].start, count = least(SLICE, F - start), first = ends[e];
            product_of_expert(rows.at(first), rows.stride, sorted.count_of(e), up, e * F + start, count, D,
                              hidden.at(first * F + start), F, rooms.own());
        }
        const Given squared = {hidden.data, F32, true};
#pragma omp for schedule(static)
        for (i64 r = 0; r < n; r++)
            round_row(down, squared.row(r, F, own), F, active.at(r), sorted.by_panels(down, r));
#pragma omp for schedule(dynamic, 1)
        for (i64 start = 0; start < D; start += slice) {
            const i64 count = least(slice, D - start);
            float* total = totals.at(me * S * slice);
            experts_down(sorted, active, down, gates, S, K, E, start, count, F, D, parts.at(me * most * slice), total,
                         rooms.own());
            store_part(total, count, y, y_type, S, D, start, count);
        }
    }
    return DONE;
}
