// Vectors of one instruction set. A dot product is sixteen running sums (element i goes to sum i mod 16), then
// one fixed tree: sums i and i + 8, then 4, 2 and 1 apart. Every build with a fused multiply-add does exactly
// these operations, so AVX2, AVX-512 and NEON give the same bits.
//
// A `Part` is what one register holds of the sixteen sums: all of them, or half (AVX2, kParts = 2).
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

#if defined(__AVX2__)

// Sums i + (i + 8) of one dot product.
using Half = __m256;

// The tree's last three levels for eight dot products at once; out[i] belongs to s[i].
inline __m256 finish(const Half (&s)[8]) {
    __m256 t[4], u[2];
    for (int i = 0; i < 4; ++i)
        t[i] = _mm256_add_ps(_mm256_permute2f128_ps(s[2 * i], s[2 * i + 1], 0x20),
                             _mm256_permute2f128_ps(s[2 * i], s[2 * i + 1], 0x31));
    for (int i = 0; i < 2; ++i) {
        const __m256d a = _mm256_castps_pd(t[2 * i]), b = _mm256_castps_pd(t[2 * i + 1]);
        u[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    // Low half: products 0, 2, 4, 6; high half: 1, 3, 5, 7.
    const __m256 v = _mm256_add_ps(_mm256_shuffle_ps(u[0], u[1], 0x88), _mm256_shuffle_ps(u[0], u[1], 0xdd));
    return _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
inline void finish(const Half (&s)[8], float *out) { _mm256_storeu_ps(out, finish(s)); }
inline Half half_zero() { return _mm256_setzero_ps(); }
inline Half sum_halves(const float *low, const float *high) {
    return _mm256_add_ps(_mm256_loadu_ps(low), _mm256_loadu_ps(high));
}

inline __m256 widen_bf16(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline __m128i load_128(const void *p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }

// Eight floats, the same on AVX2 and AVX-512: attention is made of them.
using Eight = __m256;
inline Eight eight_zero() { return _mm256_setzero_ps(); }
inline Eight eight_all(float x) { return _mm256_set1_ps(x); }
inline Eight load_eight(const float *p) { return _mm256_loadu_ps(p); }
// With AVX2 alone these are the functions of a Part.
#if defined(__AVX512F__)
inline void store(float *p, Eight v) { _mm256_storeu_ps(p, v); }
inline Eight fma(Eight a, Eight b, Eight c) { return _mm256_fmadd_ps(a, b, c); }
#endif
// Sixteen elements as two Eights: bf16 as even and odd ones, two operations in all; order() puts them in order.
inline void load_pair_bf16(const uint16_t *p, Eight &even, Eight &odd) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
inline void interleave(Eight &even, Eight &odd) {
    const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    even = _mm256_permute2f128_ps(low, high, 0x20);
    odd = _mm256_permute2f128_ps(low, high, 0x31);
}
inline Eight eight_f16(const uint16_t *p) { return _mm256_cvtph_ps(load_128(p)); }
// to[i] = scale * (lower half of byte i) + shift, to[16 + i] = scale * (upper half) + shift.
inline void unpack_i4(const uint8_t *from, float scale, float shift, float *to) {
    const __m128i bytes = load_128(from), mask = _mm_set1_epi8(15);
    const auto put = [&](__m128i nibbles, float *at) {
        for (int half = 0; half < 2; ++half, at += 8, nibbles = _mm_srli_si128(nibbles, 8)) {
            const __m256 q = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(nibbles));
            _mm256_storeu_ps(at, _mm256_fmadd_ps(q, _mm256_set1_ps(scale), _mm256_set1_ps(shift)));
        }
    };
    put(_mm_and_si128(bytes, mask), to);
    put(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), to + 16);
}
inline Eight add(Eight a, Eight b) { return _mm256_add_ps(a, b); }
// The larger; `b` where `a` is not a number.
inline Eight larger(Eight a, Eight b) { return _mm256_max_ps(a, b); }
// exp_one() of what is not above zero, in place. Step by step for all of them: one after the other they would wait
// for themselves, as a processor looks only so many instructions ahead.
template <int N>
inline void exp_eights(Eight (&x)[N]) {
    __m256 n[N], r[N], p[N];
    const auto each = [](auto f) {
        for (int i = 0; i < N; ++i) f(i);
    };
    each([&](int i) { r[i] = _mm256_max_ps(_mm256_set1_ps(-87.3f), x[i]); });  // not a number stays what it is
    each([&](int i) {
        n[i] = _mm256_round_ps(_mm256_mul_ps(r[i], _mm256_set1_ps(1.44269504f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    });
    each([&](int i) { r[i] = _mm256_fmadd_ps(n[i], _mm256_set1_ps(-0.693359375f), r[i]); });
    each([&](int i) { r[i] = _mm256_fmadd_ps(n[i], _mm256_set1_ps(2.12194440e-4f), r[i]); });
    each([&](int i) { p[i] = _mm256_set1_ps(1.9875691500e-4f); });
    for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        each([&](int i) { p[i] = _mm256_fmadd_ps(p[i], r[i], _mm256_set1_ps(next)); });
    each([&](int i) { p[i] = _mm256_fmadd_ps(p[i], _mm256_mul_ps(r[i], r[i]), r[i]); });
    each([&](int i) {
        const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n[i]), _mm256_set1_epi32(127)), 23);
        const __m256 value = _mm256_mul_ps(_mm256_add_ps(p[i], _mm256_set1_ps(1.0f)), _mm256_castsi256_ps(power));
        x[i] = _mm256_and_ps(value, _mm256_cmp_ps(x[i], _mm256_set1_ps(-87.3f), _CMP_NLE_UQ));
    });
}

#endif

#if defined(__AVX512F__)

using Part = __m512;
constexpr int kParts = 1;
inline Part zero() { return _mm512_setzero_ps(); }
inline Part broadcast(float x) { return _mm512_set1_ps(x); }
inline Part load(const float *p) { return _mm512_loadu_ps(p); }
inline Part load_bf16(const uint16_t *p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline Part load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline Part load_i8(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(p))); }
inline void store(float *p, Part v) { _mm512_storeu_ps(p, v); }
inline Part fma(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }

#elif defined(__AVX2__)

using Part = __m256;
constexpr int kParts = 2;
inline Part zero() { return _mm256_setzero_ps(); }
inline Part broadcast(float x) { return _mm256_set1_ps(x); }
inline Part load(const float *p) { return _mm256_loadu_ps(p); }
inline Part load_bf16(const uint16_t *p) { return widen_bf16(load_128(p)); }
inline Part load_f16(const uint16_t *p) { return _mm256_cvtph_ps(load_128(p)); }
inline Part load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}
inline void store(float *p, Part v) { _mm256_storeu_ps(p, v); }
inline Part fma(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
inline Part all_f16(uint16_t bits) { return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))); }
// nibble * scale + shift of the lower (H = 0) or upper halves of eight bytes.
template <int H>
inline Part load_i4(const uint8_t *p, Part scale, Part shift) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
    const __m256i q = H ? _mm256_srli_epi32(wide, 4) : _mm256_and_si256(wide, _mm256_set1_epi32(15));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(q), scale, shift);
}

