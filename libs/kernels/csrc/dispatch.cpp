#include <cstring>

#include "kernels.h"

namespace janus {

const KernelTable *select(const char *force) {
    const auto wanted = [force](const KernelTable &table) { return !force || !std::strcmp(force, table.name); };
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (wanted(kAvx512) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        return &kAvx512;
    if (wanted(kAvx2) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        return &kAvx2;
#endif
    return wanted(kPortable) ? &kPortable : nullptr;
}

}  // namespace janus
