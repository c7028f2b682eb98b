// Vectors of one instruction set. A dot product is sixteen running sums (element i goes to sum i mod 16), then
// one fixed tree: sums i and i + 8, then 4, 2 and 1 apart. Every build with a fused multiply-add does exactly
// these operations, so AVX2, AVX-512 and NEON give the same bits.
//
// A `Part` is what one register holds of the sixteen sums: all of them, or half (AVX2, kParts = 2). Each instruction
// set has a file with its Part; what all build from Parts is here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace janus {
namespace {

constexpr int64_t kLanes = 16;

// Without fused multiply-add products are rounded, so the last bits differ from the builds that have it.
inline float fma_one(float a, float b, float c) {
#if defined(__AVX2__) || defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

inline float bf16_to_float(uint16_t bits) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}

inline float f16_to_float(uint16_t h) {
    const uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ffu;
    if (exponent == 0) {
        const float value = std::ldexp(static_cast<float>(mantissa), -24);
        return sign ? -value : value;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
    return __builtin_bit_cast(float, bits);
}

inline void prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }
inline void prefetch_near(const void *p) { __builtin_prefetch(p, 0, 3); }

// exp by range reduction and a degree-6 polynomial, within 2 ulp; one sequence of operations on every build,
// without branches or memory so that compilers vectorise loops over it.
inline float exp_one(float x) {
    const float low = x > -87.3f ? x : -87.3f;
    const float clamped = low < 88.7f ? low : 88.7f;
    const float n = std::nearbyint(clamped * 1.44269504f);
    float r = fma_one(n, -0.693359375f, clamped);
    r = fma_one(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fma_one(p, r, 1.3981999507e-3f);
    p = fma_one(p, r, 8.3334519073e-3f);
    p = fma_one(p, r, 4.1665795894e-2f);
    p = fma_one(p, r, 1.6666665459e-1f);
    p = fma_one(p, r, 5.0000001201e-1f);
    p = fma_one(p, r * r, r);
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float value = (p + 1.0f) * __builtin_bit_cast(float, bits);
    value = x > 88.7f ? INFINITY : value;
    value = x > -87.3f ? value : 0.0f;
    return x != x ? x : value;
}

}  // namespace
}  // namespace janus

#if defined(__AVX512F__)
#include "lanes_avx512.h"
#elif defined(__AVX2__)
#include "lanes_avx2.h"
#else
#include "lanes_portable.h"
#endif

namespace janus {
namespace {

constexpr int64_t kWidth = kLanes / kParts;  // floats of a Part

// From stored sums: the first Part's place and, where it is half of them, the second's.
inline Half fold(const float *first, const float *second) {
    return sum_halves(first, kParts == 1 ? first + kWidth / 2 : second);
}

// Element types of weights and caches. load(p): a Part of elements, in order. sixteen(p): all sixteen, in the order that
// is cheapest, which order() undoes.
struct F32 {
    using T = float;
    static Part load(const T *p) { return janus::load(p); }
    static float one(T x) { return x; }
    static void sixteen(const T *p, Part (&to)[kParts]) { to[0] = load(p), to[kParts - 1] = load(p + kLanes - kWidth); }
    static void order(Part (&)[kParts]) {}
};
struct BF16 {
    using T = uint16_t;
    static Part load(const T *p) { return load_bf16(p); }
    static float one(T x) { return bf16_to_float(x); }
    static void sixteen(const T *p, Part (&to)[kParts]) { sixteen_bf16(p, to); }
    static void order(Part (&sixteen)[kParts]) { order_bf16(sixteen); }
};
struct F16 {
    using T = uint16_t;
    static Part load(const T *p) { return load_f16(p); }
    static float one(T x) { return f16_to_float(x); }
    static void sixteen(const T *p, Part (&to)[kParts]) { to[0] = load(p), to[kParts - 1] = load(p + kLanes - kWidth); }
    static void order(Part (&)[kParts]) {}
};
struct I8 {
    using T = int8_t;
    static Part load(const T *p) { return load_i8(p); }
    static float one(T x) { return static_cast<float>(x); }
};

}  // namespace
}  // namespace janus
