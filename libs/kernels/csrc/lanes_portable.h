// A Part of sixteen floats as plain code, for processors without the others' instructions.
#pragma once

namespace janus {
namespace {

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
inline Part add(const Part &a, const Part &b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Part larger(const Part &a, const Part &b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline void sixteen_bf16(const uint16_t *p, Part (&to)[kParts]) { to[0] = load_bf16(p); }
inline void order_bf16(Part (&)[kParts]) {}
template <int N>
inline void exp_parts(Part (&x)[N]) {
    for (Part &part : x)
        for (float &v : part.v) v = exp_one(v);
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

}  // namespace
}  // namespace janus
