// Products of weight rows and token rows where registers hold all of the sixteen sums or half of them (AVX-512, AVX2).
// Included by kernels.inl.
//
// Four rows a quarter of a block apart are read side by side, so that each is followed by the next of its stream: the
// processor fetches four long streams by itself, faster than any instruction asks it to. Token rows are packed in
// the order in which they are read; beyond a few tokens, so are the four weight rows, widened once for all of them.

constexpr int64_t kFewChunk = 32;  // sixteens of a row that all tokens take before the next ones
constexpr int64_t kManyChunk = 64;

// Element types of weights, a row of them, and how sixteens are read: one half of those that begin at element i of a
// row. kPaired: the halves are the even and the odd elements, and so are those of the tokens; else the first and the
// last eight. kFew: tokens, at most, for which weights are taken as they lie; the dearer it is to widen them, the fewer.
template <class W>
struct Plain {
    using Row = const typename W::T *;
    static constexpr int kSteps = 1;  // sixteens that are read together
    static constexpr int64_t kBits = 8 * sizeof(typename W::T);
    static constexpr bool kPaired = false;
    static constexpr int64_t kFew = !std::is_same_v<W, F32> ? 8 : kParts == 1 ? INT64_MAX : 32;
    struct Sixteens {
        Row row;
    };
    static Sixteens at(Row row, int64_t i) { return {row + i}; }
    template <int P>
    static Part load(const Sixteens &s) { return W::load(s.row + P * kWidth); }
    static const char *bytes_at(Row row, int64_t i) { return reinterpret_cast<const char *>(row + i); }
    // Bytes: how far before they are used rows are asked for by a single pass of so many tokens, 0 for not at all. The
    // processor's own fetching alone does not keep memory busy beside arithmetic.
    static constexpr int64_t ahead(int tokens) {
        return kParts > 1 || kBits < 16 ? 0 : kBits == 16 && tokens < 3 ? 1024 : kBits == 16 ? 4096 : 3072;
    }
};

#if !defined(__AVX512F__)
// bf16 in one operation for eight elements, where in order it takes two.
struct PairedBF16 : Plain<BF16> {
    static constexpr bool kPaired = true;
    static constexpr int64_t kFew = 32;
    static __m256i at(Row row, int64_t i) { return load_256(row + i); }
    template <int P>
    static Part load(__m256i both) { return P ? odd_bf16(both) : even_bf16(both); }
};
#endif

struct Nibbles {
    struct Row {
        const uint8_t *data;
        const float *pairs;  // scale and shift of each 32 elements
    };
    static constexpr int kSteps = 2;
    static constexpr int64_t kBits = 4;
    static constexpr bool kPaired = false;
    static constexpr int64_t kFew = 3;
    static NibbleParts at(const Row &row, int64_t i) {
        return nibbles(row.data + static_cast<uint64_t>(i) / 2, row.pairs + static_cast<uint64_t>(i) / kLanes);
    }
    template <int P>
    static Part load(const NibbleParts &s) { return load_nibbles<P>(s); }
    static const char *bytes_at(const Row &row, int64_t i) { return reinterpret_cast<const char *>(row.data + i / 2); }
    static constexpr int64_t ahead(int) { return 0; }
};

// Sixteen elements of a token in the Parts that W's come in.
template <class W>
JANUS_INLINE void split(const float *from, Part (&parts)[kParts]) {
    parts[0] = load(from), parts[kParts - 1] = load(from + kLanes - kWidth);
#if !defined(__AVX512F__)
    if (!W::kPaired) return;
    const Part low = parts[0], high = parts[1];
    const auto in_order = [](Part both) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(both), 0xd8)); };
    parts[0] = in_order(_mm256_shuffle_ps(low, high, 0x88)), parts[1] = in_order(_mm256_shuffle_ps(low, high, 0xdd));
#endif
}

