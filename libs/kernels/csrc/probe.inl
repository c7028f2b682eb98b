// What the machine can do, for the benchmarks. Included by kernels.inl.

constexpr int kChains = 12;  // multiply-adds under way: a processor has two units of four or five cycles each

float read_probe(const float *data, int64_t count) {
    constexpr int64_t kStride = 8 * kWidth;
    Part acc[8];
    for (auto &part : acc) part = zero();
    const Part one = broadcast(1.0f);
    for (int64_t i = 0; i + kStride <= count; i += kStride)
        unroll<8>([&](auto r) {
            prefetch(data + i + r * kWidth + 1024);
            acc[r] = fma(load(data + i + r * kWidth), one, acc[r]);
        });
    float last[kWidth], sum = 0.0f;
    for (const auto &part : acc) store(last, part), sum += last[0];
    return sum;
}

float fma_probe(int64_t rounds) {
    Part acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = broadcast(static_cast<float>(i));
    const Part a = broadcast(0.999f), b = broadcast(0.001f);
    for (int64_t i = 0; i < rounds; ++i) unroll<kChains>([&](auto c) { acc[c] = fma(acc[c], a, b); });
    float last[kWidth], sum = 0.0f;
    for (const auto &part : acc) store(last, part), sum += last[0];
    return sum;
}
