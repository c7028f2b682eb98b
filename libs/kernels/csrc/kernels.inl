// Body of the kernels of one instruction set; included with JANUS_TABLE, JANUS_NAME, JANUS_TOKENS and, where there are
// vectors, JANUS_PANELS defined.

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels.h"
#include "lanes.h"
#include "mix.h"

namespace janus {
namespace {

constexpr int kTokens = JANUS_TOKENS;     // tokens of a register tile of four weight rows
constexpr int kSums = 4 * kTokens;        // Parts that fit the registers beside what is being loaded
constexpr int kTile = kTokens > 4 ? 4 : 1;  // sixteens by kPairs whose sums fit the registers
constexpr int64_t kPass = 512 * (3 - kParts);  // elements of a row taken at once
constexpr int64_t kBlockRows = 256;       // weight rows whose results are written together, at most
constexpr int64_t kLine = 64;             // bytes of a cache line
constexpr int64_t kLineFloats = 16;
constexpr double kGrid = 1.5 * 262144.0;  // adding and subtracting it rounds to a multiple of 2^-34

// Register tiles are loops whose every index is a constant, in functions of their own: left to itself the
// compiler keeps some of their sums in memory.
#define JANUS_INLINE inline __attribute__((always_inline))
#define JANUS_NOINLINE __attribute__((noinline))
#define JANUS_LAMBDA __attribute__((always_inline))

template <int N>
using Size = std::integral_constant<int, N>;

template <class F, int... I>
JANUS_INLINE void unroll_over(const F &f, std::integer_sequence<int, I...>) {
    (f(Size<I>{}), ...);
}

// f(0), f(1), .. f(N - 1), each number a constant.
template <int N, class F>
JANUS_INLINE void unroll(const F &f) {
    unroll_over(f, std::make_integer_sequence<int, N>{});
}

// A thread's own buffers, from a cache line's begin on; one of a slot is lost when the slot is asked for more.
inline float *scratch(int slot, int64_t floats) {
    thread_local std::vector<float> buffers[7];
    auto &buffer = buffers[slot];
    if (static_cast<int64_t>(buffer.size()) < floats + kLineFloats) buffer.resize(floats + kLineFloats);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(buffer.data());
    return reinterpret_cast<float *>((begin + kLine - 1) & ~static_cast<uintptr_t>(kLine - 1));
}

template <class W>
inline void widen_row(const typename W::T *from, int64_t count, float *to) {
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) store(to + i, W::load(from + i));
    for (; i < count; ++i) to[i] = W::one(from[i]);
}

// Sixteen running sums and a tree; count is a multiple of sixteen.
inline float sum_up(const float *values, int64_t count) {
    float sums[kLanes] = {};
    for (int64_t i = 0; i < count; i += kLanes)
        for (int64_t j = 0; j < kLanes; ++j) sums[j] += values[i + j];
    for (int64_t step = kLanes / 2; step; step /= 2)
        for (int64_t j = 0; j < step; ++j) sums[j] += sums[j + step];
    return sums[0];
}

// The largest; what is not a number is passed over.
inline float largest(const float *values, int64_t count) {
    float tops[kLanes];
    for (float &top : tops) top = -INFINITY;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int64_t j = 0; j < kLanes; ++j) tops[j] = values[i + j] > tops[j] ? values[i + j] : tops[j];
    for (; i < count; ++i) tops[0] = values[i] > tops[0] ? values[i] : tops[0];
    for (int64_t j = 1; j < kLanes; ++j) tops[0] = tops[j] > tops[0] ? tops[j] : tops[0];
    return tops[0];
}

#if JANUS_PANELS
#include "panels.inl"
#endif

#include "gemm.inl"

#include "attention.inl"

#include "attention_feed.inl"

#include "attention_columns.inl"

void attend(const AttentionCall &call, const AttentionPiece &piece, const AttentionPiece *then) {
    const auto as = [&](auto type) {
        using W = decltype(type);
        return call.columns ? attend_columns<W>(call, piece, then) : attend_as<W>(call, piece);
    };
    switch (call.dtype) {
        case DType::f32: return as(F32{});
        case DType::bf16: return as(BF16{});
        case DType::f16: return as(F16{});
        default: return;  // the bindings take no others
    }
}

#include "rows.inl"

#include "sample.inl"

#include "probe.inl"

}  // namespace

extern const KernelTable JANUS_TABLE;
const KernelTable JANUS_TABLE = {JANUS_NAME, linear, gate_up, down_add, attend, rms_norm,
                                 rotary, combine, sample, route, digest, read_probe,
                                 fma_probe, 2 * kWidth * kChains, mark};

}  // namespace janus
