// Kernels that take a token's row at a time: norms, routing; and those of the schedule. Included by kernels.inl.

template <class W>
void rms_norm_as(const float *x, int64_t rows, int64_t width, const void *weight, float eps, float *out) {
    const auto *w = static_cast<const typename W::T *>(weight);
    for (int64_t t = 0; t < rows; ++t, x += width, out += width) {
        const float *one[1] = {x};
        float sums[kLanes], square[8];
        advance<F32, 1, 1>(one, one, 0, width, width, Ahead{}, sums);
        Half eight[8];
        for (auto &half : eight) half = folded<1, 1>(sums, 0, 0);
        finish(eight, square);
        const float scale = 1.0f / std::sqrt(square[0] / static_cast<float>(width) + eps);
        for (int64_t i = 0; i < width; ++i) out[i] = W::one(w[i]) * (x[i] * scale);
    }
}

void rms_norm(const float *x, int64_t rows, int64_t width, Weights weight, float eps, float *out) {
    switch (weight.dtype) {
        case DType::f32: return rms_norm_as<F32>(x, rows, width, weight.data, eps, out);
        case DType::bf16: return rms_norm_as<BF16>(x, rows, width, weight.data, eps, out);
        case DType::f16: return rms_norm_as<F16>(x, rows, width, weight.data, eps, out);
        default: return;  // the bindings take no others
    }
}

void rotary(const float *x, int64_t tokens, int64_t heads, int64_t head_dim, const float *cos, const float *sin,
            const int64_t *positions, float *out) {
    const int64_t half = head_dim / 2;
    for (int64_t t = 0; t < tokens; ++t) {
        const float *c = cos + positions[t] * half, *s = sin + positions[t] * half;
        for (int64_t h = 0; h < heads; ++h, x += head_dim, out += head_dim)
            for (int64_t i = 0; i < half; ++i) {
                const float a = x[i], b = x[half + i];
                out[i] = a * c[i] - b * s[i];
                out[half + i] = b * c[i] + a * s[i];
            }
    }
}

void combine(const double *const *partials, int64_t parts, int64_t first, int64_t last, float *out) {
    constexpr int64_t kStretch = 512;
    double sums[kStretch];
    for (int64_t begin = first; begin < last; begin += kStretch) {
        const int64_t count = last - begin < kStretch ? last - begin : kStretch;
        for (int64_t i = 0; i < count; ++i) sums[i] = partials[0][begin + i];
        for (int64_t p = 1; p < parts; ++p)
            for (int64_t i = 0; i < count; ++i) sums[i] += partials[p][begin + i];
        for (int64_t i = 0; i < count; ++i) out[begin + i] = static_cast<float>(sums[i]);
    }
}

// Scores of one token, in place of its logits. Padding up to a multiple of sixteen is written too.
inline void score(const float *logits, int64_t experts, bool sigmoid, float *scores) {
    const int64_t padded = (experts + kLanes - 1) / kLanes * kLanes;
    if (sigmoid) {
        for (int64_t e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + exp_one(-logits[e]));
        return;
    }
    const float top = largest(logits, experts);
    for (int64_t e = 0; e < experts; ++e) scores[e] = exp_one(logits[e] - top);
    for (int64_t e = experts; e < padded; ++e) scores[e] = 0.0f;
    const float sum = sum_up(scores, padded);
    for (int64_t e = 0; e < experts; ++e) scores[e] = scores[e] / sum;
}

// Index of the largest, the lowest one among equals.
inline int64_t best_of(const float *values, int64_t count) {
    const float top = largest(values, count);
    int64_t at = 0;
    while (at + 1 < count && values[at] != top) ++at;
    return at;
}

