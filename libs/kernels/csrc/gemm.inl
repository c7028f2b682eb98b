// Products of weight rows and token rows. Included by kernels.inl.

// What to fetch into the second cache meanwhile: `lines` cache lines from `at` on for every sixteen elements of
// the rows at hand, `step` bytes further each time. In order of address and every other line: the processor
// fetches ahead by itself once it sees the order, and has few places for what is under way.
struct Ahead {
    const char *at = nullptr;
    int64_t step = 0;
    int lines = 0;
};

// Sums of R weight rows by C tokens over elements [k0, k1), PN parts of each sixteen from `part` on.
template <class W, int R, int C, int PN>
JANUS_INLINE void run_parts(const typename W::T *const (&w)[R], const float *const (&x)[C], int64_t k0, int64_t k1,
                            int part, Ahead &ahead, Part (&acc)[R][C][PN]) {
    for (int64_t i = k0; i < k1; i += kLanes) {
        unroll<PN>([&](auto p) {
            const int64_t at = i + (part + p) * kWidth;
            Part xv[C];
            unroll<C>([&](auto c) { xv[c] = load(x[c] + at); });
            unroll<R>([&](auto r) {
                const Part wv = W::load(w[r] + at);
                unroll<C>([&](auto c) { acc[r][c][p] = fma(wv, xv[c], acc[r][c][p]); });
            });
        });
        for (int line = 0; line < ahead.lines; line += 2) prefetch(ahead.at + line * kLine);
        ahead.at += ahead.step;
    }
}

// What is past a whole number of sixteens: zeros follow it.
template <class W, int R, int C, int PN>
JANUS_INLINE void run_tail(const typename W::T *const (&w)[R], const float *const (&x)[C], int64_t k0, int64_t count,
                     int part, Part (&acc)[R][C][PN]) {
    typename W::T wt[R][kLanes] = {};
    float xt[C][kLanes] = {};
    const typename W::T *wp[R];
    const float *xp[C];
    for (int r = 0; r < R; ++r) {
        std::memcpy(wt[r], w[r] + k0, count * sizeof(typename W::T));
        wp[r] = wt[r];
    }
    for (int c = 0; c < C; ++c) {
        std::memcpy(xt[c], x[c] + k0, count * sizeof(float));
        xp[c] = xt[c];
    }
    Ahead none;
    run_parts<W, R, C, PN>(wp, xp, 0, kLanes, part, none, acc);
}

// Continues the sums of R rows by C tokens over elements [k0, k1) of k; sums: floats [kParts, R, C, kWidth].
template <class W, int R, int C>
JANUS_NOINLINE void advance(const typename W::T *const (&w)[R], const float *const (&x)[C], int64_t k0, int64_t k1,
                            int64_t k, Ahead ahead, float *sums) {
    const int64_t whole = k - k % kLanes, end = k1 < whole ? k1 : whole;
    // With too few registers for all sixteen sums, each half has its own pass.
    constexpr int PN = R * C * kParts <= kSums ? kParts : 1;
    for (int part = 0; part < kParts; part += PN) {
        Part acc[R][C][PN];
        const auto each = [](auto f) {
            unroll<PN>([&](auto p) { unroll<R>([&](auto r) { unroll<C>([&](auto c) { f(r, c, p); }); }); });
        };
        const auto place = [&](int r, int c, int p) { return sums + (((part + p) * R + r) * C + c) * kWidth; };
        if (k0 == 0) each([&](auto r, auto c, auto p) { acc[r][c][p] = zero(); });
        else each([&](auto r, auto c, auto p) { acc[r][c][p] = load(place(r, c, p)); });
        run_parts<W, R, C, PN>(w, x, k0, end, part, ahead, acc);
        if (k1 > whole) run_tail<W, R, C, PN>(w, x, whole, k - whole, part, acc);
        each([&](auto r, auto c, auto p) { store(place(r, c, p), acc[r][c][p]); });
    }
}

template <int R, int C>
JANUS_INLINE Half folded(const float *sums, int r, int c) {
    const float *at = sums + (r * C + c) * kWidth;
    return fold(at, at + R * C * kWidth);
}

