#include "schedule.h"

#include <algorithm>

#include "engine.h"
#include "mix.h"

namespace janus {

// Work space of a thread.
struct Scheduler::Space {
    std::vector<uint8_t> seen;           // [E]
    std::vector<int32_t> active;         // activated experts, ascending
    std::vector<int32_t> choice;         // [E]: index into the expert's hosts
    std::vector<int32_t> physical;       // [E]: its replica id
    std::vector<uint64_t> movable;       // [n_e, words]: activated experts here that have another host
    std::vector<int32_t> came_from, came_expert, came_choice, queue;  // [n_e]
};

Scheduler::Scheduler(const int32_t *slot_of, int experts, int instances, int slots)
    : experts_(experts), instances_(instances), slots_(slots), words_((experts + 63) / 64) {
    host_begin_.push_back(0);
    for (int e = 0; e < experts; ++e) {
        for (int g = 0; g < instances; ++g) {
            const int32_t slot = slot_of[e * instances + g];
            if (slot < 0) continue;
            host_list_.push_back(g);
            physical_.push_back(g * slots + slot);
        }
        host_begin_.push_back(static_cast<int32_t>(host_list_.size()));
    }
}

int Scheduler::run(const int32_t *ids, int64_t count, Policy policy, uint64_t seed, int32_t *replica_ids,
                   int32_t *load) const {
    thread_local Space s;
    s.seen.assign(experts_, 0);
    s.physical.resize(experts_);
    s.choice.resize(experts_);
    s.active.reserve(experts_);
    if (!kernels().mark(ids, count, static_cast<uint32_t>(experts_), s.seen.data())) return kBadInput;
    s.active.clear();
    for (int e = 0; e < experts_; ++e) {
        if (!s.seen[e]) continue;
        if (hosts(e) == 0) return kBadInput;
        s.active.push_back(e);
    }
    std::fill(load, load + instances_, 0);
    if (policy == Policy::token_balanced) return spread(s, ids, count, replica_ids, load);
    if (policy == Policy::random) {
        const uint64_t drawn = kernels().digest(ids, ids, count, seed);
        for (const int32_t e : s.active) {
            s.choice[e] = static_cast<int32_t>(mix(drawn + static_cast<uint64_t>(e + 1) * kGolden) %
                                               static_cast<uint64_t>(hosts(e)));
            ++load[host(e, s.choice[e])];
        }
    } else {
        assign(s, load);
        if (policy == Policy::optimal) improve(s, load);
    }
    for (const int32_t e : s.active) s.physical[e] = physical_[host_begin_[e] + s.choice[e]];
    const int32_t *physical = s.physical.data();
    for (int64_t i = 0; i < count; ++i) replica_ids[i] = physical[ids[i]];
    return *std::max_element(load, load + instances_);
}

bool Scheduler::replay(const int64_t *begin, int64_t batches, const int32_t *active, Policy policy, int32_t *peaks,
                       int32_t *pressure) const {
    thread_local Space s;
    thread_local std::vector<int32_t> load;
    s.choice.resize(experts_);
    load.resize(instances_);
    for (int64_t b = 0; b < batches; ++b) {
        s.active.assign(active + begin[b], active + begin[b + 1]);
        int last = -1;
        for (const int32_t e : s.active) {
            if (e <= last || e >= experts_ || hosts(e) == 0) return false;
            last = e;
        }
        std::fill(load.begin(), load.end(), 0);
        assign(s, load.data());
        if (policy == Policy::optimal) improve(s, load.data());
        peaks[b] = *std::max_element(load.begin(), load.end());
        const int floor = (static_cast<int>(s.active.size()) + instances_ - 1) / instances_;
        if (!pressure || policy != Policy::optimal || peaks[b] <= floor) continue;
        // The search that failed last has marked the instances that the fullest one's experts are confined to.
        for (const int32_t e : s.active) {
            if (s.came_from[host(e, s.choice[e])] < 0) continue;
            for (int g = 0; g < instances_; ++g)
                if (s.came_from[g] < 0) pressure[e * instances_ + g] += load[g] <= peaks[b] - 2 ? 2 : 1;
        }
    }
    return true;
}

// AEBS: experts with one host first, then each other, ascending, to its least-loaded host.
void Scheduler::assign(Space &s, int32_t *load) const {
    for (const int32_t e : s.active) {
        if (hosts(e) != 1) continue;
        s.choice[e] = 0;
        ++load[host(e, 0)];
    }
    for (const int32_t e : s.active) {
        const int count = hosts(e);
        if (count == 1) continue;
        int best = 0;
        for (int i = 1; i < count; ++i)
            if (load[host(e, i)] < load[host(e, best)]) best = i;
        s.choice[e] = best;
        ++load[host(e, best)];
    }
}

// Lowers fullest instances until one cannot be lowered: it bounds every assignment from below.
void Scheduler::improve(Space &s, int32_t *load) const {
    const int floor = (static_cast<int>(s.active.size()) + instances_ - 1) / instances_;
    bool ready = false;
    while (true) {
        const int start = static_cast<int>(std::max_element(load, load + instances_) - load);
        const int peak = load[start];
        if (peak <= floor) return;
        if (!ready) {
            ready = true;
            s.movable.assign(static_cast<size_t>(instances_) * words_, 0);
            for (auto *v : {&s.came_from, &s.came_expert, &s.came_choice, &s.queue}) v->resize(instances_);
            for (const int32_t e : s.active)
                if (hosts(e) > 1) s.movable[host(e, s.choice[e]) * words_ + (e >> 6)] |= uint64_t{1} << (e & 63);
        }
        if (!shift(s, start, peak, load)) return;
    }
}

// Breadth-first from `start` over "an expert here has a replica there" to an instance two below the peak.
bool Scheduler::shift(Space &s, int start, int peak, int32_t *load) const {
    std::fill(s.came_from.begin(), s.came_from.end(), -1);
    int read = 0, write = 0;
    s.queue[write++] = start;
    s.came_from[start] = start;
    while (read < write) {
        const int g = s.queue[read++];
        for (int word = 0; word < words_; ++word) {
            for (uint64_t bits = s.movable[g * words_ + word]; bits; bits &= bits - 1) {
                const int e = word * 64 + __builtin_ctzll(bits), count = hosts(e);
                for (int i = 0; i < count; ++i) {
                    int target = host(e, i);
                    if (s.came_from[target] >= 0) continue;
                    s.came_from[target] = g;
                    s.came_expert[target] = e;
                    s.came_choice[target] = i;
                    if (load[target] > peak - 2) {
                        s.queue[write++] = target;
                        continue;
                    }
                    --load[start];
                    ++load[target];
                    while (target != start) {
                        const int moved = s.came_expert[target], source = s.came_from[target];
                        const uint64_t bit = uint64_t{1} << (moved & 63);
                        s.movable[source * words_ + (moved >> 6)] &= ~bit;
                        s.movable[target * words_ + (moved >> 6)] |= bit;
                        s.choice[moved] = s.came_choice[target];
                        target = source;
                    }
                    return true;
                }
            }
        }
    }
    return false;
}

// Pairs of an expert, in order, to its replicas in turn.
int Scheduler::spread(Space &s, const int32_t *ids, int64_t count, int32_t *replica_ids, int32_t *load) const {
    for (const int32_t e : s.active) s.choice[e] = s.physical[e] = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t e = ids[i];
        const int32_t turn = s.choice[e];
        replica_ids[i] = physical_[host_begin_[e] + turn];
        s.choice[e] = turn + 1 == hosts(e) ? 0 : turn + 1;
        ++s.physical[e];  // pairs so far
    }
    for (const int32_t e : s.active)
        for (int i = 0; i < std::min(hosts(e), s.physical[e]); ++i) ++load[host(e, i)];
    return *std::max_element(load, load + instances_);
}

}  // namespace janus
