// Attention over a paged cache. Included by kernels.inl.
//
// Positions are taken in chunks counted from the sequence's first, each chunk by itself (largest score, sum of
// exponentials, weighted values in order of position), and chunks are merged in order. So a query's result
// is the same in a prefill chunk of any length, in a decode step, and beside any other query.

constexpr int64_t kChunk = 256;
constexpr int kPairs = 4;               // (token, head) pairs that share a load of values
constexpr int kSlice = 4 / kParts;      // Parts of a value row held in registers for each of them

constexpr int64_t kStretch = 32;  // positions that all heads take before the next ones, while those are fetched

// Fetches elements [shift, shift + width) of the row that comes a stretch after row j of `count`, or of the row
// that is as far into `then`: the processor does not see the order of pages by itself.
template <class T>
JANUS_INLINE void fetch(const T *const *rows, int64_t j, int64_t count, const T *const *then, int64_t shift,
                        int64_t width) {
    const T *row = (j + kStretch < count ? rows[j + kStretch] : then[j + kStretch - count]) + shift;
    for (int64_t d = 0; d < width; d += kLine / static_cast<int64_t>(sizeof(T))) prefetch(row + d);
}

// out[p][0..width) += weight[p][j] * values[j][shift..] for positions j of [j0, j1), in order; meanwhile, if `then`
// is given, fetches what comes a stretch later, of `count` rows or after them.
template <class W, int C>
JANUS_NOINLINE void weigh(const float *const (&weight)[C], const typename W::T *const *values, int64_t shift, int64_t j0,
                          int64_t j1, int64_t count, const typename W::T *const *then, int64_t width,
                          float *const (&out)[C]) {
    int64_t d = 0;
    const auto slice = [&](auto size) {
        constexpr int S = decltype(size)::value;
        for (; d + S * kWidth <= width; d += S * kWidth) {
            Part acc[C][S];
            const auto each = [](auto f) {
                unroll<C>([&](auto c) { unroll<S>([&](auto s) { f(c, s); }); });
            };
            each([&](auto c, auto s) { acc[c][s] = load(out[c] + d + s * kWidth); });
            for (int64_t j = j0; j < j1; ++j) {
                if (then) fetch(values, j, count, then, shift + d, S * kWidth);
                Part v[S];
                unroll<S>([&](auto s) { v[s] = W::load(values[j] + shift + d + s * kWidth); });
                unroll<C>([&](auto c) {
                    const Part p = broadcast(weight[c][j]);
                    unroll<S>([&](auto s) { acc[c][s] = fma(p, v[s], acc[c][s]); });
                });
            }
            each([&](auto c, auto s) { store(out[c] + d + s * kWidth, acc[c][s]); });
        }
    };
    slice(Size<kSlice>{});
    slice(Size<1>{});
    for (; d < width; ++d)
        for (int c = 0; c < C; ++c)
            for (int64_t j = j0; j < j1; ++j) out[c][d] = fma_one(weight[c][j], W::one(values[j][shift + d]), out[c][d]);
}

// Positions of one chunk that a query sees, relative to the chunk.
struct Span {
    int64_t begin, end;
};

// exp(score - top) of the span, zero outside, and their sum (sixteen running sums and a tree). Returns the sum.
inline float exponentials(float *score, Span span, float top) {
    for (int64_t j = 0; j < span.begin; ++j) score[j] = 0.0f;
    for (int64_t j = span.end; j < kChunk; ++j) score[j] = 0.0f;
    for (int64_t j = span.begin; j < span.end; ++j) score[j] = exp_one(score[j] - top);
    return sum_up(score, kChunk);
}

// Adds a chunk's sums to those of the chunks before it.
inline void merge(float top, float norm, const float *sum, int64_t width, float &tops, float &norms, float *total) {
    const float both = top > tops ? top : tops;
    const float before = exp_one(tops - both), now = exp_one(top - both);
    norms = norms * before + norm * now;
    for (int64_t d = 0; d < width; ++d) total[d] = total[d] * before + sum[d] * now;
    tops = both;
}

