// A Part of sixteen floats: AVX-512 with its F, BW, DQ and VL.
#pragma once

#include "lanes_half.h"

namespace janus {
namespace {

using Part = __m512;
constexpr int kParts = 1;
inline Part zero() { return _mm512_setzero_ps(); }
inline Part broadcast(float x) { return _mm512_set1_ps(x); }
inline Part load(const float *p) { return _mm512_loadu_ps(p); }
// Words to the upper halves of sixteen places and zeros beside them: one operation instead of widening and shifting.
inline Part load_bf16(const uint16_t *p) {
    const __m512i places = _mm512_set_epi32(15 << 16, 14 << 16, 13 << 16, 12 << 16, 11 << 16, 10 << 16, 9 << 16, 8 << 16,
                                            7 << 16, 6 << 16, 5 << 16, 4 << 16, 3 << 16, 2 << 16, 1 << 16, 0);
    return _mm512_castsi512_ps(
        _mm512_maskz_permutexvar_epi16(0xaaaaaaaau, places, _mm512_castsi256_si512(load_256(p))));
}
inline Part load_f16(const uint16_t *p) { return _mm512_cvtph_ps(load_256(p)); }
inline Part load_i8(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(p))); }
inline void store(float *p, Part v) { _mm512_storeu_ps(p, v); }
inline Part fma(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }
inline Part add(Part a, Part b) { return _mm512_add_ps(a, b); }
// The larger; `b` where `a` is not a number.
inline Part larger(Part a, Part b) { return _mm512_max_ps(a, b); }
inline void sixteen_bf16(const uint16_t *p, Part (&to)[kParts]) { to[0] = load_bf16(p); }
inline void order_bf16(Part (&)[kParts]) {}

// Sixteen bytes are 32 elements, i in the lower half of byte i, 16 + i in the upper: nibble * scale + shift. There are
// sixteen such numbers of a group, as many as a register holds: a nibble says which. P: which sixteen elements.
struct NibbleParts {
    __m512i wide;
    Part numbers;
};
inline NibbleParts nibbles(const uint8_t *bytes, const float *pair) {
    const Part all = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return {_mm512_cvtepu8_epi32(load_128(bytes)), fma(all, broadcast(pair[0]), broadcast(pair[1]))};
}
template <int P>
inline Part load_nibbles(const NibbleParts &from) {
    // Of each index only the last four bits count.
    return _mm512_permutexvar_ps(P ? _mm512_srli_epi32(from.wide, 4) : from.wide, from.numbers);
}

// exp_one() of what is not above zero, in place. Step by step for all of them: one after the other they would wait
// for themselves, as a processor looks only so many instructions ahead.
template <int N>
inline void exp_parts(Part (&x)[N]) {
    Part n[N], r[N], p[N];
    const auto each = [](auto f) {
        for (int i = 0; i < N; ++i) f(i);
    };
    each([&](int i) { r[i] = _mm512_max_ps(broadcast(-87.3f), x[i]); });  // not a number stays what it is
    each([&](int i) {
        n[i] = _mm512_roundscale_ps(_mm512_mul_ps(r[i], broadcast(1.44269504f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    });
    each([&](int i) { r[i] = fma(n[i], broadcast(-0.693359375f), r[i]); });
    each([&](int i) { r[i] = fma(n[i], broadcast(2.12194440e-4f), r[i]); });
    each([&](int i) { p[i] = broadcast(1.9875691500e-4f); });
    for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        each([&](int i) { p[i] = fma(p[i], r[i], broadcast(next)); });
    each([&](int i) { p[i] = fma(p[i], _mm512_mul_ps(r[i], r[i]), r[i]); });
    each([&](int i) {
        const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n[i]), _mm512_set1_epi32(127)), 23);
        const __mmask16 seen = _mm512_cmp_ps_mask(x[i], broadcast(-87.3f), _CMP_NLE_UQ);
        x[i] = _mm512_maskz_mul_ps(seen, add(p[i], broadcast(1.0f)), _mm512_castsi512_ps(power));
    });
}

}  // namespace
}  // namespace janus
