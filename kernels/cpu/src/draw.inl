// The next token of a row of logits: the most probable one, or one drawn after temperature, top-k, top-p and min-p.
// "z": (logit - largest) / temperature; "weight": exp(z); the order: largest z first, of equals the smallest id first.

// As draw.py lays it out.
struct Draw {
    double temperature;  // 0: the most probable token; less: nothing is to be chosen
    double top_k;        // 0: all
    double top_p, min_p;
    double uniform;  // in (0, 1): where in the distribution
};

// What is in a bucket: tokens, the sum of their weights.
struct Pile {
    i64 count;
    double mass;
};

// What a row of n logits takes.
struct DrawScratch {
    float *z, *weights;   // (n)
    double* ends;         // (blocks): weights up to the end of each block
    uint16_t* buckets;    // (n): place of z among buckets of equal width
    uint64_t* heap;       // (n)
    Pile* piles;          // (BUCKETS)
    float scale;          // buckets a unit of z
};

static const i64 DRAW_BLOCK = 512, BUCKETS = 512;

static i64 draw_blocks(i64 n) { return (n + DRAW_BLOCK - 1) / DRAW_BLOCK; }

static DrawScratch draw_scratch(i64 n, Arena& arena) {
    DrawScratch s;
    s.z = arena.take<float>(n);
    s.weights = arena.take<float>(n);
    s.ends = arena.take<double>(draw_blocks(n));
    s.buckets = arena.take<uint16_t>(n);
    s.heap = arena.take<uint64_t>(n);
    s.piles = arena.take<Pile>(BUCKETS);
    return s;
}

static const float FAINTEST = -87;  // weights of less are 0, as vexp gives no less

// z, weights and ends of a row; returns the sum of all weights, nan where a logit is nan or the largest is infinite.
// Weights of z below `floor` are 0.
static double weigh(const float* x, i64 n, float top, float temperature, float floor, DrawScratch& s) {
    const V shift(top), scale(temperature), bottom(floor);
    double total = 0;
    for (i64 block = 0, start = 0; start < n; block++, start += DRAW_BLOCK) {
        i64 i = start, stop = least(start + DRAW_BLOCK, n);
        V sum = V::zero();
        auto one = [&](auto lanes) {
            V z = lanes.load(x + i) - shift;
            if (temperature != 1) z = z / scale;
            V weight = V::unless_below(z, bottom, vexp(z));
            lanes.store(z, s.z + i), lanes.store(weight, s.weights + i);
            return weight;
        };
        for (; i + V::N <= stop; i += V::N) sum = sum + one(Whole());
        float rest = sum.sum();
        if (i < stop) one(Part{int(stop - i)});
        for (; i < stop; i++) rest += s.weights[i];
        s.ends[block] = total += rest;
    }
    return total;
}

// Where a place among weights that sum up to `total` must lie to be that of one of them.
static double goal_of(double uniform, double total) { return least(uniform * total, std::nextafter(total, 0.0)); }

// By the order of ids. Where the place lies within a block is counted in the block's own double sum, so that it is
// always a token that adds to the sum.
static i64 draw_whole(i64 n, double uniform, double total, const DrawScratch& s) {
    const double goal = goal_of(uniform, total);
    const i64 last = draw_blocks(n) - 1;
    i64 block = 0, found = 0;
    while (block < last && !(s.ends[block] > goal)) block++;
    const i64 start = block * DRAW_BLOCK, stop = least(start + DRAW_BLOCK, n);
    const double before = block ? s.ends[block - 1] : 0;
    double all = 0, sum = 0;
    for (i64 i = start; i < stop; i++) all += s.weights[i];
    const double rest = goal_of((goal - before) / (s.ends[block] - before), all);
    for (i64 i = start; i < stop; i++) {
        if (!(s.weights[i] > 0)) continue;
        sum += s.weights[i], found = i;
        if (sum > rest) break;
    }
    return found;
}

// z from here on, whose weight is nothing beside the largest, shares the last bucket.
static const float FARTHEST = 40;

static int bucket_of(float z, float scale) { return int(least(least(-z, FARTHEST) * scale, float(BUCKETS - 1))); }

static void fill_buckets(i64 n, DrawScratch& s) {
    V far = V::zero();
    i64 i = 0;
    for (; i + V::N <= n; i += V::N) far = V::max(far, V::zero() - V::load(s.z + i));
    float reach = far.top();
    for (; i < n; i++) reach = most_of(reach, -s.z[i]);
    reach = least(reach, FARTHEST);
    const float scale = s.scale = reach > 1e-30f ? BUCKETS / reach : 0;
    std::memset((void*)s.piles, 0, sizeof(Pile) * BUCKETS);
    for (i = 0; i < n; i++) s.buckets[i] = uint16_t(bucket_of(s.z[i], scale));
    for (i = 0; i < n; i++) {
        Pile& pile = s.piles[s.buckets[i]];
        pile.count++, pile.mass += s.weights[i];
    }
}

static void sift_down(uint64_t* heap, i64 n, i64 i) {
    uint64_t key = heap[i];
    for (i64 child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (key <= heap[child]) break;
        heap[i] = heap[child];
    }
    heap[i] = key;
}

// A bucket's tokens in the order, taken one by one: keys with -z above, the id below.
struct Bucket {
    uint64_t* heap;
    i64 count;

