// Products of tokens and weight rows: register tiles, and the walk over a block of rows.
// Weights are read once per call, front to back; what comes next is asked for one tile ahead.

namespace janus {
namespace {

constexpr int kRows = JANUS_ROWS;      // weight rows of a register tile
constexpr int kTokens = JANUS_TOKENS;  // tokens of a register tile
constexpr int kLine = 64;              // bytes of a cache line
constexpr int64_t kColumns = 32;       // weight rows of a block
constexpr int64_t kGroup = 96;         // tokens of a block: whole register tiles

// out[c][r] = x[c] . w[r * stride ..] over k. Ahead: also ask for the R rows at `ahead`.
template <class W, int R, int C, bool Ahead>
__attribute__((noinline)) void tile(const float *const *x, const typename W::T *w, int64_t stride, int64_t k,
                                    const typename W::T *ahead, int64_t ahead_stride, float (*out)[R]) {
    constexpr int64_t kStep = kLine / sizeof(typename W::T);  // elements of a cache line
    Lanes acc[C][R];
    for (int c = 0; c < C; ++c)
        for (int r = 0; r < R; ++r) acc[c][r] = zero();
    const float *xs[C];
    for (int c = 0; c < C; ++c) xs[c] = x[c];
    const auto step = [&](int64_t i) {
        Lanes wv[R];
        for (int r = 0; r < R; ++r) wv[r] = W::load(w + r * stride + i);
        for (int c = 0; c < C; ++c) {
            const Lanes xv = load_f32(xs[c] + i);
            for (int r = 0; r < R; ++r) acc[c][r] = fma(wv[r], xv, acc[c][r]);
        }
    };
    const int64_t whole = k - k % kLanes;
    int64_t i = 0;
    for (; i + kStep <= whole; i += kStep) {
        if constexpr (Ahead)
            for (int r = 0; r < R; ++r) prefetch(ahead + r * ahead_stride + i);
        for (int64_t j = 0; j < kStep; j += kLanes) step(i + j);
    }
    for (; i < whole; i += kLanes) step(i);
    if (whole < k) {
        for (int r = 0; r < R; ++r) {
            const Lanes wv = load_tail<W>(w + r * stride + whole, k - whole);
            for (int c = 0; c < C; ++c) acc[c][r] = fma(wv, load_tail<F32>(xs[c] + whole, k - whole), acc[c][r]);
        }
    }
    for (int c = 0; c < C; ++c) {
        int r = 0;
        for (; r + 4 <= R; r += 4) reduce4(acc[c][r], acc[c][r + 1], acc[c][r + 2], acc[c][r + 3], out[c] + r);
        for (; r < R; ++r) out[c][r] = reduce(acc[c][r]);
    }
}

// C tokens with C known when this runs.
template <class W, int R, bool Ahead, int C = kTokens>
inline void tile_of(int64_t count, const float *const *x, const typename W::T *w, int64_t stride, int64_t k,
                    const typename W::T *ahead, int64_t ahead_stride, float (*out)[R]) {
    if constexpr (C > 1) {
        if (count < C) return tile_of<W, R, Ahead, C - 1>(count, x, w, stride, k, ahead, ahead_stride, out);
    }
    tile<W, R, C, Ahead>(x, w, stride, k, ahead, ahead_stride, out);
}

struct Widened;
struct FirstBlock;
struct SecondBlock;

// This thread's buffer of that name, of at least `size` floats.
template <class Name>
inline float *scratch(int64_t size) {
    thread_local std::unique_ptr<float[]> buffer;
    thread_local int64_t room = 0;
    if (room < size) {
        buffer.reset(new float[size]);
        room = size;
    }
    return buffer.get();
}

// Rows [n, n + R) for every token.
template <class W, int R, class X, class Out>
inline void rows_tile(const X &x, int64_t tokens, int64_t k, const typename W::T *w, int64_t n,
                      const typename W::T *ahead, const Out &out) {
    float result[kTokens][R];
    const float *xs[kTokens];
    const typename W::T *rows = w + n * k;
    const auto batch = [&](int64_t t, auto &&multiply) {
        const int64_t count = tokens - t < kTokens ? tokens - t : kTokens;
        for (int64_t c = 0; c < count; ++c) xs[c] = x(t + c);
        multiply(count);
        for (int64_t c = 0; c < count; ++c) out(t + c, n, result[c]);
        return count;
    };
    if (sizeof(typename W::T) < 4 && tokens > 2 * kTokens) {
        // Each weight meets many tokens: widen it once.
        const int64_t stride = k + kLanes, whole = k - k % kLanes;
        float *wide = scratch<Widened>(R * stride);
        for (int r = 0; r < R; ++r) {
            for (int64_t i = 0; i < whole; i += kLanes) {
                prefetch(ahead + r * k + i);
                store_f32(wide + r * stride + i, W::load(rows + r * k + i));
            }
            for (int64_t i = whole; i < k; ++i) wide[r * stride + i] = W::one(rows[r * k + i]);
        }
        for (int64_t t = 0; t < tokens;)
            t += batch(t, [&](int64_t c) { tile_of<F32, R, false>(c, xs, wide, stride, k, nullptr, 0, result); });
        return;
    }
    int64_t t = batch(0, [&](int64_t c) { tile_of<W, R, true>(c, xs, rows, k, k, ahead, k, result); });
    while (t < tokens)
        t += batch(t, [&](int64_t c) { tile_of<W, R, false>(c, xs, rows, k, k, nullptr, 0, result); });
}

// block[t * kColumns + n - n0] = x(t) . row n, for rows n of [n0, n1), at most kColumns.
// `after`: what this thread reads next (or null).
template <class W, class X>
void gemm(const X &x, int64_t tokens, int64_t k, const void *weights, int64_t n0, int64_t n1, const void *after,
          float *block) {
    using T = typename W::T;
    const auto *w = static_cast<const T *>(weights);
    const auto *then = static_cast<const T *>(after);
    const auto next = [&](int64_t n) { return n < n1 || !then ? w + n * k : then; };
    const auto out = [&](int64_t t, int64_t n, const auto &value) {
        std::memcpy(block + t * kColumns + n - n0, value, sizeof(value));
    };
    int64_t n = n0;
    if (tokens == 1) {
        // More rows at once, to keep as many loads under way.
        const float *const row = x(0);
        float result[1][8];
        for (; n + 8 <= n1; n += 8) {
            tile<W, 8, 1, true>(&row, w + n * k, k, k, next(n + 8), k, result);
            out(0, n, result[0]);
        }
    }
    for (; n + kRows <= n1; n += kRows) rows_tile<W, kRows>(x, tokens, k, w, n, next(n + kRows), out);
    for (; n < n1; ++n) rows_tile<W, 1>(x, tokens, k, w, n, next(n + 1), out);
}

template <class X>
void gemm_any(const X &x, int64_t tokens, int64_t k, Weights w, int64_t n0, int64_t n1, const void *after,
              float *block) {
    switch (w.dtype) {
        case DType::f32: return gemm<F32>(x, tokens, k, w.data, n0, n1, after, block);
        case DType::bf16: return gemm<BF16>(x, tokens, k, w.data, n0, n1, after, block);
        case DType::f16: return gemm<F16>(x, tokens, k, w.data, n0, n1, after, block);
    }
}

// Calls fn(first token, tokens, n0, n1) over groups that the second cache holds: kColumns rows, kGroup tokens.
template <class F>
inline void in_blocks(int64_t tokens, int64_t n0, int64_t n1, const F &fn) {
    for (int64_t n = n0; n < n1; n += kColumns)
        for (int64_t t = 0; t < tokens; t += kGroup)
            fn(t, tokens - t < kGroup ? tokens - t : kGroup, n, n1 - n < kColumns ? n1 : n + kColumns);
}

}  // namespace
}  // namespace janus
