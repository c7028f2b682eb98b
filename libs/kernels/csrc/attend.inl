// Attention of one sequence and one KV head over its pages.

namespace janus {
namespace {

constexpr int kPlaces = 4;      // positions scored at once
constexpr int kHeads = 4;       // query heads that share a loaded key or value
constexpr int64_t kFarAhead = 2;  // blocks between what is read and what is asked for

// Adds p[i][j] * v[j] to out[i] for positions [0, count) and H heads; VL vectors of the head at a time.
template <class W, int H, int VL>
inline void weigh(const float *p, int64_t p_stride, const typename W::T *v, int64_t v_stride, int64_t count,
                  float *out, int64_t hd) {
    Lanes acc[H][VL];
    for (int i = 0; i < H; ++i)
        for (int d = 0; d < VL; ++d) acc[i][d] = load_f32(out + i * hd + d * kLanes);
    for (int64_t j = 0; j < count; ++j, v += v_stride) {
        Lanes value[VL];
        for (int d = 0; d < VL; ++d) value[d] = W::load(v + d * kLanes);
        for (int i = 0; i < H; ++i) {
            const Lanes weight = broadcast(p[i * p_stride + j]);
            for (int d = 0; d < VL; ++d) acc[i][d] = fma(weight, value[d], acc[i][d]);
        }
    }
    for (int i = 0; i < H; ++i)
        for (int d = 0; d < VL; ++d) store_f32(out + i * hd + d * kLanes, acc[i][d]);
}

template <class W, int H>
inline void weigh_heads(const float *p, int64_t p_stride, const typename W::T *v, int64_t v_stride, int64_t count,
                        float *out, int64_t hd) {
    int64_t d = 0;
    for (; d + 4 * kLanes <= hd; d += 4 * kLanes) weigh<W, H, 4>(p, p_stride, v + d, v_stride, count, out + d, hd);
    for (; d + kLanes <= hd; d += kLanes) weigh<W, H, 1>(p, p_stride, v + d, v_stride, count, out + d, hd);
    if (d == hd) return;
    for (int i = 0; i < H; ++i) {
        float padded[kLanes];
        Lanes acc = load_tail<F32>(out + i * hd + d, hd - d);
        for (int64_t j = 0; j < count; ++j)
            acc = fma(broadcast(p[i * p_stride + j]), load_tail<W>(v + j * v_stride + d, hd - d), acc);
        store_f32(padded, acc);
        std::memcpy(out + i * hd + d, padded, (hd - d) * sizeof(float));
    }
}

// score[i] = exp(score[i] - top); returns their sum, in an order that depends on n alone.
inline float exponentials(float *score, int64_t n, float top) {
    float sums[kLanes] = {};
    int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) {
            score[j + l] = exp_one(score[j + l] - top);
            sums[l] += score[j + l];
        }
    float sum = 0.0f;
    for (; j < n; ++j) sum += score[j] = exp_one(score[j] - top);
    return sum + reduce(load_f32(sums));
}

inline float highest(const float *score, int64_t n) {
    float tops[kLanes];
    for (float &top : tops) top = -INFINITY;
    int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) tops[l] = score[j + l] > tops[l] ? score[j + l] : tops[l];
    float top = -INFINITY;
    for (; j < n; ++j) top = score[j] > top ? score[j] : top;
    for (const float other : tops) top = other > top ? other : top;
    return top;  // a NaN is left out here and comes back through the exponentials
}

