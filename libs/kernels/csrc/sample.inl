// Choosing a token from logits. Included by kernels.inl.

// Probabilities relative to the likeliest token's; those that are kept are found from the likeliest downwards,
// equals by id, without sorting what is not kept.
int64_t sample(const SampleCall &call) {
    const int64_t count = call.vocabulary;
    const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    float *weights = scratch(4, padded);
    const float top = largest(call.logits, count), per = 1.0f / call.temperature;
    for (int64_t i = 0; i < count; ++i) weights[i] = exp_one((call.logits[i] - top) * per);
    for (int64_t i = count; i < padded; ++i) weights[i] = 0.0f;

    const bool all = call.top_k <= 0 || call.top_k >= count;
    if (all && call.top_p >= 1.0f && call.min_p <= 0.0f) {
        double total = 0.0, sum = 0.0;
        for (int64_t i = 0; i < count; ++i) total += weights[i];
        const double mark = call.uniform * total;
        int64_t last = 0;
        for (int64_t i = 0; i < count; ++i) {
            if (weights[i] == 0.0f) continue;
            last = i;
            sum += weights[i];
            if (sum > mark) return i;
        }
        return last;
    }
    thread_local std::vector<int32_t> heap, kept;
    heap.clear();
    kept.clear();
    const float least = call.min_p > 0.0f ? call.min_p : 0.0f;
    for (int64_t i = 0; i < count; ++i)
        if (weights[i] > 0.0f && (!all || weights[i] >= least)) heap.push_back(static_cast<int32_t>(i));
    const auto later = [&](int32_t a, int32_t b) { return weights[a] != weights[b] ? weights[a] < weights[b] : a > b; };
    const auto earlier = [&](int32_t a, int32_t b) { return later(b, a); };
    if (!all && call.top_k < static_cast<int64_t>(heap.size())) {
        std::nth_element(heap.begin(), heap.begin() + call.top_k - 1, heap.end(), earlier);
        heap.resize(call.top_k);
    }
    // top_p counts shares of what top_k left, with what min_p cuts.
    double whole = 0.0, sum = 0.0;
    if (all) {
        for (int64_t i = 0; i < count; ++i) whole += weights[i];
    } else {
        std::sort(heap.begin(), heap.end());
        for (const int32_t i : heap) whole += weights[i];
    }
    std::make_heap(heap.begin(), heap.end(), later);
    const double enough = call.top_p * whole;
    while (!heap.empty() && (kept.empty() || call.top_p >= 1.0f || sum < enough)) {
        if (weights[heap.front()] < least) break;
        std::pop_heap(heap.begin(), heap.end(), later);
        kept.push_back(heap.back());
        sum += weights[heap.back()];
        heap.pop_back();
    }
    const double mark = call.uniform * sum;
    double passed = 0.0;
    for (const int32_t i : kept) {
        passed += weights[i];
        if (passed > mark) return i;
    }
    return kept.empty() ? 0 : kept.back();
}
