// Body of the kernels; included with JANUS_TABLE, JANUS_NAME, JANUS_ROWS and JANUS_TOKENS defined.

#include "kernels.h"
#include "lanes.h"

namespace janus {
namespace {

constexpr int kRows = JANUS_ROWS;      // weight rows of a register tile
constexpr int kTokens = JANUS_TOKENS;  // tokens of a register tile
constexpr double kGrid = 1.5 * 262144.0;  // adding and subtracting it rounds to a multiple of 2^-34

// R weight rows by C tokens.
template <class W, int R, int C, class X>
inline void tile(const X &x, const typename W::T *w, int64_t k, float (&out)[R][C]) {
    Lanes acc[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = zero();
    const int64_t whole = k - k % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
        Lanes wv[R];
        for (int r = 0; r < R; ++r) wv[r] = W::load(w + r * k + i);
        for (int c = 0; c < C; ++c) {
            const Lanes xv = load_f32(x(c) + i);
            for (int r = 0; r < R; ++r) acc[r][c] = fma(wv[r], xv, acc[r][c]);
        }
    }
    if (whole < k) {
        for (int r = 0; r < R; ++r) {
            const Lanes wv = load_tail<W>(w + r * k + whole, k - whole);
            for (int c = 0; c < C; ++c) acc[r][c] = fma(wv, load_tail<F32>(x(c) + whole, k - whole), acc[r][c]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) out[r][c] = reduce(acc[r][c]);
}

template <class W, int R, int C, class X, class Out>
inline void emit(const X &x, const typename W::T *w, int64_t k, int64_t n, int64_t t, const Out &out) {
    float result[R][C];
    tile<W, R, C>([&](int c) { return x(t + c); }, w + n * k, k, result);
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) out(t + c, n + r, result[r][c]);
}

template <class W, int R, class X, class Out>
inline void tokens_of_rows(const X &x, int64_t tokens, int64_t k, const typename W::T *w, int64_t n, const Out &out) {
    int64_t t = 0;
    for (; t + kTokens <= tokens; t += kTokens) emit<W, R, kTokens>(x, w, k, n, t, out);
    if constexpr (kTokens > 2)
        for (; t + 2 <= tokens; t += 2) emit<W, R, 2>(x, w, k, n, t, out);
    for (; t < tokens; ++t) emit<W, R, 1>(x, w, k, n, t, out);
}

// Every (token, row) product of rows [n0, n1), handed to out(t, n, value).
template <class W, class X, class Out>
void gemm(const X &x, int64_t tokens, int64_t k, const void *weights, int64_t n0, int64_t n1, const Out &out) {
    const auto *w = static_cast<const typename W::T *>(weights);
    int64_t n = n0;
    if (tokens == 1) {
        // Few tokens: more rows at once, to keep as many loads under way.
        for (; n + 8 <= n1; n += 8) emit<W, 8, 1>(x, w, k, n, 0, out);
    }
    for (; n + kRows <= n1; n += kRows) tokens_of_rows<W, kRows>(x, tokens, k, w, n, out);
    for (; n < n1; ++n) tokens_of_rows<W, 1>(x, tokens, k, w, n, out);
}

template <class X, class Out>
void gemm_any(const X &x, int64_t tokens, int64_t k, Weights w, int64_t n0, int64_t n1, const Out &out) {
    switch (w.dtype) {
        case DType::f32: return gemm<F32>(x, tokens, k, w.data, n0, n1, out);
        case DType::bf16: return gemm<BF16>(x, tokens, k, w.data, n0, n1, out);
        case DType::f16: return gemm<F16>(x, tokens, k, w.data, n0, n1, out);
    }
}

void linear(const float *x, int64_t tokens, int64_t k, Weights w, const float *bias, int64_t n0, int64_t n1,
            int64_t n_total, float *out) {
    const auto at = [=](int64_t t) { return x + t * k; };
    if (bias) {
        gemm_any(at, tokens, k, w, n0, n1,
                 [=](int64_t t, int64_t n, float value) { out[t * n_total + n] = value + bias[n]; });
    } else {
        gemm_any(at, tokens, k, w, n0, n1, [=](int64_t t, int64_t n, float value) { out[t * n_total + n] = value; });
    }
}

void gate_up(const float *x, const int32_t *rows, int64_t tokens, int64_t k, Weights gate, Weights up, int64_t n0,
             int64_t n1, int64_t n_total, float *out) {
    const auto at = [=](int64_t t) { return x + static_cast<int64_t>(rows[t]) * k; };
    gemm_any(at, tokens, k, gate, n0, n1, [=](int64_t t, int64_t n, float g) {
        out[t * n_total + n] = g / (1.0f + exp_one(-g));
    });
    gemm_any(at, tokens, k, up, n0, n1, [=](int64_t t, int64_t n, float u) { out[t * n_total + n] *= u; });
}

void down_add(const float *h, const int32_t *rows, const float *weight, int64_t tokens, int64_t k, Weights down,
              int64_t n0, int64_t n1, int64_t n_total, double *out) {
    gemm_any([=](int64_t t) { return h + t * k; }, tokens, k, down, n0, n1, [=](int64_t t, int64_t n, float y) {
        const double exact = static_cast<double>(y) * static_cast<double>(weight[t]);
        out[static_cast<int64_t>(rows[t]) * n_total + n] += (exact + kGrid) - kGrid;
    });
}

inline float dot(const float *a, const float *b, int64_t n) {
    Lanes acc = zero();
    const int64_t whole = n - n % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) acc = fma(load_f32(a + i), load_f32(b + i), acc);
    if (whole < n) acc = fma(load_tail<F32>(a + whole, n - whole), load_tail<F32>(b + whole, n - whole), acc);
    return reduce(acc);
}

template <class W>
inline const float *as_float(const typename W::T *p, float *buffer, int64_t n) {
    if constexpr (sizeof(typename W::T) == 4) return p;
    for (int64_t i = 0; i < n; ++i) buffer[i] = W::one(p[i]);
    return buffer;
}

// A query's scores, weights and sum run over positions in order, whatever the chunk it came in.
template <class W>
void attend_as(const AttentionCall &c, int64_t s, int64_t g, float *scratch) {
    const int64_t first = c.query_starts[s], last = c.query_starts[s + 1], length = c.context_lens[s];
    const int64_t group = c.heads / c.kv_heads, hd = c.head_dim;
    const int32_t *table = c.block_tables + s * c.table_width;
    const auto *keys = static_cast<const typename W::T *>(c.keys);
    const auto *values = static_cast<const typename W::T *>(c.values);
    float *buffer = scratch + group * length;
    const auto place = [&](int64_t position) {
        const int64_t block = table[position / c.block_size];
        return ((block * c.block_size + position % c.block_size) * c.kv_heads + g) * hd;
    };
    for (int64_t t = first; t < last; ++t) {
        const int64_t end = length - (last - t) + 1;  // causal: up to and with its own position
        const int64_t begin = c.window > 0 && end > c.window ? end - c.window : 0;
        const float *q = c.query + (t * c.heads + g * group) * hd;
        float *out = c.out + (t * c.heads + g * group) * hd;
        for (int64_t j = begin; j < end; ++j) {
            const float *key = as_float<W>(keys + place(j), buffer, hd);
            for (int64_t i = 0; i < group; ++i) scratch[i * length + j] = dot(q + i * hd, key, hd) * c.scale;
        }
        for (int64_t i = 0; i < group; ++i) {
            float *score = scratch + i * length;
            float top = -INFINITY, sum = 0.0f;
            for (int64_t j = begin; j < end; ++j) top = score[j] > top || score[j] != score[j] ? score[j] : top;
            for (int64_t j = begin; j < end; ++j) sum += score[j] = exp_one(score[j] - top);
            const float inverse = 1.0f / sum;
            for (int64_t j = begin; j < end; ++j) score[j] *= inverse;
        }
        for (int64_t d = 0; d < group * hd; ++d) out[d] = 0.0f;
        for (int64_t j = begin; j < end; ++j) {
            const float *value = as_float<W>(values + place(j), buffer, hd);
            for (int64_t i = 0; i < group; ++i) {
                const float p = scratch[i * length + j];
                float *o = out + i * hd;
                for (int64_t d = 0; d < hd; ++d) o[d] += p * value[d];
            }
        }
    }
}

void attend(const AttentionCall &call, int64_t sequence, int64_t kv_head, float *scratch) {
    switch (call.dtype) {
        case DType::f32: return attend_as<F32>(call, sequence, kv_head, scratch);
        case DType::bf16: return attend_as<BF16>(call, sequence, kv_head, scratch);
        case DType::f16: return attend_as<F16>(call, sequence, kv_head, scratch);
    }
}

template <class W>
void rms_norm_as(const float *x, int64_t rows, int64_t width, const void *weight, float eps, float *out) {
    const auto *w = static_cast<const typename W::T *>(weight);
    for (int64_t t = 0; t < rows; ++t, x += width, out += width) {
        const float scale = 1.0f / std::sqrt(dot(x, x, width) / static_cast<float>(width) + eps);
        for (int64_t i = 0; i < width; ++i) out[i] = W::one(w[i]) * (x[i] * scale);
    }
}

void rms_norm(const float *x, int64_t rows, int64_t width, Weights weight, float eps, float *out) {
    switch (weight.dtype) {
        case DType::f32: return rms_norm_as<F32>(x, rows, width, weight.data, eps, out);
        case DType::bf16: return rms_norm_as<BF16>(x, rows, width, weight.data, eps, out);
        case DType::f16: return rms_norm_as<F16>(x, rows, width, weight.data, eps, out);
    }
}

}  // namespace

extern const KernelTable JANUS_TABLE;
const KernelTable JANUS_TABLE = {JANUS_NAME, linear, gate_up, down_add, attend, rms_norm};

}  // namespace janus
