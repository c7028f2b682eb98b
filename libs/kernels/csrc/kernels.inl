// Body of the kernels; included with JANUS_TABLE, JANUS_NAME, JANUS_ROWS and JANUS_TOKENS defined.

#include <memory>

#include "kernels.h"
#include "lanes.h"

#include "gemm.inl"

#include "attend.inl"

namespace janus {
namespace {

constexpr double kGrid = 1.5 * 262144.0;  // adding and subtracting it rounds to a multiple of 2^-34

void linear(const float *x, int64_t x_stride, int64_t tokens, int64_t k, Weights w, const float *bias, int64_t n0,
            int64_t n1, const void *after, int64_t n_total, float *out) {
    in_blocks(tokens, n0, n1, [&](int64_t first, int64_t count, int64_t from, int64_t to) {
        float *block = scratch<FirstBlock>(kGroup * kColumns);
        gemm_any([=](int64_t t) { return x + (first + t) * x_stride; }, count, k, w, from, to, after, block);
        for (int64_t t = 0; t < count; ++t) {
            const float *value = block + t * kColumns;
            float *row = out + (first + t) * n_total + from;
            for (int64_t n = 0; n < to - from; ++n) row[n] = bias ? value[n] + bias[from + n] : value[n];
        }
    });
}

void gate_up(const float *x, int64_t x_stride, const int32_t *rows, int64_t tokens, int64_t k, Weights gate, Weights up,
             int64_t n0, int64_t n1, const void *after, float *out, int64_t out_stride) {
    const int64_t bytes = up.dtype == DType::f32 ? 4 : 2;
    in_blocks(tokens, n0, n1, [&](int64_t first, int64_t count, int64_t from, int64_t to) {
        const auto at = [=](int64_t t) { return x + static_cast<int64_t>(rows[first + t]) * x_stride; };
        float *g = scratch<FirstBlock>(kGroup * kColumns), *u = scratch<SecondBlock>(kGroup * kColumns);
        gemm_any(at, count, k, gate, from, to, static_cast<const char *>(up.data) + from * k * bytes, g);
        gemm_any(at, count, k, up, from, to, after, u);
        for (int64_t t = 0; t < count; ++t, g += kColumns, u += kColumns) {
            float *row = out + (first + t) * out_stride + from;
            for (int64_t n = 0; n < to - from; ++n) row[n] = g[n] / (1.0f + exp_one(-g[n])) * u[n];
        }
    });
}

void down_add(const float *h, int64_t h_stride, const int32_t *rows, const double *weight, int64_t tokens, int64_t k,
              Weights down, int64_t n0, int64_t n1, const void *after, int64_t n_total, double *out) {
    in_blocks(tokens, n0, n1, [&](int64_t first, int64_t count, int64_t from, int64_t to) {
        float *y = scratch<FirstBlock>(kGroup * kColumns);
        gemm_any([=](int64_t t) { return h + (first + t) * h_stride; }, count, k, down, from, to, after, y);
        for (int64_t t = 0; t < count; ++t, y += kColumns) {
            double *row = out + static_cast<int64_t>(rows[first + t]) * n_total + from;
            const double scale = static_cast<double>(weight[first + t]);
            for (int64_t n = 0; n < to - from; ++n)
                row[n] += (static_cast<double>(y[n]) * scale + kGrid) - kGrid;
        }
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

// SplitMix64's finaliser.
inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

uint64_t digest(const int32_t *ids, const int32_t *replica_ids, int64_t count, uint64_t layout_version) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t word = static_cast<uint64_t>(static_cast<uint32_t>(ids[i])) << 32 |
                              static_cast<uint32_t>(replica_ids[i]);
        sum += mix(word + static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15ULL);
    }
    return mix(sum + mix(layout_version + 0x9e3779b97f4a7c15ULL) + static_cast<uint64_t>(count));
}

// What the machine can do, for the benchmarks.
float read_probe(const float *data, int64_t count) {
    constexpr int64_t kStride = 8 * kLanes;
    Lanes acc[8];
    for (auto &lanes : acc) lanes = zero();
    const Lanes one = broadcast(1.0f);
    for (int64_t i = 0; i + kStride <= count; i += kStride)
        for (int r = 0; r < 8; ++r) {
            prefetch(data + i + r * kLanes + 64 * kLanes);
            acc[r] = fma(load_f32(data + i + r * kLanes), one, acc[r]);
        }
    float sum = 0.0f;
    for (const auto &lanes : acc) sum += reduce(lanes);
    return sum;
}

float fma_probe(int64_t rounds) {
    constexpr int kChains = kRows * kTokens < 8 ? 6 : 12;
    Lanes acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = broadcast(static_cast<float>(i));
    const Lanes a = broadcast(0.999f), b = broadcast(0.001f);
    for (int64_t i = 0; i < rounds; ++i)
        for (auto &lanes : acc) lanes = fma(lanes, a, b);
    float sum = 0.0f;
    for (const auto &lanes : acc) sum += reduce(lanes);
    return sum;
}

}  // namespace

extern const KernelTable JANUS_TABLE;
const KernelTable JANUS_TABLE = {JANUS_NAME, linear, gate_up, down_add,   attend,    rms_norm,
                                 digest,     read_probe, fma_probe, 2 * kLanes * (kRows * kTokens < 8 ? 6 : 12)};

}  // namespace janus