// The part of what is fetched ahead that falls to a tile at `done` of `all` elements. A tile that goes over its
// elements in several passes fetches in each of them.
inline Ahead share(const void *next, int64_t bytes, int64_t done, int64_t all) {
    const int64_t step = bytes * kLanes / all;
    return {static_cast<const char *>(next) + bytes * done / all, step, static_cast<int>((step + kLine - 1) / kLine)};
}

// Every token by four weight rows, in groups of as equal a size as can be; out(t, values) gets the four
// products of each token. Long rows go in stretches, so that theirs stays in the nearest cache for all tokens.
// `next`, `bytes`: what is read after this, fetched meanwhile.
template <class W, class X, class Out>
inline void rows4(const X &x, int64_t tokens, int64_t k, const typename W::T *const (&w)[4], const void *next,
                  int64_t bytes, const Out &out) {
    const int64_t groups = (tokens + kTokens - 1) / kTokens, room = 4 * kTokens * kLanes;
    float few[room], *sums = groups == 1 ? few : scratch(3, groups * room);
    const int64_t stretch = groups == 1 && kParts == 1 ? k : kPass;
    for (int64_t k0 = 0; k0 < k; k0 += stretch) {
        const int64_t k1 = k0 + stretch < k ? k0 + stretch : k;
        int64_t t = 0;
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t count = (tokens - t + groups - g - 1) / (groups - g);
            float *mine = sums + g * room;
            const Ahead ahead = next ? share(next, bytes, k0 * groups + g * (k1 - k0), groups * k) : Ahead{};
            const auto run = [&](auto size) {
                constexpr int C = decltype(size)::value;
                const float *rows[C];
                for (int c = 0; c < C; ++c) rows[c] = x(t + c);
                advance<W, 4, C>(w, rows, k0, k1, k, ahead, mine);
                if (k1 < k) return;
                for (int c = 0; c < C; c += 2) {
                    Half eight[8];
                    for (int r = 0; r < 4; ++r) {
                        eight[r] = folded<4, C>(mine, r, c);
                        eight[4 + r] = c + 1 < C ? folded<4, C>(mine, r, c + 1) : half_zero();
                    }
                    float values[8];
                    finish(eight, values);
                    out(t + c, values);
                    if (c + 1 < C) out(t + c + 1, values + 4);
                }
            };
            static_assert(kTokens <= 6, "a case for each size");
            switch (count) {
                case 1: run(Size<1>{}); break;
                case 2: run(Size<kTokens < 2 ? 1 : 2>{}); break;
                case 3: run(Size<kTokens < 3 ? 1 : 3>{}); break;
                case 4: run(Size<kTokens < 4 ? 1 : 4>{}); break;
                case 5: run(Size<kTokens < 5 ? 1 : 5>{}); break;
                default: run(Size<kTokens < 6 ? 1 : 6>{}); break;
            }
            t += count;
        }
    }
}

// out(t, n, values, count): the products of token t with rows n .. n + count of [n0, n1), count 1..8.
// `after`: what this thread probably reads next, or null.
template <class W, class X, class Out>
void gemm(const X &x, int64_t tokens, int64_t k, const void *weights, int64_t n0, int64_t n1, const void *after,
          const Out &out) {
    using T = typename W::T;
    const T *w = static_cast<const T *>(weights);
    const auto next = [&](int64_t n) -> const void * { return n < n1 ? w + n * k : after; };
    // Widening a row costs as much as a few products with it: do it once where many tokens use it.
    const bool widen = sizeof(T) < 4 && tokens > 2 * kTokens;
    for (int64_t n = n0; n < n1; n += 4) {
        const int64_t count = n1 - n < 4 ? n1 - n : 4, bytes = 4 * k * static_cast<int64_t>(sizeof(T));
        const T *rows[4];
        for (int r = 0; r < 4; ++r) rows[r] = w + (n + (r < count ? r : 0)) * k;
        const auto emit = [&](int64_t t, const float *values) {
            if (count == 4) out(t, n, values, 4);
            else out(t, n, values, count);
        };
        if constexpr (sizeof(T) < 4) {
            if (widen) {
                const int64_t stride = k + kLineFloats;
                float *buffer = scratch(0, 4 * stride);
                const float *wide[4];
                for (int r = 0; r < 4; ++r) {
                    widen_row<W>(rows[r], k, buffer + r * stride);
                    wide[r] = buffer + r * stride;
                }
                rows4<F32>(x, tokens, k, wide, next(n + 4), bytes, emit);
                continue;
            }
        }
        rows4<W>(x, tokens, k, rows, next(n + 4), bytes, emit);
    }
}