#else

struct Part {
    float v[kLanes];
};
struct Half {
    float v[8];
};
constexpr int kParts = 1;
inline Part zero() { return {}; }
template <class F>
inline Part each(F f) {
    Part out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = f(i);
    return out;
}
inline Part broadcast(float x) {
    return each([=](int) { return x; });
}
inline Part load(const float *p) {
    return each([=](int i) { return p[i]; });
}
inline Part load_bf16(const uint16_t *p) {
    return each([=](int i) { return bf16_to_float(p[i]); });
}
inline Part load_f16(const uint16_t *p) {
    return each([=](int i) { return f16_to_float(p[i]); });
}
inline Part load_i8(const int8_t *p) {
    return each([=](int i) { return static_cast<float>(p[i]); });
}
inline void store(float *p, const Part &v) { std::memcpy(p, v.v, sizeof v.v); }
inline Part fma(const Part &a, const Part &b, const Part &c) {
    return each([&](int i) { return fma_one(a.v[i], b.v[i], c.v[i]); });
}
using Eight = Half;
inline Eight load_eight(const float *p) {
    Eight out;
    std::memcpy(out.v, p, sizeof out.v);
    return out;
}
inline Eight eight_zero() { return {}; }
inline Eight eight_all(float x) {
    Eight out;
    for (float &v : out.v) v = x;
    return out;
}
inline void store(float *p, const Eight &v) { std::memcpy(p, v.v, sizeof v.v); }
inline Eight fma(const Eight &a, const Eight &b, const Eight &c) {
    Eight out;
    for (int i = 0; i < 8; ++i) out.v[i] = fma_one(a.v[i], b.v[i], c.v[i]);
    return out;
}
inline void load_pair_bf16(const uint16_t *p, Eight &even, Eight &odd) {
    for (int i = 0; i < 8; ++i) even.v[i] = bf16_to_float(p[2 * i]), odd.v[i] = bf16_to_float(p[2 * i + 1]);
}
inline void interleave(Eight &even, Eight &odd) {
    float all[kLanes];
    for (int i = 0; i < 8; ++i) all[2 * i] = even.v[i], all[2 * i + 1] = odd.v[i];
    even = load_eight(all), odd = load_eight(all + 8);
}
inline Eight eight_f16(const uint16_t *p) {
    Eight out;
    for (int i = 0; i < 8; ++i) out.v[i] = f16_to_float(p[i]);
    return out;
}
inline void unpack_i4(const uint8_t *from, float scale, float shift, float *to) {
    for (int i = 0; i < 16; ++i) {
        to[i] = fma_one(scale, static_cast<float>(from[i] & 15), shift);
        to[16 + i] = fma_one(scale, static_cast<float>(from[i] >> 4), shift);
    }
}
inline Eight add(const Eight &a, const Eight &b) {
    Eight out;
    for (int i = 0; i < 8; ++i) out.v[i] = a.v[i] + b.v[i];
    return out;
}
inline Eight larger(const Eight &a, const Eight &b) {
    Eight out;
    for (int i = 0; i < 8; ++i) out.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return out;
}
float exp_one(float x);
template <int N>
inline void exp_eights(Eight (&x)[N]) {
    for (Eight &eight : x)
        for (float &v : eight.v) v = exp_one(v);
}
inline Half sum_halves(const float *low, const float *high) {
    Half out;
    for (int i = 0; i < 8; ++i) out.v[i] = low[i] + high[i];
    return out;
}
inline Half half_zero() { return {}; }
inline void finish(const Half (&s)[8], float *out) {
    for (int i = 0; i < 8; ++i) {
        const float(&h)[8] = s[i].v;
        const float a = h[0] + h[4], b = h[1] + h[5], c = h[2] + h[6], d = h[3] + h[7];
        out[i] = (a + c) + (b + d);
    }
}

