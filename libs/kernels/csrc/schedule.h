// Activation scheduling of one MoE layer. See scheduling.py, its reference.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace janus {

class Scheduler {
   public:
    // slot_of: [experts, instances], -1 where an expert is not hosted.
    Scheduler(const int32_t *slot_of, int experts, int instances, int slots);

    int instances() const { return instances_; }

    // Fills replica_ids [count] and load [instances]; returns a_max, or -1 - e for an expert that nobody
    // hosts, or kBadId. No allocation. Not for two threads at once.
    int run(const int32_t *ids, int64_t count, bool optimal, int32_t *replica_ids, int32_t *load);

    static constexpr int kBadId = -100000;

   private:
    bool shift(int start, int peak, int32_t *load);
    void place(int expert, int instance);

    int experts_, instances_, slots_;
    std::vector<int32_t> slot_of_;
    std::vector<int32_t> host_begin_, host_list_;
    // Work space: active experts in order, host of each, experts on each instance as linked lists.
    std::vector<int32_t> active_, host_, next_, head_, prev_, came_from_, came_expert_, queue_, physical_;
    std::vector<uint8_t> seen_;
};

}  // namespace janus