// A row of nibbles, wide. Of each 32 elements, sixteen bytes: element i in the lower half of byte i, element 16 + i
// in the upper.
inline void widen_i4(const uint8_t *from, const Pair *pairs, int64_t group, int64_t count, float *to) {
    for (int64_t i = 0; i < count; i += 32, from += 16, to += 32) {
        const Pair pair = pairs[i / group];
        const float scale = f16_to_float(pair.scale), shift = f16_to_float(pair.shift);
        for (int j = 0; j < 16; ++j) {
            to[j] = fma_one(scale, static_cast<float>(from[j] & 15), shift);
            to[16 + j] = fma_one(scale, static_cast<float>(from[j] >> 4), shift);
        }
    }
}

// gemm() with int4 weights: rows are widened first, always, so that one token's bits are those of many.
template <class X, class Out>
void gemm_i4(const X &x, int64_t tokens, int64_t k, const Weights &w, int64_t n0, int64_t n1, const void *after,
             const Out &out) {
    const int64_t stride = k + kLineFloats, groups = k / w.group;
    float *wide = scratch(0, 4 * stride);
    for (int64_t n = n0; n < n1; n += 4) {
        const int64_t count = n1 - n < 4 ? n1 - n : 4;
        const float *rows[4];
        for (int64_t r = 0; r < 4; ++r) {
            rows[r] = wide + (r < count ? r : 0) * stride;
            if (r < count)
                widen_i4(static_cast<const uint8_t *>(row_of(w, n + r, k)),
                         static_cast<const Pair *>(w.scale) + (n + r) * groups, w.group, k, wide + r * stride);
        }
        const void *next = n + 4 < n1 ? row_of(w, n + 4, k) : after;
        rows4<F32>(x, tokens, k, rows, next, 2 * k, [&](int64_t t, const float *values) { out(t, n, values, count); });
    }
}

constexpr int64_t kPairsAhead = 1024;  // bytes: pairs of a row are too few for the processor to see a stream

template <class X, class Out>
void gemm_any(const X &x, int64_t tokens, int64_t k, Weights w, int64_t n0, int64_t n1, const void *after,
              const Out &out) {
    const auto scaled = [&](int64_t t, int64_t n, const float *values, int64_t count) {
        float products[kBlockRows];
        const float *scale = static_cast<const float *>(w.scale) + n;
        for (int64_t i = 0; i < count; ++i) products[i] = values[i] * scale[i];
        out(t, n, products, count);
    };
#if JANUS_PANELS
    (void)after;
    const auto plain = [&](auto type, const auto &out) {
        using W = decltype(type);
        const auto data = static_cast<typename W::Row>(w.data);
        panels<W>(x, tokens, k, [=](int64_t n, float *) { return data + n * k; }, n0, n1, out);
    };
    switch (w.dtype) {
        case DType::f32: return plain(Plain<F32>{}, out);
#if defined(__AVX512F__)
        case DType::bf16: return plain(Plain<BF16>{}, out);
#else
        case DType::bf16: return tokens > PairedBF16::kFew ? plain(Plain<BF16>{}, out) : plain(PairedBF16{}, out);
#endif
        case DType::f16: return plain(Plain<F16>{}, out);
        case DType::i8: return plain(Plain<I8>{}, scaled);
        case DType::i4: {
            const auto *data = static_cast<const uint8_t *>(w.data);
            const int shift = __builtin_ctzll(w.group);
            const int64_t numbers = 2 * (k >> shift);
            const auto *pairs = static_cast<const uint16_t *>(w.scale);
            const auto row = [=](int64_t n, float *room) {
                const uint16_t *mine = pairs + n * numbers;
                for (int64_t i = 0; i < numbers; i += kLine / 2) prefetch(mine + kPairsAhead / 2 + i);
                widen_row<F16>(mine, numbers, room);
                // Larger groups as several of 32, the last ones first, as they are in each other's places.
                for (int64_t i = k / 32; shift > 5 && i-- > 0;)
                    std::copy_n(room + 2 * (i >> (shift - 5)), 2, room + 2 * i);
                return Nibbles::Row{data + n * k / 2, room};
            };
            return panels<Nibbles>(x, tokens, k, row, n0, n1, out);
        }
    }
#else
    switch (w.dtype) {
        case DType::f32: return gemm<F32>(x, tokens, k, w.data, n0, n1, after, out);
        case DType::bf16: return gemm<BF16>(x, tokens, k, w.data, n0, n1, after, out);
        case DType::f16: return gemm<F16>(x, tokens, k, w.data, n0, n1, after, out);
        case DType::i8: return gemm<I8>(x, tokens, k, w.data, n0, n1, after, scaled);
        case DType::i4: return gemm_i4(x, tokens, k, w, n0, n1, after, out);
    }
#endif
}