#endif

constexpr int64_t kWidth = kLanes / kParts;  // floats of a Part

// From stored sums: the first Part's place and, where it is half of them, the second's.
inline Half fold(const float *first, const float *second) {
    return sum_halves(first, kParts == 1 ? first + kWidth / 2 : second);
}

// Element types of weights and caches; load<part>(p) takes the part's elements of the sixteen at p.
struct F32 {
    using T = float;
    static Part load(const T *p) { return janus::load(p); }
    static float one(T x) { return x; }
    static void load_pair(const T *p, Eight &a, Eight &b) { a = load_eight(p), b = load_eight(p + 8); }
    static void order(Eight &, Eight &) {}
};
struct BF16 {
    using T = uint16_t;
    static Part load(const T *p) { return load_bf16(p); }
    static float one(T x) { return bf16_to_float(x); }
    static void load_pair(const T *p, Eight &a, Eight &b) { load_pair_bf16(p, a, b); }
    static void order(Eight &a, Eight &b) { interleave(a, b); }
};
struct F16 {
    using T = uint16_t;
    static Part load(const T *p) { return load_f16(p); }
    static float one(T x) { return f16_to_float(x); }
    static void load_pair(const T *p, Eight &a, Eight &b) { a = eight_f16(p), b = eight_f16(p + 8); }
    static void order(Eight &, Eight &) {}
};
struct I8 {
    using T = int8_t;
    static Part load(const T *p) { return load_i8(p); }
    static float one(T x) { return static_cast<float>(x); }
};

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
