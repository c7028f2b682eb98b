// Attention over a cache whose pages hold a KV head's keys column by column, [head_dim][block_size]: sixteen
// positions of one column are a load, so a score needs no sum across a register, and each head's part of a page is
// read from first to last. Values are rows, [block_size][value_dim]. Included by kernels.inl.
//
// Chunks, spans and merging are attention.inl's, and so is what follows: a query's bits do not depend on company.

// Scores of C (query, head) pairs with `count` positions of one page, sixteen at a time. query: [head_dim][C].
template <class W, int C>
JANUS_NOINLINE void score_columns(const float *query, const typename W::T *keys, int64_t size, int64_t width, int64_t count,
                                  Feed *feed, float *const (&scores)[C]) {
    constexpr int U = kLine / (kLanes * sizeof(typename W::T));
    for (int64_t j = 0; j < count; j += kLanes) {
        Eight acc[C][2];
        unroll<C>([&](auto c) { acc[c][0] = acc[c][1] = eight_zero(); });
        const typename W::T *column = keys + j;
        const float *q = query;
        const char *at[kStreams] = {};
        const int64_t granted = feed ? feed->grant(width / (kStreams * U), at) : 0;
        int64_t lines = granted;
        fetching<U>(width, lines, at, [&]() JANUS_LAMBDA {
            Eight low, high;
            W::load_pair(column, low, high);
            unroll<C>([&](auto c) {
                const Eight all = eight_all(q[c]);
                acc[c][0] = fma(all, low, acc[c][0]);
                acc[c][1] = fma(all, high, acc[c][1]);
            });
            column += size, q += C;
        });
        if (feed) feed->spent(granted - lines);
        unroll<C>([&](auto c) {
            W::order(acc[c][0], acc[c][1]);
            store(scores[c] + j, acc[c][0]);
            store(scores[c] + j + 8, acc[c][1]);
        });
    }
}

// sums[c][..] += weight[c][j] * row j for j of [0, count), in order, a row from element `shift` of rows[j] on; whole
// sixteens of a row in the order of load_pair.
template <class W, int C>
JANUS_NOINLINE void weigh_rows(const float *const (&weight)[C], const typename W::T *const *rows, int64_t shift,
                               int64_t count, int64_t width, Feed *feed, float *const (&sums)[C]) {
    constexpr int U = kLine / (kLanes * sizeof(typename W::T));
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) {
        Eight acc[C][2];
        unroll<C>([&](auto c) { acc[c][0] = load_eight(sums[c] + d), acc[c][1] = load_eight(sums[c] + d + 8); });
        const char *at[kStreams] = {};
        const int64_t granted = feed ? feed->grant(count / (kStreams * U), at) : 0;
        int64_t lines = granted, j = 0;
        fetching<U>(count, lines, at, [&]() JANUS_LAMBDA {
            Eight low, high;
            W::load_pair(rows[j] + shift + d, low, high);
            unroll<C>([&](auto c) {
                const Eight w = eight_all(weight[c][j]);
                acc[c][0] = fma(w, low, acc[c][0]);
                acc[c][1] = fma(w, high, acc[c][1]);
            });
            ++j;
        });
        if (feed) feed->spent(granted - lines);
        unroll<C>([&](auto c) { store(sums[c] + d, acc[c][0]), store(sums[c] + d + 8, acc[c][1]); });
    }
    for (; d < width; ++d)
        for (int c = 0; c < C; ++c)
            for (int64_t j = 0; j < count; ++j)
                sums[c][d] = fma_one(weight[c][j], W::one(rows[j][shift + d]), sums[c][d]);
}

// Softmax of a chunk's scores without its division: exp(score - top) in their place, what is not seen zero. Sums
// are sixteen running ones and a tree, from the chunk's first position on.
inline void soften(float *score, Span span, float &top, float &norm) {
    const int64_t end = (span.end + kLanes - 1) / kLanes * kLanes;
    std::fill(score, score + span.begin, -INFINITY);
    std::fill(score + span.end, score + end, -INFINITY);
    float lanes[kLanes];
    Eight tops[2] = {eight_all(-INFINITY), eight_all(-INFINITY)};
    for (int64_t j = 0; j < end; j += kLanes)
        unroll<2>([&](auto h) { tops[h] = larger(load_eight(score + j + 8 * h), tops[h]); });
    store(lanes, larger(tops[0], tops[1]));
    top = lanes[0];
    for (int i = 1; i < 8; ++i) top = lanes[i] > top ? lanes[i] : top;
    const Eight lower = eight_all(-top);
    Eight sums[2] = {eight_zero(), eight_zero()};
    const auto some = [&](auto count, int64_t j) JANUS_LAMBDA {
        constexpr int N = decltype(count)::value;
        Eight values[N];
        unroll<N>([&](auto i) { values[i] = add(load_eight(score + j + 8 * i), lower); });
        exp_eights<N>(values);
        unroll<N>([&](auto i) {
            store(score + j + 8 * i, values[i]);
            sums[i & 1] = add(sums[i & 1], values[i]);
        });
    };
    int64_t j = 0;
    for (; j + 2 * kLanes <= end; j += 2 * kLanes) some(Size<4>{}, j);
    if (j < end) some(Size<2>{}, j);
    store(lanes, sums[0]), store(lanes + 8, sums[1]);
    norm = sum_up(lanes, kLanes);
}