// A token into its place c of a group of `count`: elements in chunks of so many sixteens; of a chunk first one half
// of all its sixteens, then the other, each [sixteens][count][kWidth]. So a single token stays in order. What is past
// a whole number of sixteens is a chunk of its own, with zeros after it.
template <class W>
inline void pack_token(const float *x, int64_t k, int64_t chunk, int count, int c, float *to) {
    const int64_t whole = k / kLanes;
    const auto put = [&](const float *from, int64_t s, int64_t first, int64_t size) {
        float *at = to + (first * kParts * count + (s - first) * count + c) * kWidth;
        Part parts[kParts];
        split<W>(from, parts);
        for (int p = 0; p < kParts; ++p) store(at + p * size * count * kWidth, parts[p]);
    };
    if (count == 1)
        for (int64_t s = 0; s < whole; ++s) put(x + s * kLanes, s, s, 1);
    else
        for (int64_t first = 0; first < whole; first += chunk) {
            const int64_t size = std::min(chunk, whole - first);
            for (int64_t s = first; s < first + size; ++s) put(x + s * kLanes, s, first, size);
        }
    if (whole * kLanes == k) return;
    float tail[kLanes] = {};
    std::memcpy(tail, x + whole * kLanes, (k - whole * kLanes) * sizeof(float));
    put(tail, whole, whole, 1);
}

// Lines that a step asks for beside itself: with whole Parts it takes longer and there are fewer passes.
constexpr int kAsked = kParts == 1 ? 4 : 1;

// What to fetch while a panel is computed: the first `lines` cache lines from each of four places on.
struct Ask {
    const char *at[4];
    int64_t lines;
};

// Continues the sums [kParts][4][C][kWidth] of four rows by C tokens over elements [i0, i1), whole sixteens. The
// first pass over `w` asks W::ahead(); `ask` is for those after it.
template <class W, int C>
JANUS_NOINLINE void panel(const typename W::Row (&w)[4], const float *x, int64_t i0, int64_t i1, bool first, float *sums,
                          Ask &ask, bool again) {
    constexpr int PN = C == 1 ? kParts : 1;
    constexpr int64_t kStep = W::kSteps * kLanes, kAtOnce = kLine * 8 / W::kBits;  // elements of a step, of a line
    const auto half = [&](auto part) JANUS_LAMBDA {
        // Copies that nothing else can change: registers hold them.
        const typename W::Row rows[4] = {w[0], w[1], w[2], w[3]};
        const float *tokens = x + part * (i1 - i0) * C / kParts;
        float *at = sums + part * 4 * C * kWidth;
        Part acc[4][C][PN];
        const auto each = [&](auto f) {
            unroll<PN>([&](auto p) { unroll<4>([&](auto r) { unroll<C>([&](auto c) { f(r, c, p); }); }); });
        };
        if (first) each([&](auto r, auto c, auto p) { acc[r][c][p] = zero(); });
        else each([&](auto r, auto c, auto p) { acc[r][c][p] = load(at + ((p * 4 + r) * C + c) * kWidth); });
        const auto step = [&](int64_t i) JANUS_LAMBDA {
            unroll<4>([&](auto r) JANUS_LAMBDA {
                const auto sixteens = W::at(rows[r], i);
                unroll<W::kSteps>([&](auto h) JANUS_LAMBDA {
                    unroll<PN>([&](auto p) JANUS_LAMBDA {
                        const Part wv = W::template load<h * kParts + part + p>(sixteens);
                        unroll<C>([&](auto c) JANUS_LAMBDA {
                            acc[r][c][p] = fma(wv, load(tokens + ((h * PN + p) * C + c) * kWidth), acc[r][c][p]);
                        });
                    });
                });
            });
            tokens += W::kSteps * PN * C * kWidth;
        };
        int64_t i = i0;
        if (C > 1 && (again || part))
            for (int64_t left = 4 * ask.lines; left > 0 && i < i1; i += kStep) {
                unroll<kAsked>([&](auto) {
                    --left;
                    prefetch_near(ask.at[left & 3]);
                    ask.at[left & 3] += kLine;
                });
                step(i);
            }
        else if (constexpr int64_t ahead = C > 1 ? W::ahead(C) : 0; ahead > 0)
            for (const int64_t end = i1 - kAtOnce; i <= end;) {
                unroll<4>([&](auto r) { prefetch(W::bytes_at(rows[r], i) + ahead); });
                for (const int64_t line = i + kAtOnce; i < line; i += kStep) step(i);
            }
        for (; i < i1; i += kStep) step(i);
        each([&](auto r, auto c, auto p) { store(at + ((p * 4 + r) * C + c) * kWidth, acc[r][c][p]); });
    };
    half(Size<0>{});
    if constexpr (PN < kParts) half(Size<1>{});
}

