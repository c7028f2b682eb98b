// Philox 4x64, ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <cstdint>

namespace janus {

// A number in [0, 1) that depends on (seed, index) alone; the same as numpy's
// Generator(Philox(key=seed, counter=index)).random().
inline double uniform(uint64_t seed, uint64_t index) {
    uint64_t counter[4] = {index + 1, index + 1 == 0 ? 1u : 0u, 0, 0}, key[2] = {seed, 0};
    for (int round = 0; round < 10; ++round) {
        const auto first = static_cast<unsigned __int128>(0xD2E7470EE14C6C93ULL) * counter[0];
        const auto second = static_cast<unsigned __int128>(0xCA5A826395121157ULL) * counter[2];
        const uint64_t next[4] = {static_cast<uint64_t>(second >> 64) ^ counter[1] ^ key[0],
                                  static_cast<uint64_t>(second),
                                  static_cast<uint64_t>(first >> 64) ^ counter[3] ^ key[1],
                                  static_cast<uint64_t>(first)};
        for (int i = 0; i < 4; ++i) counter[i] = next[i];
        key[0] += 0x9E3779B97F4A7C15ULL;
        key[1] += 0xBB67AE8584CAA73BULL;
    }
    return static_cast<double>(counter[0] >> 11) * (1.0 / 9007199254740992.0);
}

}  // namespace janus
