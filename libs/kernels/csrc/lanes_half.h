// Halves of the sixteen sums in a register of eight, for AVX2 and AVX-512: the tree's last levels.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace janus {
namespace {

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

inline __m128i load_128(const void *p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }
inline __m256i load_256(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }

}  // namespace
}  // namespace janus