// weigh() for pairs [p0, p1) of one KV head over the positions of `stretch` that each sees.
template <class W, class Sees>
inline void weigh_pairs(int64_t p0, int64_t p1, Span stretch, int64_t count, const typename W::T *const *then,
                        const float *scores, const typename W::T *const *values, int64_t shift, int64_t width,
                        float *sums, const Sees &sees) {
    const auto some = [&](auto size, int64_t p) {
        constexpr int C = decltype(size)::value;
        const float *weight[C];
        float *sum[C];
        Span span[C], common = stretch;
        for (int c = 0; c < C; ++c) {
            const Span seen = sees(p + c);
            span[c].begin = seen.begin > stretch.begin ? seen.begin : stretch.begin;
            span[c].end = seen.end < stretch.end ? seen.end : stretch.end;
            weight[c] = scores + (p + c) * kChunk;
            sum[c] = sums + (p + c) * width;
            if (span[c].begin > common.begin) common.begin = span[c].begin;
            if (span[c].end < common.end) common.end = span[c].end;
        }
        // What not all of them see goes one by one, before and after the rest: a place that a query does not
        // see may hold anything.
        const auto alone = [&](int c, int64_t begin, int64_t end) {
            const float *w1[1] = {weight[c]};
            float *o1[1] = {sum[c]};
            if (begin < end) weigh<W, 1>(w1, values, shift, begin, end, 0, nullptr, width, o1);
        };
        const bool shared = common.begin < common.end;
        for (int c = 0; c < C; ++c) alone(c, span[c].begin, shared ? common.begin : span[c].end);
        if (!shared) return;
        weigh<W, C>(weight, values, shift, common.begin, common.end, count, p == p0 ? then : nullptr, width, sum);
        for (int c = 0; c < C; ++c) alone(c, common.end, span[c].end);
    };
    for (int64_t p = p0; p < p1; p += kPairs) {
        switch (p1 - p) {
            case 1: some(Size<1>{}, p); break;
            case 2: some(Size<2>{}, p); break;
            case 3: some(Size<3>{}, p); break;
            default: some(Size<kPairs>{}, p); break;
        }
    }
}