inline void put(float *to, const float *values, const float *bias, int64_t count) {
    if (bias)
        for (int64_t i = 0; i < count; ++i) to[i] = values[i] + bias[i];
    else
        for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

void linear(const float *x, int64_t x_stride, int64_t tokens, int64_t k, Weights w, int64_t n0, int64_t n1,
            const void *after, int64_t n_total, float *out) {
    const float *bias = w.bias;
    gemm_any([=](int64_t t) { return x + t * x_stride; }, tokens, k, w, n0, n1, after,
             [=](int64_t t, int64_t n, const float *values, int64_t count) {
                 put(out + t * n_total + n, values, bias ? bias + n : nullptr, count);
             });
}

void activate(const Activation &a, float *gate, const float *up, int64_t count) {
    if (!a.clamped) {
        for (int64_t n = 0; n < count; ++n) gate[n] = gate[n] / (1.0f + exp_one(-gate[n])) * up[n];
        return;
    }
    for (int64_t n = 0; n < count; ++n) {
        const float g = gate[n] > a.limit ? a.limit : gate[n], most = up[n] > a.limit ? a.limit : up[n];
        const float u = most < -a.limit ? -a.limit : most;
        gate[n] = (u + 1.0f) * (g / (1.0f + exp_one(-(g * a.alpha))));
    }
}

void gate_up(const float *x, int64_t x_stride, const int32_t *rows, int64_t tokens, int64_t k, Weights gate, Weights up,
             const Activation &activation, int64_t n0, int64_t n1, const void *after, float *out, int64_t out_stride) {
    const auto at = [=](int64_t t) { return x + static_cast<int64_t>(rows ? rows[t] : t) * x_stride; };
    const int64_t width = n1 - n0;
    float *ups = scratch(1, tokens * width);
    gemm_any(at, tokens, k, gate, n0, n1, row_of(up, n0, k), [=](int64_t t, int64_t n, const float *values, int64_t count) {
        put(out + t * out_stride + n, values, gate.bias ? gate.bias + n : nullptr, count);
    });
    gemm_any(at, tokens, k, up, n0, n1, after, [=](int64_t t, int64_t n, const float *values, int64_t count) {
        put(ups + t * width + n - n0, values, up.bias ? up.bias + n : nullptr, count);
    });
    for (int64_t t = 0; t < tokens; ++t) activate(activation, out + t * out_stride + n0, ups + t * width, width);
}

void down_add(const float *h, int64_t h_stride, const int32_t *rows, const double *weight, int64_t tokens, int64_t k,
              Weights down, int64_t n0, int64_t n1, const void *after, int64_t n_total, double *out) {
    gemm_any([=](int64_t t) { return h + t * h_stride; }, tokens, k, down, n0, n1, after,
             [=](int64_t t, int64_t n, const float *values, int64_t count) {
                 const double scale = weight[t];
                 float biased[kBlockRows];
                 put(biased, values, down.bias ? down.bias + n : nullptr, count);
                 double *o = out + static_cast<int64_t>(rows[t]) * n_total + n;
                 for (int64_t i = 0; i < count; ++i)
                     o[i] += (static_cast<double>(biased[i]) * scale + kGrid) - kGrid;
             });
}
