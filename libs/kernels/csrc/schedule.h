// Activation scheduling of one MoE layer. scheduling.py has the reference: results are equal in every number.
#pragma once

#include <cstdint>
#include <vector>

namespace janus {

enum class Policy : int { optimal = 0, aebs = 1, token_balanced = 2, random = 3 };

class Scheduler {
   public:
    // slot_of: [experts, instances], -1 where an expert is not hosted.
    Scheduler(const int32_t *slot_of, int experts, int instances, int slots);

    int experts() const { return experts_; }
    int instances() const { return instances_; }

    // Fills replica_ids [count] and load [instances]; returns a_max, or kBadInput for an id out of range or an
    // expert that nobody hosts. Any number of threads may call it; a thread's first call allocates, no other.
    int run(const int32_t *ids, int64_t count, Policy policy, uint64_t seed, int32_t *replica_ids,
            int32_t *load) const;

    // For batches given by their distinct experts, ascending, [begin[b], begin[b + 1]) of `active`: a_max of each to
    // peaks [batches]; optimal or aebs. pressure [experts, instances], or null: adds, for every batch in which a
    // replica of the expert on the instance could relieve the fullest, 2 if by itself, 1 if with others. False for bad input, as above.
    bool replay(const int64_t *begin, int64_t batches, const int32_t *active, Policy policy, int32_t *peaks,
                int32_t *pressure) const;

    static constexpr int kBadInput = -1;

   private:
    struct Space;

    void assign(Space &s, int32_t *load) const;
    void improve(Space &s, int32_t *load) const;
    bool shift(Space &s, int start, int peak, int32_t *load) const;
    int spread(Space &s, const int32_t *ids, int64_t count, int32_t *replica_ids, int32_t *load) const;
    int hosts(int expert) const { return host_begin_[expert + 1] - host_begin_[expert]; }
    int host(int expert, int i) const { return host_list_[host_begin_[expert] + i]; }

    int experts_, instances_, slots_, words_;
    std::vector<int32_t> host_begin_, host_list_;
    std::vector<int32_t> physical_;  // beside host_list_: the replica id there
};

}  // namespace janus
