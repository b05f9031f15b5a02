// Logits in float of many bfloat16 rows and weights, in pieces that are used while they are in the cache: they never
// exist as a whole. Letters: M rows, I inner width, O outputs.

// Most rows of a piece.
static const i64 PIECE_ROWS = 32;

static inline bf16* aligned(bf16* p) { return (bf16*)((uintptr_t(p) + 63) / 64 * 64); }

#ifdef TILES
// Bytes of packed weights that stay in the second cache while all rows go by, and most outputs of a piece.
static const i64 NEAR = 1 << 19, MOST_OUTPUTS = 256, TILE_SIZE = TILE * TILE_PAIRS;

// 16 rows (of which n are there) as tiles one after another; zero beyond the n rows and the I numbers.
static void tile_rows(const bf16* x, i64 n, i64 I, bf16* to) {
    for (i64 i = 0; i < I; i += TILE_PAIRS, to += TILE_SIZE)
        for (i64 r = 0; r < TILE; r++) {
            const i64 count = r < n ? least(TILE_PAIRS, I - i) : 0;
            bf16* row = to + r * TILE_PAIRS;
            if (count < TILE_PAIRS) std::memset(row, 0, TILE_PAIRS * sizeof(bf16));
            if (count == TILE_PAIRS) std::memcpy(row, x + r * I + i, TILE_PAIRS * sizeof(bf16));
            else if (count) std::memcpy(row, x + r * I + i, count * sizeof(bf16));
        }
}
// The same with pairs of numbers down and rows across.
static void tile_columns(const bf16* w, i64 n, i64 I, bf16* to) {
    tile_rows(w, n, I, to);
    alignas(64) float rows[TILE * TILE];
    for (i64 i = 0; i < I; i += TILE_PAIRS, to += TILE_SIZE) {
        std::memcpy(rows, to, sizeof(rows));
        transpose_16(rows, (float*)to);
    }
}

// y (32, 32) = the K tiles of twice 16 rows times those of twice 16 outputs.
static void product_square(const bf16* x, const bf16* w, i64 K, float* y, i64 ldy) {
    const bf16 *x2 = x + K * TILE_SIZE, *w2 = w + K * TILE_SIZE;
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    for (i64 k = 0; k < K * TILE_SIZE; k += TILE_SIZE) {
        tile_load<4>(x + k, TILE_PAIRS);
        tile_load<6>(w + k, TILE_PAIRS);
        tile_dot<0, 4, 6>();
        tile_load<7>(w2 + k, TILE_PAIRS);
        tile_dot<1, 4, 7>();
        tile_load<5>(x2 + k, TILE_PAIRS);
        tile_dot<2, 5, 6>();
        tile_dot<3, 5, 7>();
    }
    tile_store<0>(y, ldy), tile_store<1>(y + TILE, ldy);
    tile_store<2>(y + TILE * ldy, ldy), tile_store<3>(y + TILE * ldy + TILE, ldy);
}