    Bucket(i64 bucket, i64 n, DrawScratch& s) : heap(s.heap), count(0) {
        i64 start = 0;
        for (; start + 32 <= n; start += 32)
            for (uint32_t here = V::equals(s.buckets + start, uint16_t(bucket)); here; here &= here - 1) {
                i64 i = start + __builtin_ctz(here);
                heap[count++] = key_of(s.z[i], i);
            }
        for (i64 i = start; i < n; i++)
            if (s.buckets[i] == bucket) heap[count++] = key_of(s.z[i], i);
        for (i64 i = count / 2 - 1; i >= 0; i--) sift_down(heap, count, i);
    }
    i64 take() {
        i64 id = i64(heap[0] & 0xffffffffu);
        heap[0] = heap[--count];
        sift_down(heap, count, 0);
        return id;
    }
    static uint64_t key_of(float z, i64 id) {
        uint32_t bits;
        std::memcpy(&bits, &z, 4);
        return uint64_t(bits & 0x7fffffffu) << 32 | uint64_t(id);  // no z is above 0
    }
};

// The first tokens in the order.
struct Prefix {
    i64 count;
    double mass;
    i64 last;  // the last of them that added to the mass
};

// Up to where `count` tokens or `mass` are reached, or the next token's z lies below `floor`; at least one. A bucket's
// own tokens are summed apart, so that the smallest count beside the mass before them.
static Prefix prefix_of(i64 n, i64 count, double mass, float floor, DrawScratch& s) {
    const i64 edge = floor == -INFINITY ? BUCKETS : bucket_of(floor, s.scale);
    Prefix p = {0, 0, -1};
    i64 passed = 0;  // the last bucket that was passed over
    bool reached = false;
    for (i64 b = 0; b < BUCKETS && !reached; b++) {
        const Pile pile = s.piles[b];
        if (!pile.count) continue;
        if (b < edge && p.count + pile.count < count && p.mass + pile.mass < mass) {
            p.count += pile.count, p.mass += pile.mass;
            if (pile.mass > 0) passed = b, p.last = -1;
            continue;
        }
        const double before = p.mass;
        double own = 0;
        for (Bucket bucket(b, n, s); bucket.count && !reached;) {
            i64 id = bucket.take();
            if ((reached = p.count && s.z[id] < floor)) break;
            if (s.weights[id] > 0) p.last = id;
            p.mass = before + (own += s.weights[id]);
            reached = ++p.count >= count || p.mass >= mass;
        }
    }
    if (p.last < 0)
        for (Bucket bucket(passed, n, s); bucket.count;) {
            i64 id = bucket.take();
            if (s.weights[id] > 0) p.last = id;
        }
    return p;
}

static double mass_of_all(const DrawScratch& s) {
    double total = 0;
    for (i64 b = 0; b < BUCKETS; b++) total += s.piles[b].mass;
    return total;
}

// By the order, after the cuts; the sum of what they leave goes to `total`.
static i64 draw_cut(i64 n, const Draw& d, float floor, DrawScratch& s, double* total) {
    fill_buckets(n, s);
    const i64 most = d.top_k > 0 && d.top_k < n ? i64(d.top_k) : n;
    double share = INFINITY;
    if (d.top_p < 1) share = d.top_p * (most < n ? prefix_of(n, most, INFINITY, -INFINITY, s).mass : mass_of_all(s));
    Prefix kept = prefix_of(n, most, share, floor, s);
    *total = kept.mass;
    double goal = goal_of(d.uniform, kept.mass);
    return prefix_of(n, kept.count, std::nextafter(goal, INFINITY), -INFINITY, s).last;
}

// x (n) float32; only ids below `limit` are chosen. log_probs: of the id under the softmax of x, and under the
// distribution it was drawn from; nan where there is none.
static void draw_row(const float* x, i64 n, i64 limit, const Draw& d, DrawScratch& s, i64* id, double* log_probs) {
    float best = row_top(x, limit), top = limit < n ? most_of(row_top(x + limit, n - limit), best) : best;
    if (d.temperature == 0) {
        *id = place_of(best, x, limit);
        log_probs[0] = double(x[*id]) - log_total(x, n, top);
        log_probs[1] = log_probs[0] + double(x[*id] - x[*id]);
        return;
    }
    const float floor = d.min_p > 0 ? least(float(std::log(d.min_p)), 0.0f) : -INFINITY;
    const bool cut = d.top_p < 1 || (d.top_k > 0 && d.top_k < limit);
    const double all = weigh(x, limit, best, float(d.temperature), cut ? FAINTEST : most_of(floor, FAINTEST), s);
    double sum = all;
    *id = !(sum < INFINITY) ? 0 : cut ? draw_cut(limit, d, floor, s, &sum) : draw_whole(limit, d.uniform, sum, s);
    log_probs[1] = double(s.z[*id]) - std::log(sum);
    // At temperature 1 the sum of all weights is at hand, but for those of ids that are not to be chosen.
    const bool known = d.temperature == 1 && (cut || floor == -INFINITY) && top == best;
    if (known) log_probs[0] = double(s.z[*id]) - std::log(all + exp_total(x + limit, n - limit, best));
    else log_probs[0] = double(x[*id]) - log_total(x, n, top);
}
