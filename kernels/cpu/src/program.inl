// A model's decoding step as data: its blocks, and what one step is given. Letters as in ops.py; n sequences.
// Laid out as in program/memory.py: every field has 8 bytes.

enum BlockKind { MAMBA_BLOCK = 0, ATTENTION_BLOCK = 1, EXPERTS_BLOCK = 2, MLP_BLOCK = 3 };

struct ProgramBlock {
    i64 kind;
    const void* norm;                    // (D)
    Weights in, out;                     // in_proj, out_proj; q_proj, o_proj; up, down of the dense or shared MLP
    Weights second, third;               // k_proj, v_proj; up, down of the routed experts
    const void *taps, *bias, *out_norm;  // (C, W), (C), (inner)
    const float *A_log, *D, *dt_bias;    // (H)
    const float *router, *router_bias;   // (E, D), (E)
    void *first_state, *second_state;    // conv, ssm; keys, values
    i64 F;                               // hidden width of the dense or shared MLP, 0 for none
};

struct Program {
    const ProgramBlock* blocks;
    const void *embeddings, *norm;  // (V, D), (D)
    Weights head;                   // (V, D)
    i64 n_blocks, D, V, weight_type, conv_type, page_type;
    i64 rounded;  // whether any weights are data and scale
    i64 H, P, N, G, W;             // Mamba-2
    i64 heads, R, Dh;              // attention: key heads, query heads of each, width
    i64 E, K, F;                   // routed experts
    double eps, routed_scale;
    i64 n_slots, n_pages, page_size;
    i64 n, table_width;
    const i64 *tokens, *slots, *table, *lengths;  // (n), (n), (n, table_width), (n) with the step's own token
    float *hidden, *logits;                       // (n, D) or null, (n, V) or null
    int16_t* chosen_experts;                      // (blocks with experts, n, K) or null
    i64 limit;                                    // 0, or ids below it are to be chosen from the logits:
    const Draw* draws;                            // (n): how
    i64* ids;                                     // (n)
    double* log_probs;                            // (n, 2), as draw_row gives them
    char* scratch;
    i64 scratch_bytes;         // behind `scratch`; whoever allocates says so
    i64 scratch_needed;        // what the last step needs
};

// A thread's place in the shared loops of a step: how many tasks of its part are taken, in this loop, the one before
// and the one after; how many loops it has begun.
struct alignas(64) Turn {
    i64 taken[3], loops;
};

// Matrices that read the same rows, at most.
static const i64 INPUTS = 3;

// What matrices multiply: rows, or those rounded as the matrix wants them.
struct Input {
    const float* x;
    const char* rounded;
    i64 stride;
    bool panels;  // rows are laid out for them
};

// What one thread has for itself.
struct OwnScratch {
    float* normed;        // (D): what a mixer reads, of a single sequence
    float *part, *total;  // (n, SLICE) each
    float *rows;          // (n, D or E): rows of one expert, scores of the router
    char *rounded[INPUTS], *gathered;  // of a single sequence; rows of one expert
    char* room;                        // of panels
    float *query, *scores;
    i64 *order, *ends, *next, *active;
    DrawScratch draw;
};

struct StepScratch {
    Turn* turns;         // (threads)
    i64* arrived;        // ends of shared loops that threads have reached
    float *x, *normed;   // (n, D): residual stream, what a mixer reads
    float *wide;         // (n, widest): a mixer's projections
    float *mixed;        // (n, C): after the convolution
    float *values;       // (n, inner or query width): what out_proj reads
    float *hidden;       // (n K, F): routed experts, rows sorted by expert
    i64* expert_ids;     // (n, K)
    float* gates;        // (n, K)
    Partial* parts;      // attention: pieces of work, and what comes of each
    i64* first_part;     // (n heads + 1)
    float *outs, *tops, *sums;
    i64 n_parts;
    char* rounded[INPUTS];
    OwnScratch* own;
};

static i64 inner_width(const Program& p) { return p.H * p.P; }
static i64 channels(const Program& p) { return p.H * p.P + 2 * p.G * p.N; }
static i64 query_width(const Program& p) { return p.heads * p.R * p.Dh; }

static i64 widest(const Program& p) {
    i64 most = most_of(inner_width(p) + channels(p) + p.H, query_width(p));
    for (i64 b = 0; b < p.n_blocks; b++) most = most_of(most, p.blocks[b].F);
    return most;
}

