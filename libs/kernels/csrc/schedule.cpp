#include "schedule.h"

#include <algorithm>

namespace janus {

Scheduler::Scheduler(const int32_t *slot_of, int experts, int instances, int slots)
    : experts_(experts), instances_(instances), slots_(slots), slot_of_(slot_of, slot_of + experts * instances) {
    host_begin_.push_back(0);
    for (int e = 0; e < experts; ++e) {
        for (int g = 0; g < instances; ++g)
            if (slot_of_[e * instances + g] >= 0) host_list_.push_back(g);
        host_begin_.push_back(static_cast<int32_t>(host_list_.size()));
    }
    active_.reserve(experts);
    for (auto *vector : {&host_, &next_, &prev_, &physical_}) vector->resize(experts);
    for (auto *vector : {&head_, &came_from_, &came_expert_, &queue_}) vector->resize(instances);
    seen_.resize(experts);
}

// Experts on an instance form a list, so that a move costs a few writes.
void Scheduler::place(int expert, int instance) {
    host_[expert] = instance;
    next_[expert] = head_[instance];
    prev_[expert] = -1;
    if (head_[instance] >= 0) prev_[head_[instance]] = expert;
    head_[instance] = expert;
}

int Scheduler::run(const int32_t *ids, int64_t count, bool optimal, int32_t *replica_ids, int32_t *load) {
    // The sign bit of `outside` tells an id that is negative or too large.
    uint32_t outside = 0;
    const uint32_t top = static_cast<uint32_t>(experts_ - 1);
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t id = static_cast<uint32_t>(ids[i]);
        outside |= id | (top - id);
    }
    if (outside >> 31) return kBadId;
    std::fill(seen_.begin(), seen_.end(), 0);
    for (int64_t i = 0; i < count; ++i) seen_[ids[i]] = 1;
    active_.clear();
    std::fill(head_.begin(), head_.end(), -1);
    std::fill(load, load + instances_, 0);
    for (int e = 0; e < experts_; ++e)
        if (seen_[e]) active_.push_back(e);
    // AEBS: experts with one host first, then each other, ascending, to its least-loaded host.
    for (int32_t e : active_) {
        const int hosts = host_begin_[e + 1] - host_begin_[e];
        if (hosts == 0) return -1 - e;
        if (hosts == 1) {
            const int g = host_list_[host_begin_[e]];
            place(e, g);
            ++load[g];
        }
    }
    for (int32_t e : active_) {
        if (host_begin_[e + 1] - host_begin_[e] == 1) continue;
        int best = host_list_[host_begin_[e]];
        for (int h = host_begin_[e] + 1; h < host_begin_[e + 1]; ++h)
            if (load[host_list_[h]] < load[best]) best = host_list_[h];
        place(e, best);
        ++load[best];
    }
    int peak = *std::max_element(load, load + instances_);
    if (optimal) {
        // Lower the fullest instances one by one; one that cannot be lowered bounds every assignment.
        const int floor = (static_cast<int>(active_.size()) + instances_ - 1) / instances_;
        while (peak > floor) {
            bool stuck = false;
            for (int g = 0; g < instances_ && !stuck; ++g)
                if (load[g] == peak) stuck = !shift(g, peak, load);
            if (stuck) break;
            --peak;
        }
        peak = *std::max_element(load, load + instances_);
    }
    for (int32_t e : active_) physical_[e] = host_[e] * slots_ + slot_of_[e * instances_ + host_[e]];
    for (int64_t i = 0; i < count; ++i) replica_ids[i] = physical_[ids[i]];
    return peak;
}

// Breadth-first from `start` over "an expert here has a replica there" to an instance two below the peak.
bool Scheduler::shift(int start, int peak, int32_t *load) {
    std::fill(came_from_.begin(), came_from_.end(), -1);
    int read = 0, write = 0;
    queue_[write++] = start;
    came_from_[start] = start;
    while (read < write) {
        const int g = queue_[read++];
        for (int e = head_[g]; e >= 0; e = next_[e]) {
            for (int h = host_begin_[e]; h < host_begin_[e + 1]; ++h) {
                int target = host_list_[h];
                if (came_from_[target] >= 0) continue;
                came_from_[target] = g;
                came_expert_[target] = e;
                if (load[target] > peak - 2) {
                    queue_[write++] = target;
                    continue;
                }
                --load[start];
                ++load[target];
                while (target != start) {
                    const int moved = came_expert_[target], source = came_from_[target];
                    if (prev_[moved] >= 0) next_[prev_[moved]] = next_[moved];
                    else head_[source] = next_[moved];
                    if (next_[moved] >= 0) prev_[next_[moved]] = prev_[moved];
                    place(moved, target);
                    target = source;
                }
                return true;
            }
        }
    }
    return false;
}

}  // namespace janus
