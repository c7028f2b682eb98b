// Attention over a cache whose pages hold a KV head's keys column by column, [head_dim][block_size]: sixteen
// positions of one column are a load, so a score needs no sum across a register, and each head's part of a page is
// read from first to last. Values are rows, [block_size][value_dim]. Included by kernels.inl.
//
// Chunks, spans and merging are attention.inl's, and so is what follows: a query's bits do not depend on company.

// Scores of C (query, head) pairs with P times sixteen positions, each sixteen a column of its own: their first elements
// are keys[..], the next ones `size` further. query: [width][C]; scores[c]: those of pair c, sixteen after sixteen.
template <class W, int C, int P>
JANUS_NOINLINE void score_columns(const float *query, const typename W::T *const (&keys)[P], int64_t size, int64_t width,
                                  Feed *feed, float *const (&scores)[C]) {
    Part acc[C][P][kParts];
    const auto each = [](auto f) {
        unroll<C>([&](auto c) { unroll<P>([&](auto u) { unroll<kParts>([&](auto p) { f(c, u, p); }); }); });
    };
    each([&](auto c, auto u, auto p) { acc[c][u][p] = zero(); });
    const float *q = query;
    int64_t at = 0;
    fed<W, P>(width, feed, [&]() JANUS_LAMBDA {
        Part key[P][kParts];
        unroll<P>([&](auto u) { W::sixteen(keys[u] + at, key[u]); });
        unroll<C>([&](auto c) {
            const Part all = broadcast(q[c]);
            unroll<P>([&](auto u) { unroll<kParts>([&](auto p) { acc[c][u][p] = fma(all, key[u][p], acc[c][u][p]); }); });
        });
        at += size, q += C;
    });
    unroll<C>([&](auto c) { unroll<P>([&](auto u) { W::order(acc[c][u]); }); });
    each([&](auto c, auto u, auto p) { store(scores[c] + u * kLanes + p * kWidth, acc[c][u][p]); });
}

// sums[c][..] += weight[c][j] * row j for j of [0, count), in order, a row from element `shift` of rows[j] on; whole
// sixteens of a row in the order of W::sixteen.
template <class W, int C>
JANUS_NOINLINE void weigh_rows(const float *const (&weight)[C], const typename W::T *const *rows, int64_t shift,
                               int64_t count, int64_t width, Feed *feed, float *const (&sums)[C]) {
    int64_t d = 0;
    const auto slices = [&](auto sixteens) {
        constexpr int S = decltype(sixteens)::value;
        for (; d + S * kLanes <= width; d += S * kLanes) {
            Part acc[C][S][kParts];
            const auto each = [](auto f) {
                unroll<C>([&](auto c) { unroll<S>([&](auto s) { unroll<kParts>([&](auto p) { f(c, s, p); }); }); });
            };
            const auto place = [&](int c, int s, int p) { return sums[c] + d + s * kLanes + p * kWidth; };
            each([&](auto c, auto s, auto p) { acc[c][s][p] = load(place(c, s, p)); });
            int64_t j = 0;
            fed<W, S>(count, feed, [&]() JANUS_LAMBDA {
                Part value[S][kParts];
                unroll<S>([&](auto s) { W::sixteen(rows[j] + shift + d + s * kLanes, value[s]); });
                unroll<C>([&](auto c) {
                    const Part w = broadcast(weight[c][j]);
                    unroll<S>([&](auto s) { unroll<kParts>([&](auto p) { acc[c][s][p] = fma(w, value[s][p], acc[c][s][p]); }); });
                });
                ++j;
            });
            each([&](auto c, auto s, auto p) { store(place(c, s, p), acc[c][s][p]); });
        }
    };
    slices(Size<kTile>{});
    if (kTile > 1) slices(Size<1>{});
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
    Part tops[kParts], sums[kParts];
    unroll<kParts>([&](auto p) { tops[p] = broadcast(-INFINITY), sums[p] = zero(); });
    for (int64_t j = 0; j < end; j += kLanes)
        unroll<kParts>([&](auto p) { tops[p] = larger(load(score + j + p * kWidth), tops[p]); });
    unroll<kParts>([&](auto p) { store(lanes + p * kWidth, tops[p]); });
    top = lanes[0];
    for (int i = 1; i < kLanes; ++i) top = lanes[i] > top ? lanes[i] : top;
    const Part lower = broadcast(-top);
    const auto some = [&](auto count, int64_t j) JANUS_LAMBDA {
        constexpr int N = decltype(count)::value;
        Part values[N];
        unroll<N>([&](auto i) { values[i] = add(load(score + j + i * kWidth), lower); });
        exp_parts<N>(values);
        unroll<N>([&](auto i) {
            store(score + j + i * kWidth, values[i]);
            sums[i % kParts] = add(sums[i % kParts], values[i]);
        });
    };
    int64_t j = 0;
    for (; j + 4 * kWidth <= end; j += 4 * kWidth) some(Size<4>{}, j);
    for (; j < end; j += kLanes) some(Size<kParts>{}, j);
    unroll<kParts>([&](auto p) { store(lanes + p * kWidth, sums[p]); });
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

    for (int64_t base = begin; base < longest; base += kChunk) {
        const int64_t count = longest - base < kChunk ? longest - base : kChunk;
        const int32_t *blocks = table + base / size;
        // Several sixteens at once as long as there are as many.
        const auto scores_of = [&](auto sixteens, int64_t j) {
            constexpr int P = decltype(sixteens)::value;
            for (int64_t g = 0; g < kv_heads; ++g) {
                const T *keys[P];
                for (int u = 0; u < P; ++u) {
                    const int64_t at = j + u * kLanes;
                    keys[u] = keys_at + blocks[at / size] * call.key_block + g * call.key_head + at % size;
                }
                tiles(g * per_kv, (g + 1) * per_kv, [&](auto tile, int64_t p) {
                    constexpr int C = decltype(tile)::value;
                    float *to[C];
                    for (int c = 0; c < C; ++c) to[c] = scores + (p + c) * kChunk + j;
                    score_columns<W, C, P>(queries + p * hd, keys, size, hd, p == g * per_kv ? &feed : nullptr, to);
                });
            }
        };
        int64_t scored = 0;
        for (; scored + kTile * kLanes <= count; scored += kTile * kLanes) scores_of(Size<kTile>{}, scored);
        for (; scored < count; scored += kLanes) scores_of(Size<1>{}, scored);
        for (int64_t p = 0; p < pairs; ++p) {
            spans[p] = sees(p, base);
            if (spans[p].begin < spans[p].end) soften(scores + p * kChunk, spans[p], top[p], norm[p]);
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
        for (int64_t p = 0; p < pairs; ++p) {
            if (spans[p].begin >= spans[p].end) continue;
            float *sum = sums + p * vd;
            for (int64_t d = 0; d + kLanes <= vd; d += kLanes) {
                Part parts[kParts];
                unroll<kParts>([&](auto i) { parts[i] = load(sum + d + i * kWidth); });
                W::order(parts);
                unroll<kParts>([&](auto i) { store(sum + d + i * kWidth, parts[i]); });
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
