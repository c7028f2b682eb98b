#include "experts.h"

#include "engine.h"

namespace janus {

bool ExpertTable::group(const int32_t *ids, const bool *mine, const double *weights, int64_t tokens, int64_t topk,
                        int64_t &missing) {
    const int64_t experts = static_cast<int64_t>(experts_.size());
    begin_.assign(experts + 1, 0);
    for (int64_t i = 0; i < tokens * topk; ++i) {
        if (!mine[i]) continue;
        if (ids[i] < 0 || ids[i] >= experts || !experts_[ids[i]].gate.data) {
            missing = ids[i];
            return false;
        }
        ++begin_[ids[i] + 1];
    }
    active_.clear();
    for (int64_t e = 0; e < experts; ++e) {
        if (begin_[e + 1]) active_.push_back(static_cast<int32_t>(e));
        begin_[e + 1] += begin_[e];
    }
    rows_.resize(begin_[experts]);
    scale_.resize(begin_[experts]);
    fill_ = begin_;
    for (int64_t i = 0; i < tokens * topk; ++i) {
        if (!mine[i]) continue;
        const int64_t place = fill_[ids[i]]++;
        rows_[place] = static_cast<int32_t>(i / topk);
        scale_[place] = weights[i];
    }
    return true;
}

void ExpertTable::compute(const float *x, int64_t tokens, const Activation &activation, double *out) {
    std::fill(out, out + tokens * hidden_, 0.0);
    if (active_.empty()) return;
    // Rows a cache line longer than they need be: rows of a power of two fall on the same places of a cache.
    const int64_t x_stride = hidden_ + kLineFloats, h_stride = inner_ + kLineFloats;
    const auto grow = [](std::vector<float> &rows, int64_t size) {
        if (static_cast<int64_t>(rows.size()) < size) rows.resize(size);
        return rows.data();
    };
    float *spread = grow(x_rows_, tokens * x_stride), *h = grow(inner_rows_, pairs() * h_stride);
    for (int64_t t = 0; t < tokens; ++t) std::copy_n(x + t * hidden_, hidden_, spread + t * x_stride);
    const KernelTable &table = kernels();
    // Few tokens take as long as reading: longer streams are read faster, where every thread still has two pieces.
    const int64_t threads = pool().size(), half = hidden_ / (2 * threads) / 8 * 8;
    const int64_t least = pairs() <= 16 * calls() ? std::clamp<int64_t>(half, 8, 256) : 8;
    const Pieces wide(inner_, calls()), narrow(hidden_, 1, least);
    const int64_t pieces = calls() * wide.count;
    const auto expert = [&](int64_t a) -> const Expert & { return experts_[active_[a]]; };
    pool().run(pieces, [&](int64_t i) {
        const int64_t a = i / wide.count, n0 = i % wide.count * wide.size, then = i + threads;
        const int64_t first = begin_[active_[a]], count = begin_[active_[a] + 1] - first;
        const void *after = then < pieces ? row_of(expert(then / wide.count).gate, then % wide.count * wide.size, hidden_)
                                          : nullptr;
        table.gate_up(spread, x_stride, rows_.data() + first, count, hidden_, expert(a).gate, expert(a).up, activation,
                      n0, std::min(inner_, n0 + wide.size), after, h + first * h_stride, h_stride);
    });
    // A thread owns columns of the output over all experts, so that no two add to the same number.
    pool().run(narrow.count, [&](int64_t i) {
        const int64_t n0 = i * narrow.size;
        for (int64_t a = 0; a < calls(); ++a) {
            const int64_t first = begin_[active_[a]], count = begin_[active_[a] + 1] - first;
            const void *after = a + 1 < calls() ? row_of(expert(a + 1).down, n0, inner_) : nullptr;
            table.down_add(h + first * h_stride, h_stride, rows_.data() + first, scale_.data() + first, count, inner_,
                           expert(a).down, n0, std::min(hidden_, n0 + narrow.size), after, hidden_, out);
        }
    });
}

}  // namespace janus