// Ranks of experts outside the kept groups become `out`.
inline void keep_groups(const RouteCall &call, float *ranks, float out) {
    const int64_t size = call.experts / call.groups;
    float *values = scratch(4, 2 * call.groups), *kept = values + call.groups;
    for (int64_t g = 0; g < call.groups; ++g) {
        const float *in = ranks + g * size;
        float first = out, second = out;
        for (int64_t i = 0; i < size; ++i) {
            if (in[i] > first) second = first, first = in[i];
            else if (in[i] > second) second = in[i];
        }
        values[g] = call.group_top2 ? first + second : first;
        kept[g] = 0.0f;
    }
    for (int64_t n = 0; n < call.groups_kept; ++n) {
        int64_t best = 0;
        while (kept[best] != 0.0f) ++best;
        for (int64_t g = best + 1; g < call.groups; ++g)
            if (kept[g] == 0.0f && values[g] > values[best]) best = g;
        kept[best] = 1.0f;
    }
    for (int64_t g = 0; g < call.groups; ++g)
        if (kept[g] == 0.0f)
            for (int64_t i = 0; i < size; ++i) ranks[g * size + i] = out;
}

void route(const RouteCall &call, int64_t first, int64_t last) {
    const float out = -std::numeric_limits<float>::max(), taken = -INFINITY;
    const int64_t padded = (call.experts + kLanes - 1) / kLanes * kLanes;
    float *scores = scratch(0, 2 * padded), *ranks = scores + padded;
    for (int64_t t = first; t < last; ++t) {
        score(call.logits + t * call.experts, call.experts, call.sigmoid, scores);
        for (int64_t e = 0; e < call.experts; ++e) {
            const float rank = call.bias ? scores[e] + call.bias[e] : scores[e];
            ranks[e] = rank > out ? rank : out;  // what is not a number comes last
        }
        if (call.groups > 1) keep_groups(call, ranks, out);
        int32_t *ids = call.ids + t * call.top_k;
        double *weights = call.weights + t * call.top_k;
        double sum = 0.0;
        for (int64_t i = 0; i < call.top_k; ++i) {
            const int64_t e = best_of(ranks, call.experts);
            ids[i] = static_cast<int32_t>(e);
            weights[i] = scores[e];
            sum += scores[e];
            ranks[e] = taken;
        }
        for (int64_t i = 0; i < call.top_k; ++i) {
            if (call.renormalize) weights[i] = weights[i] / sum;
            weights[i] *= call.scale;
        }
    }
}

// Digest -----------------------------------------------------------------------------------------

constexpr int64_t kDigestBlock = 256;

struct DigestKeys {
    uint32_t id[2][kDigestBlock], replica[2][kDigestBlock];
    DigestKeys() {
        for (int64_t i = 0; i < kDigestBlock; ++i)
            for (int64_t s = 0; s < 2; ++s) {
                const uint64_t word = mix(static_cast<uint64_t>(2 * i + s + 1) * kGolden);
                // The top bit keeps a sum with an id from being zero, which would hide its partner.
                id[s][i] = static_cast<uint32_t>(word) | 0x80000000u;
                replica[s][i] = static_cast<uint32_t>(word >> 32) | 0x80000000u;
            }
    }
};

uint64_t digest(const int32_t *ids, const int32_t *replica_ids, int64_t count, uint64_t version) {
    static const DigestKeys keys;
    uint64_t state = mix(version + kGolden) + static_cast<uint64_t>(count);
    for (int64_t base = 0; base < count; base += kDigestBlock) {
        const int64_t n = count - base < kDigestBlock ? count - base : kDigestBlock;
        uint64_t sums[2] = {0, 0};
        for (int s = 0; s < 2; ++s) {
            uint64_t sum = 0;
            for (int64_t i = 0; i < n; ++i) {
                const uint32_t a = static_cast<uint32_t>(ids[base + i]) + keys.id[s][i];
                const uint32_t b = static_cast<uint32_t>(replica_ids[base + i]) + keys.replica[s][i];
                sum += static_cast<uint64_t>(a) * b;
            }
            sums[s] = sum;
        }
        state = mix(mix(state ^ sums[0]) + sums[1]);
    }
    return mix(state);
}

bool mark(const int32_t *ids, int64_t count, uint32_t experts, uint8_t *seen) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t id = static_cast<uint32_t>(ids[i]);
        largest = id > largest ? id : largest;
    }
    if (count && largest >= experts) return false;
    for (int64_t i = 0; i < count; ++i) seen[ids[i]] = 1;
    return true;
}
