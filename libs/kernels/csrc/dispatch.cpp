#include <atomic>
#include <cstring>

#include "engine.h"

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

namespace {

std::atomic<const KernelTable *> chosen{nullptr};

}  // namespace

const KernelTable &kernels() {
    const KernelTable *table = chosen.load(std::memory_order_relaxed);
    if (!table) chosen.store(table = select(nullptr));
    return *table;
}

bool use_kernels(const char *name) {
    const KernelTable *table = select(name);
    if (table) chosen.store(table);
    return table != nullptr;
}

}  // namespace janus