// Of one sequence's rounded rows: what projections read, or all its experts' hidden values.
static i64 rounded_bytes(const Program& p) {
    if (!p.rounded) return 0;
    i64 most = most_of(most_row_bytes(most_of(p.D, widest(p))), p.K * most_row_bytes(p.F));
    return most_of(most, most_row_bytes(most_of(inner_width(p), query_width(p))));
}

static i64 room_bytes(const Program& p) {
    return p.rounded && p.n >= PANELS_FROM ? panel_bytes(most_of(most_of(p.D, widest(p)), inner_width(p))) : 0;
}

static StepScratch divide_scratch(const Program& p, int threads, Arena& arena) {
    StepScratch s;
    i64 n = p.n, q = p.R * p.Dh;
    s.turns = arena.take<Turn>(threads);
    s.arrived = arena.take<i64>(1);
    s.own = arena.take<OwnScratch>(threads);
    s.x = arena.take<float>(n * p.D);
    s.normed = arena.take<float>(n * p.D);
    s.wide = arena.take<float>(n * widest(p));
    s.mixed = arena.take<float>(n * channels(p));
    s.values = arena.take<float>(n * most_of(inner_width(p), query_width(p)));
    s.hidden = arena.take<float>(n * p.K * p.F);
    s.expert_ids = arena.take<i64>(n * p.K);
    s.gates = arena.take<float>(n * p.K);
    s.n_parts = 0;
    for (i64 m = 0; m < n; m++) s.n_parts += p.heads * ((p.lengths[m] + SPLIT - 1) / SPLIT);
    s.parts = arena.take<Partial>(s.n_parts);
    s.first_part = arena.take<i64>(n * p.heads + 1);
    s.outs = arena.take<float>(s.n_parts * q);
    s.tops = arena.take<float>(s.n_parts * p.R);
    s.sums = arena.take<float>(s.n_parts * p.R);
    for (i64 i = 0; i < INPUTS; i++) s.rounded[i] = arena.take<char>((n + SPARE_ROWS) * rounded_bytes(p));
    for (int t = 0; t < threads; t++) {
        OwnScratch own;
        for (i64 i = 0; i < INPUTS; i++) own.rounded[i] = arena.take<char>(rounded_bytes(p));
        own.gathered = arena.take<char>(p.rounded ? n * most_row_bytes(p.D) : 0);
        own.room = arena.take<char>(room_bytes(p));
        own.normed = arena.take<float>(p.D);
        own.part = arena.take<float>(n * SLICE);
        own.total = arena.take<float>(n * SLICE);
        own.rows = arena.take<float>(n * most_of(p.D, p.E));
        own.query = arena.take<float>(q);
        own.scores = arena.take<float>(p.R * BLOCK);
        own.order = arena.take<i64>(n * p.K);
        own.ends = arena.take<i64>(p.E + 1);
        own.next = arena.take<i64>(p.E + 1);
        own.active = arena.take<i64>(p.E);
        if (p.limit) own.draw = draw_scratch(p.limit, arena);
        if (arena.start) s.own[t] = own;
    }
    if (arena.start) {
        std::memset((void*)s.turns, 0, sizeof(Turn) * threads);
        *s.arrived = 0;
    }
    return s;
}

static void divide_attention(const Program& p, StepScratch& s) {
    i64 count = 0;
    for (i64 task = 0; task < p.n * p.heads; task++) {
        s.first_part[task] = count;
        i64 length = p.lengths[task / p.heads];
        for (i64 start = 0; start < length; start += SPLIT)
            s.parts[count++] = {task / p.heads, task % p.heads, start, least(start + SPLIT, length)};
    }
    s.first_part[p.n * p.heads] = count;
}

// Whether every index that the step follows is inside of what it points into.
static bool indices_fit(const Program& p) {
    for (i64 m = 0; m < p.n; m++) {
        if (p.tokens[m] < 0 || p.tokens[m] >= p.V || p.lengths[m] < 1) return false;
        if (p.H && (p.slots[m] < 0 || p.slots[m] >= p.n_slots)) return false;
        if (!p.heads) continue;
        if (p.page_size < 1 || p.lengths[m] > p.table_width * p.page_size) return false;
        for (i64 i = 0; i * p.page_size < p.lengths[m]; i++) {
            i64 page = p.table[m * p.table_width + i];
            if (page < 0 || page >= p.n_pages) return false;
        }
    }
    return true;
}