// A query's scores, weights and sum run over positions in order, whatever the chunk it came in.
template <class W>
void attend_as(const AttentionCall &c, int64_t s, int64_t g, float *scores) {
    using T = typename W::T;
    const int64_t first = c.query_starts[s], last = c.query_starts[s + 1], length = c.context_lens[s];
    const int64_t group = c.heads / c.kv_heads, hd = c.head_dim, size = c.block_size, stride = c.kv_heads * hd;
    const int32_t *table = c.block_tables + s * c.table_width;
    const auto *keys = static_cast<const T *>(c.keys);
    const auto *values = static_cast<const T *>(c.values);
    const int64_t lines = (hd * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine;
    // Calls fn(position, place in the cache, count) block by block, asking for a later block of `base`.
    const auto walk = [&](const T *base, int64_t begin, int64_t end, auto &&fn) {
        for (int64_t j = begin; j < end;) {
            const int64_t block = j / size, offset = j % size;
            const int64_t count = end - j < size - offset ? end - j : size - offset;
            if ((block + kFarAhead) * size < end) {
                const T *later = base + (table[block + kFarAhead] * size * c.kv_heads + g) * hd;
                for (int64_t i = 0; i < size; ++i)
                    for (int64_t line = 0; line < lines; ++line)
                        prefetch(reinterpret_cast<const char *>(later + i * stride) + line * kLine);
            }
            fn(j, base + ((table[block] * size + offset) * c.kv_heads + g) * hd, count);
            j += count;
        }
    };
    for (int64_t t = first; t < last; ++t) {
        const int64_t end = length - (last - t) + 1;  // causal: up to and with its own position
        const int64_t begin = c.window > 0 && end > c.window ? end - c.window : 0;
        const float *q = c.query + (t * c.heads + g * group) * hd;
        float *out = c.out + (t * c.heads + g * group) * hd;
        walk(keys, begin, end, [&](int64_t j, const T *key, int64_t count) {
            for (int64_t i = 0; i < group; i += kHeads) {
                const int64_t heads = group - i < kHeads ? group - i : kHeads;
                const float *x[kHeads];
                for (int64_t h = 0; h < heads; ++h) x[h] = q + (i + h) * hd;
                const auto keep = [&](int64_t h, int64_t position, float dot) {
                    scores[(i + h) * length + position] = dot * c.scale;
                };
                int64_t m = 0;
                for (; m + kPlaces <= count; m += kPlaces) {
                    float dots[kHeads][kPlaces];
                    tile_of<W, kPlaces, false, kHeads>(heads, x, key + m * stride, stride, hd, nullptr, 0, dots);
                    for (int64_t h = 0; h < heads; ++h)
                        for (int r = 0; r < kPlaces; ++r) keep(h, j + m + r, dots[h][r]);
                }
                for (; m < count; ++m) {
                    float dots[kHeads][1];
                    tile_of<W, 1, false, kHeads>(heads, x, key + m * stride, stride, hd, nullptr, 0, dots);
                    for (int64_t h = 0; h < heads; ++h) keep(h, j + m, dots[h][0]);
                }
            }
        });
        float *inverse = scores + group * length;
        for (int64_t i = 0; i < group; ++i) {
            float *score = scores + i * length + begin;
            inverse[i] = 1.0f / exponentials(score, end - begin, highest(score, end - begin));
        }
        for (int64_t d = 0; d < group * hd; ++d) out[d] = 0.0f;
        walk(values, begin, end, [&](int64_t j, const T *value, int64_t count) {
            int64_t i = 0;
            for (; i + kHeads <= group; i += kHeads)
                weigh_heads<W, kHeads>(scores + i * length + j, length, value, stride, count, out + i * hd, hd);
            for (; i < group; ++i)
                weigh_heads<W, 1>(scores + i * length + j, length, value, stride, count, out + i * hd, hd);
        });
        for (int64_t i = 0; i < group; ++i)
            for (int64_t d = 0; d < hd; ++d) out[i * hd + d] *= inverse[i];
    }
}

void attend(const AttentionCall &call, int64_t sequence, int64_t kv_head, float *scores) {
    switch (call.dtype) {
        case DType::f32: return attend_as<F32>(call, sequence, kv_head, scores);
        case DType::bf16: return attend_as<BF16>(call, sequence, kv_head, scores);
        case DType::f16: return attend_as<F16>(call, sequence, kv_head, scores);
    }
}

}  // namespace
}  // namespace janus
