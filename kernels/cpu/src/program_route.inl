// The router's choice for one token of a decoding step.

// Scores (E) become sigmoids; the K best of score + bias are chosen, the lower number among equals. nan beats all, as in
// torch.topk, and so comes through to the result.
static void choose_experts(float* scores, const float* bias, i64 E, i64 K, float scale, i64* ids, float* gates) {
    for (i64 e = 0; e < E; e++) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
    float total = 0;
    for (i64 k = 0; k < K; k++) {
        i64 best = -1;
        float most = 0;
        for (i64 e = 0; e < E; e++) {
            bool taken = false;
            for (i64 j = 0; j < k; j++) taken |= ids[j] == e;
            float value = scores[e] + bias[e];
            if (taken || (best >= 0 && !(value > most) && !(value != value && most == most))) continue;
            best = e, most = value;
        }
        ids[k] = best;
        gates[k] = scores[best];
        total += gates[k];
    }
    for (i64 k = 0; k < K; k++) gates[k] = gates[k] / (total + 1e-20f) * scale;
}
