// NO_MEMORY: `scratch_bytes` was too small and now says what the step needs.
extern "C" int EXPORT(decode_step)(Program* p, int threads) {
    if (!indices_fit(*p)) return BAD_INDEX;
    Arena measure = {nullptr, 0};
    divide_scratch(*p, threads, measure);
    if (measure.used > p->scratch_bytes) {
        p->scratch_bytes = measure.used;
        return NO_MEMORY;
    }
    Arena arena = {p->scratch, 0};
    StepScratch s = divide_scratch(*p, threads, arena);
    divide_attention(*p, s);
    if (p->weight_type == F32) {
        if (p->state_type == F32) decode_step_of<float, float>(*p, s, threads);
        else decode_step_of<float, bf16>(*p, s, threads);
    } else if (p->state_type == F32) decode_step_of<bf16, float>(*p, s, threads);
    else decode_step_of<bf16, bf16>(*p, s, threads);
    return DONE;
}
