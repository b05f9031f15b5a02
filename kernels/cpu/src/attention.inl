// One query of many sequences against keys and values in pages (flash decoding): each task takes some keys of one
// sequence and one key head with all query heads of its group; partial results are merged by their log-sums.
// Dh head width, R query heads a key head.

static const i64 SPLIT = 2048;  // most keys of one task
static const i64 BLOCK = 64;    // keys whose scores exist at a time

struct Partial {
    i64 sequence, head, start, stop;
};

template <class T>
static void attend_keys(const float* q, i64 R, i64 Dh, const T* keys, const T* values, const i64* table, i64 page_size,
                        i64 heads, i64 head, i64 start, i64 stop, float* out, float* top, float* sum, float* scores) {
    for (i64 r = 0; r < R; r++) top[r] = -INFINITY, sum[r] = 0;
    std::memset(out, 0, sizeof(float) * R * Dh);
    for (i64 block = start; block < stop; block += BLOCK) {
        i64 n = least(BLOCK, stop - block);
        for (i64 j = 0; j < n; j++) {
            i64 place = block + j;
            const T* key = keys + ((table[place / page_size] * page_size + place % page_size) * heads + head) * Dh;
            product(q, Dh, R, key, 1, Dh, scores + j, BLOCK);
        }
        for (i64 r = 0; r < R; r++) {
            float* s = scores + r * BLOCK;
            float most = top[r];
            for (i64 j = 0; j < n; j++) most = most_of(most, s[j]);
            float keep = std::exp(top[r] - most), total = 0;
            for (i64 j = n; j < BLOCK; j++) s[j] = -INFINITY;
            for (i64 j = 0; j < BLOCK; j += V::N) vexp(V::load(s + j) - V(most)).store(s + j);
            for (i64 j = 0; j < n; j++) total += s[j];
            for (i64 d = 0; d < Dh; d++) out[r * Dh + d] *= keep;
            sum[r] = sum[r] * keep + total;
            top[r] = most;
        }
        for (i64 j = 0; j < n; j++) {
            i64 place = block + j;
            const T* value = values + ((table[place / page_size] * page_size + place % page_size) * heads + head) * Dh;
            for (i64 r = 0; r < R; r++) {
                V weight(scores[r * BLOCK + j]);
                float* o = out + r * Dh;
                i64 d = 0;
                for (; d + V::N <= Dh; d += V::N) V::fma(weight, V::load(value + d), V::load(o + d)).store(o + d);
                if (d < Dh) {
                    int left = int(Dh - d);
                    V::fma(weight, V::load(value + d, left), V::load(o + d, left)).store(o + d, left);
                }
            }
        }
    }
}

// Whether each sequence's tokens lie in pages that exist.
static bool pages_fit(const i64* table, i64 table_width, const i64* lengths, i64 n, i64 page_size, i64 pages) {
    for (i64 m = 0; m < n; m++) {
        if (lengths[m] < 1 || (lengths[m] + page_size - 1) / page_size > table_width) return false;
        for (i64 i = 0; i * page_size < lengths[m]; i++) {
            i64 page = table[m * table_width + i];
            if (page < 0 || page >= pages) return false;
        }
    }
    return true;
}

template <class T>
static int attention_of(const T* q, const T* keys, const T* values, i64 pages, const i64* table, i64 table_width,
                         const i64* lengths, i64 n, i64 heads, i64 R, i64 Dh, i64 page_size, T* y, int threads) {
    if (!pages_fit(table, table_width, lengths, n, page_size, pages)) return BAD_INDEX;
    Buffer<i64> first(n * heads + 1);
    if (!first.ok()) return NO_MEMORY;
    i64 count = 0, work = 0;
    for (i64 task = 0; task < n * heads; task++) {
        first[task] = count;
        count += (lengths[task / heads] + SPLIT - 1) / SPLIT;
        work += lengths[task / heads] * (R + READING) * Dh;
    }
    first[n * heads] = count;
    Buffer<Partial> parts(count);
    Buffer<float> outs(count * R * Dh), tops(count * R), sums(count * R), scratch(threads * R * (Dh + BLOCK));
    if (!parts.ok() || !outs.ok() || !tops.ok() || !sums.ok() || !scratch.ok()) return NO_MEMORY;
    for (i64 task = 0; task < n * heads; task++)
        for (i64 p = first[task], start = 0; p < first[task + 1]; p++, start += SPLIT)
            parts[p] = {task / heads, task % heads, start, least(start + SPLIT, lengths[task / heads])};
#pragma omp parallel num_threads(threads) if (work > ALONE)
    {
        float *query = scratch.at(omp_get_thread_num() * R * (Dh + BLOCK)), *scores = query + R * Dh;
#pragma omp for schedule(dynamic, 1)
        for (i64 p = 0; p < count; p++) {
            const Partial part = parts[p];
            widen_row(q + (part.sequence * heads + part.head) * R * Dh, query, R * Dh);
            for (i64 i = 0; i < R * Dh; i++) query[i] /= std::sqrt(float(Dh));
            attend_keys(query, R, Dh, keys, values, table + part.sequence * table_width, page_size, heads, part.head,
                        part.start, part.stop, outs.at(p * R * Dh), tops.at(p * R), sums.at(p * R),
                        scores);
        }
#pragma omp for schedule(static)
        for (i64 task = 0; task < n * heads; task++)
            for (i64 r = 0; r < R; r++) {
                float most = -INFINITY, total = 0;
                for (i64 p = first[task]; p < first[task + 1]; p++) most = most_of(most, tops[p * R + r]);
                for (i64 p = first[task]; p < first[task + 1]; p++) total += sums[p * R + r] * std::exp(tops[p * R + r] - most);
                for (i64 d = 0; d < Dh; d++) {
                    float value = 0;
                    for (i64 p = first[task]; p < first[task + 1]; p++)
                        value += outs[(p * R + r) * Dh + d] * std::exp(tops[p * R + r] - most);
                    store_as(y + (task * R + r) * Dh + d, value / total);
                }
            }
    }
    return DONE;
}
