// NO_MEMORY: `scratch_bytes` is less than `scratch_needed`, and the step was not run.
extern "C" int EXPORT(decode_step)(Program* p, int threads) {
    if (!indices_fit(*p)) return BAD_INDEX;
    Arena measure = {nullptr, 0};
    divide_scratch(*p, threads, measure);
    p->scratch_needed = measure.used;
    if (!p->scratch || measure.used > p->scratch_bytes) return NO_MEMORY;
    Arena arena = {p->scratch, 0};
    StepScratch s = divide_scratch(*p, threads, arena);
    divide_attention(*p, s);
    if (p->weight_type == F32) {
        if (p->conv_type == F32) decode_step_of<float, float>(*p, s, threads);
        else decode_step_of<float, bf16>(*p, s, threads);
    } else if (p->conv_type == F32) decode_step_of<bf16, float>(*p, s, threads);
    else decode_step_of<bf16, bf16>(*p, s, threads);
    return DONE;
}
