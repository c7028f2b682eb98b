// Choosing a token from logits. Included by kernels.inl.

// Kept tokens are found in order of probability without ordering what is not kept: weights (0..1) are counted by the
// upper half of their bits, which order as they do, and only those in the buckets that matter are sorted.
constexpr int64_t kBuckets = (0x3F800000 >> 16) + 1;

inline uint32_t bits_of(float weight) { return __builtin_bit_cast(uint32_t, weight); }

// Weight descending, then id ascending, as one ascending number.
inline uint64_t order_key(float weight, int64_t id) {
    return static_cast<uint64_t>(~bits_of(weight)) << 32 | static_cast<uint32_t>(id);
}

// Ascending; ids within equal weights ascend already, which the passes keep.
void sort_keys(std::vector<uint64_t> &keys, std::vector<uint64_t> &spare) {
    if (keys.size() < 4096) {
        std::sort(keys.begin(), keys.end());
        return;
    }
    constexpr int kBits = 11, kRadix = 1 << kBits;
    spare.resize(keys.size());
    for (int shift = 32; shift < 64; shift += kBits) {
        size_t starts[kRadix] = {};
        for (const uint64_t key : keys) ++starts[key >> shift & (kRadix - 1)];
        size_t next = 0;
        for (size_t &start : starts) {
            const size_t size = start;
            start = next;
            next += size;
        }
        for (const uint64_t key : keys) spare[starts[key >> shift & (kRadix - 1)]++] = key;
        keys.swap(spare);
    }
}

// The lowest bucket of the fewest from the top that have ``tokens`` tokens and ``mass`` of weight.
int64_t lowest_bucket(const float *weights, int64_t count, int64_t tokens, double mass) {
    thread_local std::vector<int64_t> counts;
    thread_local std::vector<double> masses;
    counts.assign(kBuckets, 0);
    masses.assign(kBuckets, 0.0);
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t bucket = bits_of(weights[i]) >> 16;
        ++counts[bucket];
        masses[bucket] += weights[i];
    }
    int64_t bucket = kBuckets, found = 0;
    double sum = 0.0;
    while (bucket > 0 && (found < tokens || sum < mass)) {
        --bucket;
        found += counts[bucket];
        sum += masses[bucket];
    }
    return bucket;
}

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
    const float least = call.min_p > 0.0f ? call.min_p : 0.0f;
    double whole = 0.0;
    for (int64_t i = 0; i < count; ++i) whole += weights[i];
    // Masses of buckets are sums in another order: a little more than enough.
    int64_t lowest = 0;
    if (!all)
        lowest = lowest_bucket(weights, count, call.top_k, 0.0);
    else if (call.top_p < 1.0f)
        lowest = lowest_bucket(weights, count, 1, (call.top_p + 1e-9) * whole);
    const uint32_t floor = std::max<uint32_t>(static_cast<uint32_t>(lowest) << 16, 1);  // 0: forbidden
    thread_local std::vector<uint64_t> keys, spare;
    keys.resize(count);
    size_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
        keys[kept] = order_key(weights[i], i);
        kept += bits_of(weights[i]) >= floor && (!all || weights[i] >= least);
    }
    keys.resize(kept);
    const auto weight_of = [&](uint64_t key) { return weights[static_cast<uint32_t>(key)]; };
    if (!all && call.top_k < static_cast<int64_t>(keys.size())) {
        std::nth_element(keys.begin(), keys.begin() + call.top_k - 1, keys.end());
        keys.resize(call.top_k);
    }
    // top_p counts shares of what top_k left, with what min_p cuts.
    if (!all) {
        const auto by_id = [](uint64_t a, uint64_t b) { return static_cast<uint32_t>(a) < static_cast<uint32_t>(b); };
        std::sort(keys.begin(), keys.end(), by_id);
        whole = 0.0;
        for (const uint64_t key : keys) whole += weight_of(key);
    }
    sort_keys(keys, spare);
    const double enough = call.top_p * whole;
    double sum = 0.0;
    kept = 0;
    while (kept < keys.size() && (kept == 0 || call.top_p >= 1.0f || sum < enough)) {
        const float weight = weight_of(keys[kept]);
        if (weight < least) break;
        ++kept;
        sum += weight;
    }
    const double mark = call.uniform * sum;
    double passed = 0.0;
    for (size_t i = 0; i < kept; ++i) {
        passed += weight_of(keys[i]);
        if (passed > mark) return static_cast<uint32_t>(keys[i]);
    }
    return kept == 0 ? 0 : static_cast<uint32_t>(keys[kept - 1]);
}