template <class W>
void attend_as(const AttentionCall &call, const AttentionPiece &piece) {
    using T = typename W::T;
    const int64_t sequence = piece.sequence, first = piece.first, last = piece.last;
    const int64_t kv_heads = piece.kv_end - piece.kv_begin, hd = call.head_dim, vd = call.value_dim;
    // Pairs of a query and a head, those of one KV head together.
    const int64_t group = (piece.head_end - piece.head_begin) / kv_heads, per_kv = (last - first) * group;
    const int64_t pairs = per_kv * kv_heads;
    const int64_t length = call.context_lens[sequence];
    // Position of row t is its distance from the end of the context.
    const int64_t offset = length - call.query_starts[sequence + 1];
    const auto token = [&](int64_t p) { return first + p % per_kv / group; };
    const auto row = [&](int64_t p) {
        return token(p) * call.heads + piece.head_begin + p / per_kv * group + p % group;
    };
    const auto sees = [&](int64_t t, int64_t base) {
        const int64_t end = offset + t + 1, begin = call.window > 0 && end > call.window ? end - call.window : 0;
        Span span{begin > base ? begin - base : 0, end < base + kChunk ? end - base : kChunk};
        if (span.begin > span.end) span.begin = span.end = 0;
        return span;
    };
    float *memory = scratch(2, pairs * (kChunk + hd + 2 * vd + 4));
    float *queries = memory, *scores = queries + pairs * hd, *sums = scores + pairs * kChunk, *total = sums + pairs * vd;
    float *tops = total + pairs * vd, *norms = tops + pairs, *top = norms + pairs, *norm = top + pairs;
    for (int64_t p = 0; p < pairs; ++p) {
        const float *sink = call.sinks ? call.sinks + row(p) % call.heads : nullptr;
        tops[p] = sink ? *sink : -INFINITY, norms[p] = sink ? 1.0f : 0.0f;
        const float *query = call.query + row(p) * hd;
        for (int64_t d = 0; d < hd; ++d) queries[p * hd + d] = query[d] * call.scale;
    }
    for (int64_t i = 0; i < pairs * vd; ++i) total[i] = 0.0f;

    const int32_t *table = call.block_tables + sequence * call.table_width;
    const int64_t longest = offset + last;  // positions that the last query sees
    const int64_t seen_from = call.window > 0 && offset + first + 1 > call.window ? offset + first + 1 - call.window : 0;
    // Rows of the piece's first KV head: a chunk's, and what comes next as far as it is fetched ahead.
    const T *keys[kChunk + kStretch], *values[kChunk];
    for (int64_t base = seen_from / kChunk * kChunk; base < longest; base += kChunk) {
        const int64_t count = longest - base < kChunk ? longest - base : kChunk;
        const int64_t known = longest - base < kChunk + kStretch ? longest - base : kChunk + kStretch;
        for (int64_t j = 0; j < known;) {
            const int64_t position = base + j, inside = position % call.block_size;
            const int64_t slot = table[position / call.block_size] * call.block_size + inside;
            int64_t at = slot * call.kv_heads + piece.kv_begin;
            for (int64_t i = inside; i < call.block_size && j < known; ++i, ++j, at += call.kv_heads) {
                keys[j] = static_cast<const T *>(call.keys) + at * call.key_row;
                if (j < kChunk) values[j] = static_cast<const T *>(call.values) + at * call.value_row;
            }
        }
        for (int64_t j = known; j < count + kStretch; ++j) keys[j] = keys[0];
        for (int64_t j = count; j < kStretch; ++j) values[j] = values[0];
        for (int64_t from = 0; from < count; from += kStretch) {
            const int64_t to = from + kStretch < count ? from + kStretch : count;
            for (int64_t g = 0; g < kv_heads; ++g) {
                const auto query = [=](int64_t p) { return queries + (g * per_kv + p) * hd; };
                for (int64_t j = from; j < to; j += 4) {
                    const T *rows[4];
                    for (int r = 0; r < 4; ++r) {
                        const bool there = j + r < to;
                        if (there) fetch(keys, j + r, count, values, g * call.key_row, hd);
                        rows[r] = keys[there ? j + r : j] + g * call.key_row;
                    }
                    float *score = scores + g * per_kv * kChunk + j;
                    rows4<W>(query, per_kv, hd, rows, nullptr, 0, [=](int64_t p, const float *products) {
                        std::memcpy(score + p * kChunk, products, 4 * sizeof(float));
                    });
                }
            }
        }
        for (int64_t p = 0; p < pairs; ++p) {
            const Span span = sees(token(p), base);
            float *score = scores + p * kChunk;
            top[p] = largest(score + span.begin, span.end - span.begin);
            norm[p] = exponentials(score, span, top[p]);
        }
        for (int64_t i = 0; i < pairs * vd; ++i) sums[i] = 0.0f;
        for (int64_t from = 0; from < count; from += kStretch) {
            const Span stretch{from, from + kStretch < count ? from + kStretch : count};
            for (int64_t g = 0; g < kv_heads; ++g) {
                weigh_pairs<W>(g * per_kv, (g + 1) * per_kv, stretch, count, keys + count, scores, values,
                               g * call.value_row, vd, sums,
                               [&](int64_t p) { return sees(token(p), base); });
            }
        }
        for (int64_t p = 0; p < pairs; ++p) {
            const Span span = sees(token(p), base);
            if (span.begin < span.end) merge(top[p], norm[p], sums + p * vd, vd, tops[p], norms[p], total + p * vd);
        }
    }
    for (int64_t p = 0; p < pairs; ++p) {
        float *out = call.out + row(p) * vd;
        const float inverse = 1.0f / norms[p];
        for (int64_t d = 0; d < vd; ++d) out[d] = total[p * vd + d] * inverse;
    }
}