// weigh_rows() of C pairs over a chunk's positions `here`, whose first is rows[0], as far as each sees them.
template <class W, int C>
JANUS_INLINE void weigh_tile(const float *scores, const Span *spans, Span here, const typename W::T *const *rows,
                             int64_t shift, int64_t width, Feed *feed, float *sums) {
    const float *weight[C];
    float *sum[C];
    Span span[C], common = here;
    for (int c = 0; c < C; ++c) {
        span[c] = {std::max(spans[c].begin, here.begin), std::min(spans[c].end, here.end)};
        common = {std::max(common.begin, span[c].begin), std::min(common.end, span[c].end)};
    }
    const auto alone = [&](int c, int64_t from, int64_t to) {
        const float *w[1] = {scores + c * kChunk + from};
        float *s[1] = {sums + c * width};
        if (from < to) weigh_rows<W, 1>(w, rows + from - here.begin, shift, to - from, width, nullptr, s);
    };
    // What not all of them see goes one by one: a place that a query does not see may hold anything.
    const bool shared = common.begin < common.end;
    for (int c = 0; c < C; ++c) alone(c, span[c].begin, shared ? common.begin : span[c].end);
    if (!shared) return;
    for (int c = 0; c < C; ++c) weight[c] = scores + c * kChunk + common.begin, sum[c] = sums + c * width;
    weigh_rows<W, C>(weight, rows + common.begin - here.begin, shift, common.end - common.begin, width, feed, sum);
    for (int c = 0; c < C; ++c) alone(c, common.end, span[c].end);
}

// f(C, p) for pairs p, p + C .. of [begin, end), C as many as a tile takes.
template <class F>
JANUS_INLINE void tiles(int64_t begin, int64_t end, const F &f) {
    for (int64_t p = begin; p < end; p += kPairs) {
        switch (end - p) {
            case 1: f(Size<1>{}, p); break;
            case 2: f(Size<2>{}, p); break;
            case 3: f(Size<3>{}, p); break;
            default: f(Size<kPairs>{}, p); break;
        }
    }
}

