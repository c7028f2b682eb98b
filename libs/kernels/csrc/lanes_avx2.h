// A Part of eight floats: AVX2.
#pragma once

#include "lanes_half.h"

namespace janus {
namespace {

using Part = __m256;
constexpr int kParts = 2;
inline Part zero() { return _mm256_setzero_ps(); }
inline Part broadcast(float x) { return _mm256_set1_ps(x); }
inline Part load(const float *p) { return _mm256_loadu_ps(p); }
inline Part load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p)), 16));
}
inline Part load_f16(const uint16_t *p) { return _mm256_cvtph_ps(load_128(p)); }
inline Part load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}
inline void store(float *p, Part v) { _mm256_storeu_ps(p, v); }
inline Part fma(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
inline Part add(Part a, Part b) { return _mm256_add_ps(a, b); }
// The larger; `b` where `a` is not a number.
inline Part larger(Part a, Part b) { return _mm256_max_ps(a, b); }

// Sixteen elements of bf16 as even and odd ones, two operations in all.
inline Part even_bf16(__m256i both) { return _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)); }
inline Part odd_bf16(__m256i both) {
    return _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
inline void sixteen_bf16(const uint16_t *p, Part (&to)[kParts]) {
    const __m256i both = load_256(p);
    to[0] = even_bf16(both), to[1] = odd_bf16(both);
}
// Even and odd ones in order.
inline void order_bf16(Part (&sixteen)[kParts]) {
    const __m256 low = _mm256_unpacklo_ps(sixteen[0], sixteen[1]), high = _mm256_unpackhi_ps(sixteen[0], sixteen[1]);
    sixteen[0] = _mm256_permute2f128_ps(low, high, 0x20);
    sixteen[1] = _mm256_permute2f128_ps(low, high, 0x31);
}

// Sixteen bytes are 32 elements, i in the lower half of byte i, 16 + i in the upper: nibble * scale + shift. P: which
// eight of them.
struct NibbleParts {
    const uint8_t *bytes;
    Part scale, shift;
};
inline NibbleParts nibbles(const uint8_t *bytes, const float *pair) {
    return {bytes, broadcast(pair[0]), broadcast(pair[1])};
}
template <int P>
inline Part load_nibbles(const NibbleParts &from) {
    const auto *at = reinterpret_cast<const __m128i *>(from.bytes + P % kParts * 8);
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at));
    const __m256i q = P < kParts ? _mm256_and_si256(wide, _mm256_set1_epi32(15)) : _mm256_srli_epi32(wide, 4);
    return fma(_mm256_cvtepi32_ps(q), from.scale, from.shift);
}

// exp_one() of what is not above zero, in place. Step by step for all of them: one after the other they would wait
// for themselves, as a processor looks only so many instructions ahead.
template <int N>
inline void exp_parts(Part (&x)[N]) {
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

}  // namespace
}  // namespace janus