// Calls use(thread, row, rows, start, count, logits, ld) for each piece. All pieces of a thread come one after another.
template <class Use> static int logits_of(const bf16* x, i64 M, const bf16* w, i64 O, i64 I, int threads, Use use) {
    const i64 K = (I + TILE_PAIRS - 1) / TILE_PAIRS, blocks = (M + PIECE_ROWS - 1) / PIECE_ROWS, STEP = 2 * TILE;
    i64 outputs = most_of(STEP, least(MOST_OUTPUTS, NEAR / (K * 64 + 1) / STEP * STEP));
    outputs = least(outputs, round_up((O + threads - 1) / threads, STEP));
    const i64 across = outputs / TILE * K * TILE_SIZE, down = 2 * K * TILE_SIZE;
    Buffer<bf16> row_tiles(blocks * down + 32), weight_tiles(threads * across + 32);
    Buffer<float> pieces(threads * PIECE_ROWS * outputs);
    if (!row_tiles.ok() || !weight_tiles.ok() || !pieces.ok()) return NO_MEMORY;
    bf16* const rows = aligned(row_tiles.data);
#pragma omp parallel num_threads(threads) if (M * O * (I + 16) > ALONE)
    {
        const int thread = omp_get_thread_num();
        bf16* const weights = aligned(weight_tiles.data) + thread * across;
        float* const logits = pieces.at(thread * PIECE_ROWS * outputs);
#pragma omp for schedule(static)
        for (i64 t = 0; t < 2 * blocks; t++)
            tile_rows(x + t * TILE * I, most_of(i64(0), M - t * TILE), I, rows + t * K * TILE_SIZE);
        tiles_on();
#pragma omp for schedule(static)
        for (i64 start = 0; start < O; start += outputs) {
            const i64 count = least(outputs, O - start);
            for (i64 o = 0; o < round_up(count, STEP); o += TILE)
                tile_columns(w + (start + o) * I, most_of(i64(0), count - o), I, weights + o * K * TILE_PAIRS);
            for (i64 row = 0; row < M; row += PIECE_ROWS) {
                for (i64 o = 0; o < count; o += STEP)
                    product_square(rows + row * K * TILE_PAIRS, weights + o * K * TILE_PAIRS, K, logits + o, outputs);
                use(thread, row, least(PIECE_ROWS, M - row), start, count, logits, outputs);
            }
        }
        tiles_off();
    }
    return DONE;
}
#else
template <class Use> static int logits_of(const bf16* x, i64 M, const bf16* w, i64 O, i64 I, int threads, Use use) {
    Buffer<float> pieces(threads * PIECE_ROWS * SLICE);
    if (!pieces.ok()) return NO_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static) if (M * O * (I + 16) > ALONE)
    for (i64 start = 0; start < O; start += SLICE) {
        const int thread = omp_get_thread_num();
        const i64 count = least(SLICE, O - start);
        float* const logits = pieces.at(thread * PIECE_ROWS * SLICE);
        for (i64 row = 0; row < M; row += PIECE_ROWS) {
            const i64 rows = least(PIECE_ROWS, M - row);
            product_of<P>(x + row * I, I, rows, w + start * I, count, I, logits, SLICE);
            use(thread, row, rows, start, count, logits, SLICE);
        }
    }
    return DONE;
}
#endif

static const Softmax NOTHING{0.0, 0.0, -INFINITY};

static Softmax joined(Softmax a, Softmax b, float sharp) {
    if (a.sum == 0) return b;
    if (b.sum == 0) return a;
    const float top = most_of(a.top, b.top);
    const double za = most_of((a.top - top) * sharp, LEAST_Z), zb = most_of((b.top - top) * sharp, LEAST_Z);
    const double ea = std::exp(za), eb = std::exp(zb);
    return {ea * a.sum + eb * b.sum, ea * (a.moment + za * a.sum) + eb * (b.moment + zb * b.sum), top};
}

static int log_probs_product(
    const bf16* x, i64 M, const bf16* w, i64 O, i64 I, const RowSoftmaxes& all, int threads) {
    if (outside(all.targets, M, O)) return BAD_INDEX;
    Buffer<Softmax> parts(threads * M);
    Buffer<float> own(M);
    if (!parts.ok() || !own.ok()) return NO_MEMORY;
    for (i64 i = 0; i < threads * M; i++) parts[i] = NOTHING;
    const int outcome = logits_of(
        x, M, w, O, I, threads,
        [&](int thread, i64 row, i64 rows, i64 start, i64 count, const float* logits, i64 ld) {
            for (i64 r = row; r < row + rows; r++, logits += ld) {
                Softmax& part = parts[thread * M + r];
                part = joined(part, all.part(logits, count), all.sharp);
                const i64 place = all.targets[r] - start;
                if (place >= 0 && place < count) own[r] = logits[place];
            }
        });
    if (outcome != DONE) return outcome;
    for (i64 r = 0; r < M; r++) {
        Softmax total = parts[r];
        for (int t = 1; t < threads; t++) total = joined(total, parts[t * M + r], all.sharp);
        all.settle(r, total, own[r]);
    }
    return DONE;
}

static int log_probs_product_gradients(
    const bf16* x, i64 M, const bf16* w, i64 O, i64 I, const SoftmaxGradients& all, bf16* out, int threads) {
    if (outside(all.targets, M, O)) return BAD_INDEX;
    return logits_of(
        x, M, w, O, I, threads, [&](int, i64 row, i64 rows, i64 start, i64 count, const float* logits, i64 ld) {
            for (i64 r = row; r < row + rows; r++, logits += ld) all.write(r, start, logits, count, out + r * O + start);
        });
}
