// Sixteen float lanes: one zmm, two ymm, or an array. The same operations in the same order on each.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace janus {
namespace {

constexpr int64_t kLanes = 16;

inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline float f16_to_float(uint16_t h) {
    const uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ffu;
    float value;
    if (exponent == 0) {
        value = std::ldexp(static_cast<float>(mantissa), -24);
        return sign ? -value : value;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
    std::memcpy(&value, &bits, 4);
    return value;
}

#if defined(__AVX512F__)

using Lanes = __m512;
inline Lanes zero() { return _mm512_setzero_ps(); }
inline Lanes load_f32(const float *p) { return _mm512_loadu_ps(p); }
inline Lanes load_bf16(const uint16_t *p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline Lanes load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }

inline __m256 fold(Lanes v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); }
inline Lanes broadcast(float x) { return _mm512_set1_ps(x); }
inline void store_f32(float *p, Lanes v) { _mm512_storeu_ps(p, v); }

#elif defined(__AVX2__)

struct Lanes {
    __m256 low, high;
};
inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Lanes load_f32(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m256 widen(__m128i half) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline Lanes load_bf16(const uint16_t *p) {
    const auto *q = reinterpret_cast<const __m128i *>(p);
    return {widen(_mm_loadu_si128(q)), widen(_mm_loadu_si128(q + 1))};
}
inline Lanes load_f16(const uint16_t *p) {
    const auto *q = reinterpret_cast<const __m128i *>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline __m256 fold(Lanes v) { return _mm256_add_ps(v.low, v.high); }
inline Lanes broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline void store_f32(float *p, Lanes v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
}

#else

// No fused multiply-add here: products are rounded, so the last bits differ from the builds above.
struct Lanes {
    float v[kLanes];
};
inline Lanes zero() { return {}; }
template <class T, class F>
inline Lanes load_each(const T *p, F convert) {
    Lanes out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = convert(p[i]);
    return out;
}
inline Lanes load_f32(const float *p) {
    return load_each(p, [](float x) { return x; });
}
inline Lanes load_bf16(const uint16_t *p) { return load_each(p, bf16_to_float); }
inline Lanes load_f16(const uint16_t *p) { return load_each(p, f16_to_float); }
inline Lanes fma(const Lanes &a, const Lanes &b, const Lanes &c) {
    Lanes out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = a.v[i] * b.v[i] + c.v[i];
    return out;
}
inline Lanes broadcast(float x) {
    Lanes out;
    for (float &lane : out.v) lane = x;
    return out;
}
inline void store_f32(float *p, const Lanes &v) { std::memcpy(p, v.v, sizeof v.v); }
inline float reduce(const Lanes &v) {
    float s[8];
    for (int i = 0; i < 8; ++i) s[i] = v.v[i] + v.v[i + 8];
    const float a = s[0] + s[4], b = s[1] + s[5], c = s[2] + s[6], d = s[3] + s[7];
    return (a + c) + (b + d);
}
inline void reduce4(const Lanes &a, const Lanes &b, const Lanes &c, const Lanes &d, float *out) {
    out[0] = reduce(a), out[1] = reduce(b), out[2] = reduce(c), out[3] = reduce(d);
}

#endif

#if defined(__AVX2__)

// One tree for every width: lanes i and i + 8 are added, then those 4, 2 and 1 apart.
inline __m128 fold4(Lanes v) {
    const __m256 half = fold(v);
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
inline float reduce(Lanes v) {
    const __m128 four = fold4(v), two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// Four at once, without leaving the registers.
inline void reduce4(Lanes a, Lanes b, Lanes c, Lanes d, float *out) {
    const __m128 fa = fold4(a), fb = fold4(b), fc = fold4(c), fd = fold4(d);
    const __m128 ab = _mm_add_ps(_mm_movelh_ps(fa, fb), _mm_movehl_ps(fb, fa));
    const __m128 cd = _mm_add_ps(_mm_movelh_ps(fc, fd), _mm_movehl_ps(fd, fc));
    _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
}

#endif

// Asks for the cache line at p; p may be anywhere.
inline void prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }

// Element types of weights and caches.
struct F32 {
    using T = float;
    static Lanes load(const T *p) { return load_f32(p); }
    static float one(T x) { return x; }
};
struct BF16 {
    using T = uint16_t;
    static Lanes load(const T *p) { return load_bf16(p); }
    static float one(T x) { return bf16_to_float(x); }
};
struct F16 {
    using T = uint16_t;
    static Lanes load(const T *p) { return load_f16(p); }
    static float one(T x) { return f16_to_float(x); }
};

// What is past a whole number of vectors: lanes 0.., the rest zero.
template <class W>
inline Lanes load_tail(const typename W::T *p, int64_t count) {
    float padded[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = W::one(p[i]);
    return load_f32(padded);
}

// exp by range reduction and a degree-6 polynomial, within 2 ulp; one sequence of operations everywhere.
inline float exp_one(float x) {
    const float clamped = x > 88.7f ? 88.7f : (x > -87.3f ? x : -87.3f);
    const float n = std::nearbyint(clamped * 1.44269504f);
    float r = clamped - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    // (No memcpy: it would keep loops over this from becoming vector code.)
    const float value = p * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
    return x > -87.3f ? (x > 88.7f ? INFINITY : value) : (x != x ? x : 0.0f);
}

}  // namespace
}  // namespace janus
