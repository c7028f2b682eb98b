// What the machine can do, for the benchmarks. Included by kernels.inl.

constexpr int kChains = 12;  // multiply-adds under way: a processor has two units of four or five cycles each

// Four streams side by side: of what was tried, one stream or more, with and without prefetches, the fastest.
float read_probe(const float *data, int64_t count) {
    constexpr int kStreams = 4;
    const int64_t apart = count / kStreams;
    Part acc[kStreams][kParts];
    for (auto &stream : acc)
        for (auto &part : stream) part = zero();
    const Part one = broadcast(1.0f);
    for (int64_t i = 0; i + kLanes <= apart; i += kLanes)
        unroll<kStreams>([&](auto r) {
            unroll<kParts>([&](auto p) { acc[r][p] = fma(load(data + r * apart + i + p * kWidth), one, acc[r][p]); });
        });
    float last[kWidth], sum = 0.0f;
    for (const auto &stream : acc)
        for (const auto &part : stream) store(last, part), sum += last[0];
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