// Four rows, wide: elements in chunks; of a chunk first one half of all its sixteens, then the other, each
// [sixteens][4][kWidth]. Whole sixteens only.
template <class W>
JANUS_NOINLINE void pack_rows(const typename W::Row (&w)[4], int64_t i0, int64_t i1, float *to) {
    const int64_t half = (i1 - i0) / kParts * 4;
    for (int64_t i = i0; i < i1; i += W::kSteps * kLanes, to += W::kSteps * 4 * kWidth)
        unroll<4>([&](auto r) {
            const auto sixteens = W::at(w[r], i);
            unroll<W::kSteps * kParts>([&](auto p) {
                store(to + p % kParts * half + (p / kParts * 4 + r) * kWidth, W::template load<p>(sixteens));
            });
        });
}

// The `count` elements from i on, fewer than sixteen, as pack_rows() does, with zeros after them.
template <class W>
void pack_tail(const typename W::Row (&w)[4], int64_t i, int64_t count, float *to) {
    std::remove_const_t<std::remove_pointer_t<typename W::Row>> tails[4][kLanes] = {};
    typename W::Row rows[4];
    for (int r = 0; r < 4; ++r) std::copy_n(w[r] + i, count, tails[r]), rows[r] = tails[r];
    pack_rows<W>(rows, 0, kLanes, to);
}

// panel() of packed rows: one half of `steps` sixteens, sums [4][C][kWidth].
template <int C>
JANUS_NOINLINE void packed_panel(const float *w, const float *x, int64_t steps, bool first, float *sums) {
    Part acc[4][C];
    const auto each = [&](auto f) { unroll<4>([&](auto r) { unroll<C>([&](auto c) { f(r, c); }); }); };
    if (first) each([&](auto r, auto c) { acc[r][c] = zero(); });
    else each([&](auto r, auto c) { acc[r][c] = load(sums + (r * C + c) * kWidth); });
    for (const float *end = w + steps * 4 * kWidth; w < end; w += 4 * kWidth, x += C * kWidth) {
        Part xv[C];
        unroll<C>([&](auto c) { xv[c] = load(x + c * kWidth); });
        unroll<4>([&](auto r) {
            const Part wv = load(w + r * kWidth);
            unroll<C>([&](auto c) { acc[r][c] = fma(wv, xv[c], acc[r][c]); });
        });
    }
    each([&](auto r, auto c) { store(sums + (r * C + c) * kWidth, acc[r][c]); });
}

// The products of four rows by C tokens: to[c][r * apart], token rows of kBlockRows.
template <class W, int C>
JANUS_INLINE void finish_panel(const float *sums, float *to, int64_t apart) {
    const auto half = [&](int r, int c) {
        const float *at = sums + (r * C + c) * kWidth, *second = at + 4 * C * kWidth;
        if constexpr (W::kPaired) {
            Part both[kParts] = {load(at), load(second)};
            order_bf16(both);
            return add(both[0], both[1]);
        } else {
            return fold(at, second);
        }
    };
    for (int c = 0; c < C; c += 2) {
        Half eight[8];
        for (int r = 0; r < 4; ++r) eight[r] = half(r, c), eight[4 + r] = c + 1 < C ? half(r, c + 1) : half_zero();
        float values[8];
        finish(eight, values);
        for (int j = 0; j < 8 && c + j / 4 < C; ++j) to[(c + j / 4) * kBlockRows + j % 4 * apart] = values[j];
    }
}

