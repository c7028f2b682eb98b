// What the bindings share: the kernels in use and how work is cut into pieces.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "pool.h"

namespace janus {

const KernelTable &kernels();
bool use_kernels(const char *name);

constexpr int64_t kLineFloats = 16;  // floats of a cache line

template <class T>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

// Pieces of [0, n), each a whole number of register tiles and at least `least`; with `repeats` such ranges a few for
// every thread.
struct Pieces {
    int64_t size, count;

    Pieces(int64_t n, int64_t repeats = 1, int64_t least = 8) {
        const int64_t wanted = std::max<int64_t>(1, 8 * pool().size() / std::max<int64_t>(1, repeats));
        size = std::max<int64_t>(least, ((n + wanted - 1) / wanted + 7) / 8 * 8);
        count = (n + size - 1) / size;
    }
};

// fn(first, last) over [0, n); in one piece when it is too little to share.
template <class F>
void over_rows(int64_t n, int64_t work, const F &fn) {
    if (work < 1 << 15) return fn(0, n);
    const Pieces pieces(n);
    pool().run(pieces.count, [&](int64_t i) { fn(i * pieces.size, std::min(n, (i + 1) * pieces.size)); });
}

}  // namespace janus