template <class W>
void attend_columns(const AttentionCall &call, const AttentionPiece &piece, const AttentionPiece *then) {
    using T = typename W::T;
    const int64_t sequence = piece.sequence, first = piece.first, last = piece.last, size = call.block_size;
    const int64_t hd = call.head_dim, vd = call.value_dim, kv_heads = piece.kv_end - piece.kv_begin;
    // Pairs of a query and a head, those of one KV head together.
    const int64_t group = (piece.head_end - piece.head_begin) / kv_heads, per_kv = (last - first) * group;
    const int64_t pairs = per_kv * kv_heads, length = call.context_lens[sequence];
    // Position of row t is its distance from the end of the context.
    const int64_t offset = length - call.query_starts[sequence + 1];
    const auto token = [&](int64_t p) { return first + p % per_kv / group; };
    const auto head = [&](int64_t p) { return piece.head_begin + p / per_kv * group + p % group; };
    const auto row = [&](int64_t p) { return token(p) * call.heads + head(p); };
    const auto sees = [&](int64_t p, int64_t base) {
        const int64_t end = offset + token(p) + 1;
        const int64_t begin = call.window > 0 && end > call.window ? end - call.window : 0;
        Span span{begin > base ? begin - base : 0, end < base + kChunk ? end - base : kChunk};
        if (span.begin > span.end) span.begin = span.end = 0;
        return span;
    };
    float *memory = scratch(2, pairs * (kChunk + hd + 2 * vd + 4));
    float *queries = memory, *scores = queries + pairs * hd, *sums = scores + pairs * kChunk, *total = sums + pairs * vd;
    float *tops = total + pairs * vd, *norms = tops + pairs, *top = norms + pairs, *norm = top + pairs;
    // Queries of a tile lie side by side, [head_dim][C].
    for (int64_t g = 0; g < kv_heads; ++g)
        tiles(g * per_kv, (g + 1) * per_kv, [&](auto tile, int64_t p) {
            for (int c = 0; c < tile; ++c) {
                const float *query = call.query + row(p + c) * hd;
                for (int64_t d = 0; d < hd; ++d) queries[p * hd + d * tile + c] = query[d] * call.scale;
            }
        });
    for (int64_t p = 0; p < pairs; ++p) {
        const float *sink = call.sinks ? call.sinks + head(p) : nullptr;
        tops[p] = sink ? *sink : -INFINITY, norms[p] = sink ? 1.0f : 0.0f;
    }
    std::fill(total, total + pairs * vd, 0.0f);

    const int32_t *table = call.block_tables + sequence * call.table_width;
    const int64_t longest = offset + last;
    const int64_t seen_from = call.window > 0 && offset + first + 1 > call.window ? offset + first + 1 - call.window : 0;
    const int64_t begin = seen_from / kChunk * kChunk;
    thread_local Feed feed;
    plan(feed, call, piece, begin, longest, then);
    thread_local std::vector<Span> spans;  // of each pair in the chunk at hand
    spans.resize(pairs);
    const T *keys_at = static_cast<const T *>(call.keys) + piece.kv_begin * call.key_head;
    const T *values_at = static_cast<const T *>(call.values) + piece.kv_begin * call.value_head;
    int64_t group_at = 0, planned = 0;  // what of the plan has been read: groups, and lines of a stream

    for (int64_t base = begin; base < longest; base += kChunk) {
        const int64_t count = longest - base < kChunk ? longest - base : kChunk;
        const int32_t *blocks = table + base / size;
        const int64_t groups = groups_of(count, size);
        for (int64_t j = 0; j < count; j += size) {
            const int64_t here = count - j < size ? count - j : size;
            for (int64_t g = 0; g < kv_heads; ++g) {
                const T *keys = keys_at + blocks[j / size] * call.key_block + g * call.key_head;
                tiles(g * per_kv, (g + 1) * per_kv, [&](auto tile, int64_t p) {
                    constexpr int C = decltype(tile)::value;
                    float *to[C];
                    for (int c = 0; c < C; ++c) to[c] = scores + (p + c) * kChunk + j;
                    score_columns<W, C>(queries + p * hd, keys, size, hd, here, p == g * per_kv ? &feed : nullptr, to);
                });
            }
        }
        for (int64_t i = 0; i < groups; ++i) planned += feed.lines(group_at++);
        // Beside the softmax what is not fetched beside the products, as far as the end of the next chunk's keys: a
        // group is read when all of it is there.
        int64_t goal = planned + feed.lines(group_at + groups);
        for (int64_t i = 0; i < 2 * groups; ++i) goal += feed.lines(group_at + i) / kEvery;
        for (int64_t p = 0; p < pairs; ++p) {
            spans[p] = sees(p, base);
            if (spans[p].begin < spans[p].end) soften(scores + p * kChunk, spans[p], top[p], norm[p]);
            feed.reach(feed.done() + (goal - feed.done()) / (pairs - p));
        }
        std::fill(sums, sums + pairs * vd, 0.0f);
        for (int64_t j = 0; j < count; j += kStreams * size) {
            const Span here{j, j + kStreams * size < count ? j + kStreams * size : count};
            const T *rows[kChunk];
            for (int64_t i = here.begin; i < here.end; ++i)
                rows[i - here.begin] = values_at + blocks[i / size] * call.value_block + i % size * call.value_row;
            for (int64_t g = 0; g < kv_heads; ++g)
                tiles(g * per_kv, (g + 1) * per_kv, [&](auto tile, int64_t p) {
                    weigh_tile<W, decltype(tile)::value>(scores + p * kChunk, spans.data() + p, here, rows,
                                                         g * call.value_head, vd, p == g * per_kv ? &feed : nullptr,
                                                         sums + p * vd);
                });
        }
        for (int64_t i = 0; i < groups; ++i) planned += feed.lines(group_at++);
        for (int64_t p = 0; p < pairs; ++p) {
            if (spans[p].begin >= spans[p].end) continue;
            float *sum = sums + p * vd;
            for (int64_t d = 0; d + kLanes <= vd; d += kLanes) {
                Eight low = load_eight(sum + d), high = load_eight(sum + d + 8);
                W::order(low, high);
                store(sum + d, low), store(sum + d + 8, high);
            }
            merge(top[p], norm[p], sum, vd, tops[p], norms[p], total + p * vd);
        }
    }
    for (int64_t p = 0; p < pairs; ++p) {
        float *out = call.out + row(p) * vd;
        const float inverse = 1.0f / norms[p];
        for (int64_t d = 0; d < vd; ++d) out[d] = total[p * vd + d] * inverse;
    }
}
