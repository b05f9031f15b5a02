// The blocks of a decoding step. All threads run each function together: `share` divides its loops, and waits at
// their ends. A sequence's numbers depend neither on its neighbours nor on the number of threads; but with tiles (level
// amx, bfloat16 weights) their last bits depend on whether a product has TILED_FROM rows.
// T: weights, S: conv states; pages have a type of their own, looked at where they are read and written.

template <class T, class S> struct DecodeStep {
    const Program& p;
    StepScratch& s;
    i64 n;

    OwnScratch& own() const { return s.own[omp_get_thread_num()]; }

    // body(task) for all tasks below count: each thread its own stretch of them in order, which it reads as one stream,
    // then what others have left. Where it must wait, it fetches `soon`, what it reads first after that.
    template <class F> void share(i64 count, const void* soon, F body) const {
        const i64 threads = omp_get_num_threads(), me = omp_get_thread_num(), loop = s.turns[me].loops++;
        // All threads are past the loop before this one, so nobody uses what counts the next one.
        s.turns[me].taken[(loop + 1) % 3] = 0;
        for (i64 i = 0; i < threads; i++) {
            const i64 t = (me + i) % threads, first = t * count / threads, last = (t + 1) * count / threads;
            i64* taken = &s.turns[t].taken[loop % 3];
            if (i && first + __atomic_load_n(taken, __ATOMIC_RELAXED) >= last) continue;
            for (i64 task; (task = first + __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED)) < last;) body(task);
        }
        __atomic_fetch_add(s.arrived, 1, __ATOMIC_ACQ_REL);
        wait_for(threads * (loop + 1), (const char*)soon);
    }

    // Threads that the system does not run are waited for without taking the processor from them.
    void wait_for(i64 all, const char* soon) const {
        const i64 LINE = 64, FETCHED = 16384, TURNS = 2000;
        i64 at = soon ? 0 : FETCHED;
        for (i64 turn = 0; __atomic_load_n(s.arrived, __ATOMIC_ACQUIRE) < all; turn++) {
            if (at < FETCHED) V::prefetch(soon + at), at += LINE;
            else if (turn < TURNS) _mm_pause();
            else sched_yield();
        }
    }

    // Outputs a task takes. With few rows the time is that of reading weights: small tasks end together.
    i64 slice() const { return n < 4 ? SLICE / 2 : SLICE; }
    i64 tasks(i64 outputs, i64 slice) const { return (outputs + slice - 1) / slice; }

    // Where this thread begins in a loop over the outputs of weights w (O, I).
    const void* first_of(const Weights& w, i64 O, i64 I, i64 slice) const {
        i64 task = omp_get_thread_num() * tasks(O, slice) / omp_get_num_threads();
        return (const char*)w.data + task * slice * weight_row_bytes(w.type, I);
    }
    // The same for a block, 0 <= i <= n_blocks; what stands behind them is the output projection.
    const void* first_of_block(i64 i) const {
        if (i == p.n_blocks) return p.logits ? first_of(p.head, p.V, p.D, slice()) : nullptr;
        const ProgramBlock& b = p.blocks[i];
        const i64 O[] = {inner_width(p) + channels(p) + p.H, query_width(p), b.F, b.F};
        return b.in.data ? first_of(b.in, O[b.kind], p.D, b.kind == MAMBA_BLOCK ? mamba_slice() : slice()) : nullptr;
    }
    const void* after(const ProgramBlock& b) const { return first_of_block(&b - p.blocks + 1); }

    void embed() const {
        share(n, first_of_block(0), [&](i64 m) {
            widen_row((const T*)p.embeddings + p.tokens[m] * p.D, s.x + m * p.D, p.D);
        });
    }

    // (n, D) rows. Of a single sequence each thread makes its own: that is sooner done than waited for.
    const float* norm(const void* weight, float* y, const void* soon) const {
        if (n == 1) {
            norm_group(s.x, (const T*)weight, p.D, float(p.eps), own().normed);
            return own().normed;
        }
        share(n, soon, [&](i64 m) { norm_group(s.x + m * p.D, (const T*)weight, p.D, float(p.eps), y + m * p.D); });
        return y;
    }
    const float* norm(const ProgramBlock& b) const { return norm(b.norm, s.normed, first_of_block(&b - p.blocks)); }

    // Rows x (count, I) as w multiplies them. Where there are few, each thread rounds its own: sooner done than waited for.
    Input input(const Weights& w, const float* x, i64 count, i64 I, i64 place = 0, bool panels = false) const {
        if (!is_rounded(w)) return {x, nullptr, 0, false};
        const i64 stride = rounded_row_bytes(w.type, I);
        if (n == 1) {
            char* own_rows = own().rounded[place];
            for (i64 m = 0; m < count; m++) round_row(w, x + m * I, I, own_rows + m * stride);
            return {x, own_rows, stride, false};
        }
        char* rows = s.rounded[place];
        share(count, w.data, [&](i64 m) { round_row(w, x + m * I, I, rows + m * stride, panels); });
        return {x, rows, stride, panels};
    }
    // Rows of all sequences; then for another matrix that reads them.
    Input input_of_all(const Weights& w, const float* x, i64 I, i64 place = 0) const {
        return input(w, x, n, I, place, by_panels_in_step(w, n));
    }
    Input input_like(const Input& first, const Weights& like, const Weights& w, const float* x, i64 I, i64 place) const {
        const bool same = like.type == w.type && (like.input_scale == w.input_scale ||
                                                  (like.input_scale && w.input_scale && *like.input_scale == *w.input_scale));
        const bool panels = by_panels_in_step(w, n);
        if (!same || (w.type == INT4 && first.panels != panels)) return input_of_all(w, x, I, place);
        return {first.x, first.rounded, first.stride, panels};
    }

    // y (M, count) = rows first_row .. first_row + M of x (rows, I) times outputs first .. first + count of w.
    void multiply(const Input& x, i64 first_row, i64 M, const Weights& w, i64 first, i64 count, i64 I, float* y,
                  i64 ldy) const {
        if (!x.rounded) return product(x.x + first_row * I, I, M, (const T*)w.data + first * I, count, I, y, ldy);
        const char* rows = x.rounded + first_row * x.stride;
        if (x.panels) product_by_panels(rows, x.stride, M, w, first, count, I, {y, F32, ldy}, own().room);
        else product_rounded(rows, x.stride, M, w, first, count, I, y, ldy);
    }

    // y (n, O) = x (n, I) w^T.
    void apply(const float* rows, i64 I, const Weights& w, i64 O, float* y) const {
        const Input x = input_of_all(w, rows, I);
        share(tasks(O, slice()), nullptr, [&](i64 task) {
            i64 start = task * slice();
            multiply(x, 0, n, w, start, least(slice(), O - start), I, y + start, O);
        });
    }

    // The residual stream += x (n, I) w^T.
    void add(const float* rows, i64 I, const Weights& w, const void* soon) const {
        const Input x = input_of_all(w, rows, I);
        float* part = own().part;
        const i64 slice = out_slice();
        share(tasks(p.D, slice), soon, [&](i64 task) {
            i64 start = task * slice, count = least(slice, p.D - start);
            multiply(x, 0, n, w, start, count, I, part, SLICE);
            for (i64 m = 0; m < n; m++) add_row(part + m * SLICE, s.x + m * p.D + start, count);
        });
    }

    // Outputs a task of few tasks takes, so that all threads have some.
    i64 out_slice() const {
        i64 most = slice(), few = n < 4 ? 8 : 4;
        while (most > 16 && p.D < few * most * omp_get_num_threads()) most /= 2;
        return most;
    }

    static void add_row(const float* x, float* y, i64 count) {
        i64 i = 0;
        for (; i + V::N <= count; i += V::N) (V::load(y + i) + V::load(x + i)).store(y + i);
        for (; i < count; i++) y[i] += x[i];
    }
    static void scale_row(float* x, float by, i64 count) {
        i64 i = 0;
        for (; i + V::N <= count; i += V::N) (V::load(x + i) * V(by)).store(x + i);
        for (; i < count; i++) x[i] *= by;
    }

    // Channels go through the convolution in vectors and a rest: the rest must be the same for any n.
    i64 mamba_slice() const { return inner_width(p) % 16 ? SLICE : slice(); }

    // The projection's slices go through the convolution at once: channels do not mix there.
    void mamba(const ProgramBlock& b) const {
        const Input x = input_of_all(b.in, norm(b), p.D);
        const i64 inner = inner_width(p), C = channels(p), O = inner + C + p.H, past = p.W - 1, slice = mamba_slice();
        const i64 first_head = omp_get_thread_num() * p.H / omp_get_num_threads();
        share(tasks(O, slice), (float*)b.second_state + (p.slots[0] * p.H + first_head) * p.P * p.N, [&](i64 task) {
            i64 start = task * slice, stop = least(start + slice, O), c = most_of(start, inner) - inner;
            i64 end = least(stop, inner + C) - inner;
            multiply(x, 0, n, b.in, start, stop - start, p.D, s.wide + start, O);
            if (c < end)
                conv_rows(s.wide + inner + c, O, (S*)b.first_state + c * past, C * past, p.slots, n,
                          (const T*)b.taps + c * p.W, (const T*)b.bias + c, end - c, p.W, s.mixed + c, C);
        });
        const void* soon = first_of(b.out, p.D, inner, out_slice());
        if (n * p.G >= omp_get_num_threads()) {
            share(n * p.G, soon, [&](i64 task) {
                i64 m = task / p.G, g = task % p.G, heads = p.H / p.G;
                for (i64 h = g * heads; h < (g + 1) * heads; h++) head(b, m, h);
                gate(b, m, g);
            });
        } else {
            share(n * p.H, nullptr, [&](i64 task) { head(b, task / p.H, task % p.H); });
            share(n * p.G, soon, [&](i64 task) { gate(b, task / p.G, task % p.G); });
        }
        add(s.values, inner, b.out, after(b));
    }

    void head(const ProgramBlock& b, i64 m, i64 h) const {
        const i64 inner = inner_width(p), C = channels(p), g = h / (p.H / p.G);
        const float* row = s.mixed + m * C;
        float step = softplus(s.wide[m * (inner + C + p.H) + inner + C + h] + b.dt_bias[h]);
        head_step((float*)b.second_state + (p.slots[m] * p.H + h) * p.P * p.N, row + h * p.P, row + inner + g * p.N,
                  row + inner + (p.G + g) * p.N, p.P, p.N, decay_of(step, b.A_log[h]), step, b.D[h],
                  s.values + m * inner + h * p.P);
    }

    void gate(const ProgramBlock& b, i64 m, i64 g) const {
        const i64 inner = inner_width(p), width = inner / p.G, O = inner + channels(p) + p.H;
        float* v = s.values + m * inner + g * width;
        gate_row(v, s.wide + m * O + g * width, width);
        norm_group(v, (const T*)b.out_norm + g * width, width, float(p.eps), v);
    }

    void attention(const ProgramBlock& b) const {
        project(b, norm(b));
        const void* soon = first_of(b.out, p.D, query_width(p), out_slice());
        share(s.n_parts, soon, [&](i64 i) { attend(b, i); });
        if (s.n_parts > n * p.heads) share(n * p.heads, soon, [&](i64 task) { merge(task); });
        add(s.values, query_width(p), b.out, after(b));
    }

    // Queries, scaled, and the new keys and values in their pages.
    void project(const ProgramBlock& b, const float* rows) const {
        const Input x = input_of_all(b.in, rows, p.D), k = input_like(x, b.in, b.second, rows, p.D, 1);
        const Input v = input_like(x, b.in, b.third, rows, p.D, 2);
        const i64 Q = query_width(p), KV = p.heads * p.Dh, q_tasks = tasks(Q, slice()), kv_tasks = tasks(KV, slice());
        float *part = own().part, scale = std::sqrt(float(p.Dh));
        share(q_tasks + 2 * kv_tasks, nullptr, [&](i64 task) {
            if (task < q_tasks) {
                i64 start = task * slice(), count = least(slice(), Q - start);
                multiply(x, 0, n, b.in, start, count, p.D, s.wide + start, Q);
                for (i64 m = 0; m < n; m++)
                    for (i64 i = start; i < start + count; i++) s.wide[m * Q + i] /= scale;
                return;
            }
            bool is_key = task < q_tasks + kv_tasks;
            i64 start = (task - q_tasks - (is_key ? 0 : kv_tasks)) * slice(), count = least(slice(), KV - start);
            void* pages = is_key ? b.first_state : b.second_state;
            multiply(is_key ? k : v, 0, n, is_key ? b.second : b.third, start, count, p.D, part, SLICE);
            for (i64 m = 0; m < n; m++) {
                i64 place = p.lengths[m] - 1, page = p.table[m * p.table_width + place / p.page_size];
                i64 at = (page * p.page_size + place % p.page_size) * KV + start;
                if (p.page_type == F32) narrow_row(part + m * SLICE, (float*)pages + at, count);
                else narrow_row(part + m * SLICE, (bf16*)pages + at, count);
            }
        });
    }

    template <class K>
    void attend_pages(const ProgramBlock& b, const Partial& part, const float* q, float* out, float* tops,
                      float* sums) const {
        attend_keys(q, p.R, p.Dh, (const K*)b.first_state, (const K*)b.second_state,
                    p.table + part.sequence * p.table_width, p.page_size, p.heads, part.head, part.start, part.stop, out,
                    tops, sums, own().scores);
    }

    void attend(const ProgramBlock& b, i64 i) const {
        const Partial part = s.parts[i];
        const i64 q = p.R * p.Dh, task = part.sequence * p.heads + part.head;
        float *out = s.outs + i * q, *tops = s.tops + i * p.R, *sums = s.sums + i * p.R;
        if (p.page_type == F32) attend_pages<float>(b, part, s.wide + task * q, out, tops, sums);
        else attend_pages<bf16>(b, part, s.wide + task * q, out, tops, sums);
        if (s.n_parts == n * p.heads)
            for (i64 r = 0; r < p.R; r++) {
                float share = 1.0f / sums[r];  // as merge has it
                for (i64 d = 0; d < p.Dh; d++) s.values[task * q + r * p.Dh + d] = out[r * p.Dh + d] * share;
            }
    }

    void merge(i64 task) const {
        const i64 first = s.first_part[task], last = s.first_part[task + 1];
        for (i64 r = 0; r < p.R; r++) {
            float most = -INFINITY, total = 0;
            for (i64 i = first; i < last; i++) most = most_of(most, s.tops[i * p.R + r]);
            for (i64 i = first; i < last; i++) total += s.sums[i * p.R + r] * std::exp(s.tops[i * p.R + r] - most);
            float* y = s.values + (task * p.R + r) * p.Dh;
            std::memset(y, 0, sizeof(float) * p.Dh);
            for (i64 i = first; i < last; i++) {
                float share = std::exp(s.tops[i * p.R + r] - most) / total;
                for (i64 d = 0; d < p.Dh; d++) y[d] += s.outs[(i * p.R + r) * p.Dh + d] * share;
            }
        }
    }

    void mlp(const ProgramBlock& b) const {
        const Input x = input_of_all(b.in, norm(b), p.D);
        share(tasks(b.F, slice()), first_of(b.out, p.D, b.F, out_slice()), [&](i64 task) { up(b, x, task * slice()); });
        add(s.wide, b.F, b.out, after(b));
    }

    void up(const ProgramBlock& b, const Input& x, i64 start) const {
        i64 count = least(slice(), b.F - start);
        multiply(x, 0, n, b.in, start, count, p.D, s.wide + start, b.F);
        for (i64 m = 0; m < n; m++) squared_relu(s.wide + m * b.F + start, count, 1.0f);
    }

    void experts(const ProgramBlock& b) const {
        const float* rows = norm(b);
        const Input x = input(b.second, rows, n, p.D);
        const Input shared = b.F ? input_like(x, b.second, b.in, rows, p.D, 1) : x;
        i64 choices = (n + ROUTED - 1) / ROUTED;
        share(choices + tasks(b.F, slice()), nullptr, [&](i64 task) {
            if (task < choices) route(b, rows, task * ROUTED);
            else up(b, shared, (task - choices) * slice());
        });
        i64 n_active = sort_own();
        experts_up(b, x, n_active);
        experts_down(b, n_active);
    }

    static const i64 ROUTED = 8;  // sequences routed by one task
    void route(const ProgramBlock& b, const float* x, i64 start) const {
        i64 count = least(ROUTED, n - start);
        float* scores = own().rows;
        product(x + start * p.D, p.D, count, b.router, p.E, p.D, scores, p.E);
        for (i64 m = 0; m < count; m++)
            route_row(scores + m * p.E, b.router_bias, p.E, p.K, float(p.routed_scale),
                      s.expert_ids + (start + m) * p.K, s.gates + (start + m) * p.K);
        if (!p.chosen_experts) return;
        i64 before = 0;
        for (const ProgramBlock* other = p.blocks; other < &b; other++) before += other->kind == EXPERTS_BLOCK;
        int16_t* chosen = p.chosen_experts + before * n * p.K;
        for (i64 c = start * p.K; c < (start + count) * p.K; c++) chosen[c] = int16_t(s.expert_ids[c]);
    }

    // Each thread sorts for itself rather than wait for one that does. Returns how many experts have rows.
    i64 sort_own() const {
        OwnScratch& o = own();
        std::memset(o.next, 0, sizeof(i64) * (p.E + 1));
        for (i64 c = 0; c < n * p.K; c++) o.next[s.expert_ids[c] + 1]++;
        i64 n_active = 0;
        for (i64 e = 0; e < p.E; e++) {
            if (o.next[e + 1]) o.active[n_active++] = e;
            o.next[e + 1] += o.next[e];
        }
        std::memcpy(o.ends, o.next, sizeof(i64) * (p.E + 1));
        for (i64 c = 0; c < n * p.K; c++) o.order[o.next[s.expert_ids[c]]++] = c;
        return n_active;
    }

    void experts_up(const ProgramBlock& b, const Input& x, i64 n_active) const {
        OwnScratch& o = own();
        const bool gate_later = is_rounded(b.third);  // its rows are rounded as they are
        const Input own_rows = {o.rows, x.rounded ? o.gathered : nullptr, x.stride, false};
        i64 slices = tasks(p.F, slice()), gathered = -1;
        const void* soon = (const char*)first_of(b.third, p.D, p.F, out_slice()) +
                           o.active[0] * p.D * weight_row_bytes(b.third.type, p.F);
        share(n_active * slices, soon, [&](i64 task) {
            i64 e = o.active[task / slices], start = task % slices * slice(), count = least(slice(), p.F - start);
            i64 first = o.ends[e], rows = o.ends[e + 1] - first;
            if (e != gathered && n > 1)
                for (i64 r = 0; r < rows; r++) {
                    const i64 m = o.order[first + r] / p.K;
                    if (x.rounded) std::memcpy(o.gathered + r * x.stride, x.rounded + m * x.stride, x.stride);
                    else std::memcpy(o.rows + r * p.D, x.x + m * p.D, sizeof(float) * p.D);
                }
            gathered = e;
            multiply(n > 1 ? own_rows : x, 0, rows, b.second, e * p.F + start, count, p.D,
                     s.hidden + first * p.F + start, p.F);
            for (i64 r = first; r < first + rows; r++)
                squared_relu(s.hidden + r * p.F + start, count, gate_later ? 1.0f : s.gates[o.order[r]]);
        });
    }

    // A token's experts are added in the order of their numbers, then the shared one.
    void experts_down(const ProgramBlock& b, i64 n_active) const {
        OwnScratch& o = own();
        const i64 slice = out_slice();
        const Input hidden = input(b.third, s.hidden, n * p.K, p.F);
        const Input shared = b.F ? input_of_all(b.out, s.wide, b.F, 1) : hidden;
        share(tasks(p.D, slice), after(b), [&](i64 task) {
            i64 start = task * slice, count = least(slice, p.D - start);
            std::memset(o.total, 0, sizeof(float) * n * SLICE);
            for (i64 a = 0; a < n_active; a++) {
                i64 e = o.active[a], first = o.ends[e], rows = o.ends[e + 1] - first;
                multiply(hidden, first, rows, b.third, e * p.D + start, count, p.F, o.part, SLICE);
                for (i64 r = 0; r < rows; r++) {
                    if (hidden.rounded) scale_row(o.part + r * SLICE, s.gates[o.order[first + r]], count);
                    add_row(o.part + r * SLICE, o.total + o.order[first + r] / p.K * SLICE, count);
                }
            }
            if (b.F) multiply(shared, 0, n, b.out, start, count, b.F, o.part, SLICE);
            for (i64 m = 0; m < n; m++) {
                if (b.F) add_row(o.part + m * SLICE, o.total + m * SLICE, count);
                add_row(o.total + m * SLICE, s.x + m * p.D + start, count);
            }
        });
    }

    void choose() const {
        share(n, nullptr, [&](i64 m) {
            if (p.draws[m].temperature < 0) return;
            draw_row(p.logits + m * p.V, p.V, p.limit, p.draws[m], own().draw, p.ids + m, p.log_probs + 2 * m);
        });
    }

    void run() const {
        embed();
        for (i64 i = 0; i < p.n_blocks; i++) {
            const ProgramBlock& b = p.blocks[i];
            switch (b.kind) {
                case MAMBA_BLOCK: mamba(b); break;
                case ATTENTION_BLOCK: attention(b); break;
                case EXPERTS_BLOCK: experts(b); break;
                case MLP_BLOCK: mlp(b); break;
            }
        }
        const float* hidden = norm(p.norm, p.hidden ? p.hidden : s.normed, first_of_block(p.n_blocks));
        if (p.logits) apply(hidden, p.D, p.head, p.V, p.logits);
        if (p.logits && p.limit) choose();
        if (omp_get_thread_num() == 0 && p.hidden && hidden != p.hidden)
            std::memcpy(p.hidden, hidden, sizeof(float) * p.D);
    }
};

template <class T, class S> static void decode_step_of(const Program& p, StepScratch& s, int threads) {
    DecodeStep<T, S> step = {p, s, p.n};
#pragma omp parallel num_threads(threads)
    step.run();
}
