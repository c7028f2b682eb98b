// What attention fetches ahead of itself. Included by kernels.inl.
//
// Pages lie in any order, so the processor cannot know what comes next, and one page is too short a stream for its own
// fetching to get going. So a line of each of four pages is asked for in turn, a group of four ahead of what is read.

constexpr int kStreams = 4;

class Feed {
   public:
    void clear() { at_.clear(), lines_.clear(), group_ = left_ = 0; }

    // A group: four places of so many lines each, read after the groups before.
    void add(const char *const (&at)[kStreams], int64_t lines) {
        at_.insert(at_.end(), at, at + kStreams);
        lines_.push_back(lines);
    }

    // Leaves out the first group.
    void skip() {
        if (groups() > 0) group_ = 1;
    }

    // For a kernel: how many lines of each stream to ask for meanwhile, `wanted` at most, and from where on. It then
    // says how many it has spent().
    int64_t grant(int64_t wanted, const char *(&at)[kStreams]) {
        if (left_ == 0) {
            if (group_ == groups()) return 0;
            left_ = lines_[group_];
        }
        const char *const *from = at_.data() + group_ * kStreams;
        for (int s = 0; s < kStreams; ++s) at[s] = from[s] + (lines_[group_] - left_) * kLine;
        return wanted < left_ ? wanted : left_;
    }
    void spent(int64_t lines) {
        left_ -= lines;
        if (lines && left_ == 0) ++group_;
    }

   private:
    int64_t groups() const { return static_cast<int64_t>(lines_.size()); }

    std::vector<const char *> at_;  // [groups, kStreams]
    std::vector<int64_t> lines_;    // [groups]
    int64_t group_ = 0, left_ = 0;  // the group at hand and what is left of it
};

// step() `count` times, each of which reads S sixteens of W; for as many lines as that is, as many are fetched, of the
// streams in turn, if there is a feed.
template <class W, int S, class Step>
JANUS_INLINE void fed(int64_t count, Feed *feed, const Step &step) {
    constexpr int kSteps = kStreams * kLine / (S * kLanes * static_cast<int>(sizeof(typename W::T)));  // a line of each
    const char *at[kStreams] = {};
    const int64_t rounds = feed ? feed->grant(count / kSteps, at) : 0;
    for (int64_t i = 0; i < rounds; ++i)
        unroll<kSteps>([&](auto n) JANUS_LAMBDA {
            unroll<kStreams>([&](auto s) JANUS_LAMBDA {
                if constexpr (s * kSteps / kStreams == n) prefetch(at[s]), at[s] += kLine;
            });
            step();
        });
    for (int64_t i = rounds * kSteps; i < count; ++i) step();
    if (feed) feed->spent(rounds);
}

// What a piece reads over positions [begin, end), in order: a chunk's keys, its values, the next chunk's keys. The first
// group has been asked for by the piece before; `then`: the piece whose first group is asked for at the end, or null.
inline void plan(Feed &feed, const AttentionCall &call, const AttentionPiece &piece, int64_t begin, int64_t end,
                 const AttentionPiece *then) {
    const int64_t size = call.block_size, bytes = call.dtype == DType::f32 ? 4 : 2;
    const auto put = [&](const AttentionPiece &of, const void *pages, int64_t block, int64_t head, int64_t base,
                         int64_t count) {
        const int32_t *blocks = call.block_tables + of.sequence * call.table_width + base / size;
        const int64_t last = (count + size - 1) / size - 1, kv_heads = of.kv_end - of.kv_begin;
        const int64_t lines = (kv_heads * head * bytes + kLine - 1) / kLine;
        for (int64_t i = 0; i <= last; i += kStreams) {
            // Fewer than four pages go in parts.
            const int64_t parts = last == i ? 4 : last == i + 1 ? 2 : 1;
            const char *at[kStreams];
            for (int64_t s = 0; s < kStreams; ++s)
                at[s] = static_cast<const char *>(pages) + s % parts * (lines / parts * kLine) +
                        (blocks[std::min(i + s / parts, last)] * block + of.kv_begin * head) * bytes;
            feed.add(at, (lines + parts - 1) / parts);
        }
    };
    feed.clear();
    for (int64_t base = begin; base < end; base += kChunk) {
        const int64_t count = std::min(kChunk, end - base);
        put(piece, call.keys, call.key_block, call.key_head, base, count);
        put(piece, call.values, call.value_block, call.value_head, base, count);
    }
    if (then) {
        const int64_t length = call.context_lens[then->sequence];
        const int64_t seen = length - call.query_starts[then->sequence + 1] + then->first + 1;
        const int64_t from = call.window > 0 && seen > call.window ? (seen - call.window) / kChunk * kChunk : 0;
        put(*then, call.keys, call.key_block, call.key_head, from, std::min(kStreams * size, std::min(kChunk, length - from)));
    }
    feed.skip();
}