// out(t, n, values, count): the products of token t with rows n .. n + count of [n0, n1), count up to kBlockRows.
// row(n, room): a row of the weights; `room` of k / 16 floats is for what belongs to it.
template <class W, class X, class RowOf, class Out>
void panels(const X &x, int64_t tokens, int64_t k, const RowOf &row, int64_t n0, int64_t n1, const Out &out) {
    constexpr int64_t room = 4 * kTokens * kLanes;
    const int64_t whole = k / kLanes * kLanes, padded = (k + kLanes - 1) / kLanes * kLanes;
    const int64_t groups = (tokens + kTokens - 1) / kTokens, passes = tokens == 1 ? 1 : groups * kParts;
    const bool pack = tokens > W::kFew;
    const int64_t chunk = tokens == 1 ? std::max<int64_t>(1, whole / kLanes) : pack ? kManyChunk : kFewChunk;
    float *packed = scratch(4, tokens * padded), *sums = scratch(3, groups * room);
    float *results = scratch(5, tokens * kBlockRows), *wide = scratch(0, 4 * kLanes * kManyChunk);
    const int64_t beside = k / kLanes + kLineFloats;
    float *pairs = W::kBits == 4 ? scratch(6, 4 * beside) : nullptr;
    const auto each_group = [&](const auto &f) {
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t t0 = tokens * g / groups, count = tokens * (g + 1) / groups - t0;
            float *mine = sums + g * room;
            static_assert(kTokens == 3 || kTokens == 6, "a case for each size");
            switch (count) {
                case 1: f(Size<1>{}, t0, mine); break;
                case 2: f(Size<2>{}, t0, mine); break;
                case 3: f(Size<3>{}, t0, mine); break;
                case 4: f(Size<kTokens < 4 ? 1 : 4>{}, t0, mine); break;
                case 5: f(Size<kTokens < 5 ? 1 : 5>{}, t0, mine); break;
                default: f(Size<kTokens < 6 ? 1 : 6>{}, t0, mine); break;
            }
        }
    };
    each_group([&](auto size, int64_t t0, float *) {
        for (int c = 0; c < size; ++c) pack_token<W>(x(t0 + c), k, chunk, size, c, packed + t0 * padded);
    });
    // Both halves of `wide`, elements [i0, i1), by all tokens.
    const auto by_all = [&](int64_t i0, int64_t i1, Ask ask) {
        const int64_t half = (i1 - i0) / kParts;
        each_group([&](auto size, int64_t t0, float *mine) {
            constexpr int C = decltype(size)::value;
            for (int part = 0; part < kParts; ++part) {
                for (int64_t j = 0; j < ask.lines; ++j)
                    unroll<4>([&](auto r) { prefetch(ask.at[r]), ask.at[r] += kLine; });
                packed_panel<C>(wide + part * half * 4, packed + t0 * padded + i0 * C + part * half * C,
                                (i1 - i0) / kLanes, i0 == 0, mine + part * 4 * C * kWidth);
            }
        });
    };
    for (int64_t n = n0; n < n1; n += kBlockRows) {
        const int64_t count = std::min(kBlockRows, n1 - n), quarter = (count + 3) / 4;
        for (int64_t i = 0; i < quarter; ++i) {
            typename W::Row rows[4];
            for (int r = 0; r < 4; ++r) rows[r] = row(n + std::min(r * quarter + i, count - 1), pairs + r * beside);
            for (int64_t i0 = 0; i0 < whole; i0 += chunk * kLanes) {
                const int64_t i1 = std::min(i0 + chunk * kLanes, whole);
                Ask ask{};
                for (int r = 0; r < 4; ++r) ask.at[r] = W::bytes_at(rows[r], i1);
                if (passes > 1) ask.lines = ((i1 - i0) * W::kBits / 8 / kLine + passes - 2) / (passes - 1);
                if (pack) {
                    pack_rows<W>(rows, i0, i1, wide);
                    by_all(i0, i1, ask);
                } else {
                    each_group([&](auto size, int64_t t0, float *mine) {
                        constexpr int C = decltype(size)::value;
                        panel<W, C>(rows, packed + t0 * padded + i0 * C, i0, i1, i0 == 0, mine, ask, t0 > 0);
                    });
                }
            }
            if constexpr (W::kSteps == 1)
                if (whole < k) {
                    pack_tail<W>(rows, whole, k - whole, wide);
                    by_all(whole, padded, Ask{});
                }
            each_group([&](auto size, int64_t t0, float *mine) {
                finish_panel<W, decltype(size)::value>(mine, results + t0 * kBlockRows + i, quarter);
            });
        }
        for (int64_t t = 0; t < tokens; ++t) out(t, n, results + t * kBlockRows, count);
    }
}
