// Python bindings. Tensors come as addresses: janus_kernels.ops checks shapes, types and layout beforehand.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>

#include "engine.h"
#include "experts.h"
#include "philox.h"
#include "schedule.h"

namespace nb = nanobind;
using namespace janus;

namespace {

void linear(uintptr_t x, int64_t tokens, int64_t k, uintptr_t w, int dtype, uintptr_t bias, uintptr_t scale,
            int64_t group, int64_t n, uintptr_t out) {
    nb::gil_scoped_release release;
    const Weights weights{at<void>(w), static_cast<DType>(dtype), at<float>(bias), at<void>(scale), group};
    over_rows(n, tokens * k * n, [&](int64_t n0, int64_t n1) {
        kernels().linear(at<float>(x), k, tokens, k, weights, n0, n1, nullptr, n, at<float>(out));
    });
}

void swiglu(uintptr_t x, int64_t tokens, int64_t hidden, uintptr_t gate, uintptr_t up, uintptr_t down, int dtype,
            int64_t inner, uintptr_t h, uintptr_t out) {
    nb::gil_scoped_release release;
    const DType type = static_cast<DType>(dtype);
    over_rows(inner, tokens * hidden * inner, [&](int64_t n0, int64_t n1) {
        kernels().gate_up(at<float>(x), hidden, nullptr, tokens, hidden, {at<void>(gate), type}, {at<void>(up), type},
                          {}, n0, n1, nullptr, at<float>(h), inner);
    });
    over_rows(hidden, tokens * hidden * inner, [&](int64_t n0, int64_t n1) {
        kernels().linear(at<float>(h), inner, tokens, inner, {at<void>(down), type}, n0, n1, nullptr, hidden, at<float>(out));
    });
}

void attention(uintptr_t query, uintptr_t keys, uintptr_t values, int dtype, uintptr_t starts, uintptr_t contexts,
               uintptr_t tables, uintptr_t sinks, uintptr_t out, int64_t sequences, int64_t heads, int64_t kv_heads, int64_t head_dim,
               int64_t value_dim, int64_t key_row, int64_t value_row, int64_t block_size, int64_t table_width,
               int64_t window, float scale, bool columns, int64_t key_block, int64_t key_head, int64_t value_block,
               int64_t value_head) {
    nb::gil_scoped_release release;
    const AttentionCall call{at<float>(query), at<void>(keys), at<void>(values), static_cast<DType>(dtype),
                             at<int32_t>(starts), at<int32_t>(contexts), at<int32_t>(tables), at<float>(sinks),
                             at<float>(out), heads, kv_heads, head_dim, value_dim, key_row, value_row, block_size, table_width,
                             window, scale, columns, key_block, key_head, value_block, value_head};
    // A piece takes about as many (query, head) pairs as keep its scores in cache. One query takes several KV
    // heads at once: theirs lie side by side in the cache. Enough pieces for every thread come first.
    constexpr int64_t kPairs = 64;
    const int64_t group = heads / kv_heads, part = std::min(group, kPairs), parts = (group + part - 1) / part;
    const int64_t wanted = std::max<int64_t>(1, 2 * pool().size() / std::max<int64_t>(1, sequences));
    const int64_t side_by_side = std::clamp<int64_t>(kv_heads / wanted, 1, std::max<int64_t>(1, kPairs / group));
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    thread_local std::vector<AttentionPiece> pieces;
    pieces.clear();
    for (int64_t s = 0; s < sequences; ++s) {
        const int64_t begin = call.query_starts[s], end = call.query_starts[s + 1];
        const int64_t kv_step = end - begin == 1 ? side_by_side : 1, block = std::max<int64_t>(1, kPairs / part);
        for (int64_t t = begin; t < end; t += block)
            for (int64_t g = 0; g < kv_heads; g += kv_step)
                for (int64_t h = 0; h < parts; ++h) {
                    const int64_t g_end = std::min(kv_heads, g + kv_step), head = g * group + h * part;
                    const int64_t head_end = parts == 1 ? g_end * group : std::min(head + part, (g + 1) * group);
                    pieces.push_back({narrow(s), narrow(g), narrow(g_end), narrow(head), narrow(head_end), narrow(t),
                                      narrow(std::min(t + block, end))});
                }
    }
    const AttentionPiece *piece = pieces.data();
    const int64_t count = static_cast<int64_t>(pieces.size()), threads = pool().size();
    pool().run(count, [&, piece](int64_t i) {
        kernels().attend(call, piece[i], i + threads < count ? piece + i + threads : nullptr);
    });
}

void rotary(uintptr_t x, int64_t tokens, int64_t heads, int64_t head_dim, uintptr_t cos, uintptr_t sin,
            uintptr_t positions, uintptr_t out) {
    nb::gil_scoped_release release;
    const int64_t row = heads * head_dim;
    over_rows(tokens, tokens * row, [&](int64_t t0, int64_t t1) {
        kernels().rotary(at<float>(x) + t0 * row, t1 - t0, heads, head_dim, at<float>(cos), at<float>(sin),
                         at<int64_t>(positions) + t0, at<float>(out) + t0 * row);
    });
}

void combine(const std::vector<uintptr_t> &partials, int64_t count, uintptr_t out) {
    nb::gil_scoped_release release;
    std::vector<const double *> parts;
    for (const uintptr_t partial : partials) parts.push_back(at<double>(partial));
    kernels().combine(parts.data(), static_cast<int64_t>(parts.size()), 0, count, at<float>(out));
}

int64_t sample(uintptr_t logits, int64_t vocabulary, float temperature, int64_t top_k, float top_p, float min_p,
               uint64_t seed, uint64_t index) {
    nb::gil_scoped_release release;
    return kernels().sample({at<float>(logits), vocabulary, top_k, temperature, top_p, min_p, uniform(seed, index)});
}

void rms_norm(uintptr_t x, int64_t rows, int64_t width, uintptr_t weight, int dtype, float eps, uintptr_t out) {
    nb::gil_scoped_release release;
    const Weights weights{at<void>(weight), static_cast<DType>(dtype)};
    over_rows(rows, rows * width, [&](int64_t t0, int64_t t1) {
        kernels().rms_norm(at<float>(x) + t0 * width, t1 - t0, width, weights, eps, at<float>(out) + t0 * width);
    });
}

void route(uintptr_t logits, int64_t tokens, int64_t experts, uintptr_t bias, int64_t top_k, bool sigmoid,
           bool renormalize, float scale, int64_t groups, int64_t groups_kept, bool group_top2, uintptr_t ids,
           uintptr_t weights) {
    nb::gil_scoped_release release;
    const RouteCall call{at<float>(logits), at<float>(bias), experts, top_k, groups, groups_kept, sigmoid,
                         renormalize, group_top2, scale, at<int32_t>(ids), at<double>(weights)};
    over_rows(tokens, tokens * experts * 8, [&](int64_t t0, int64_t t1) { kernels().route(call, t0, t1); });
}

using Ids = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out2 = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out1 = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// (a_max, digest), or None when something is wrong with the ids.
nb::object run_schedule(const Scheduler &scheduler, Ids ids, int policy, uint64_t version, uint64_t seed,
                        Out2 replicas, Out1 load) {
    const int64_t count = static_cast<int64_t>(ids.size());
    if (static_cast<int64_t>(replicas.size()) != count || static_cast<int>(load.shape(0)) != scheduler.instances())
        throw nb::value_error("output arrays of the wrong size");
    int peak;
    uint64_t hash = 0;
    {
        nb::gil_scoped_release release;
        peak = scheduler.run(ids.data(), count, static_cast<Policy>(policy), seed, replicas.data(), load.data());
        if (peak >= 0) hash = kernels().digest(ids.data(), replicas.data(), count, version);
    }
    if (peak < 0) return nb::none();
    return nb::make_tuple(peak, hash);
}

using Index = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using In1 = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

bool run_replay(const Scheduler &scheduler, Index begin, In1 active, int policy, Out1 peaks, std::optional<Out2> pressure) {
    const int64_t batches = static_cast<int64_t>(begin.shape(0)) - 1;
    if (batches < 0 || static_cast<int64_t>(peaks.shape(0)) != batches)
        throw nb::value_error("peaks of the wrong size");
    if (pressure && (static_cast<int>(pressure->shape(0)) != scheduler.experts() ||
                     static_cast<int>(pressure->shape(1)) != scheduler.instances()))
        throw nb::value_error("pressure of the wrong shape");
    for (int64_t b = 0; b < batches; ++b)
        if (begin(b) < 0 || begin(b) > begin(b + 1) || begin(b + 1) > static_cast<int64_t>(active.shape(0)))
            throw nb::value_error("begin is no list of ranges");
    nb::gil_scoped_release release;
    return scheduler.replay(begin.data(), batches, active.data(), static_cast<Policy>(policy), peaks.data(),
                            pressure ? pressure->data() : nullptr);
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Kernels in C++; use them through janus_kernels.";
    m.def("instruction_set", [] { return std::string(kernels().name); });
    m.def("use_instruction_set", [](const std::string &name) {
        if (!use_kernels(name.c_str())) throw nb::value_error(("this processor cannot run " + name).c_str());
    });
    m.def("set_num_threads", [](int threads) {
        if (threads < 1 || threads > 1024) throw nb::value_error("threads: allowed 1..1024");
        nb::gil_scoped_release release;
        resize_pool(threads);
    });
    m.def("num_threads", [] { return pool().size(); });
    m.def("linear", &linear);
    m.def("swiglu", &swiglu);
    m.def("attention", &attention);
    m.def("rms_norm", &rms_norm);
    m.def("rotary", &rotary);
    m.def("combine", &combine);
    m.def("sample", &sample);
    m.def("uniform", &uniform);
    m.def("route", &route);
    // A wish for large memory pages, whole small ones only; whether the system took it.
    m.def("prefer_large_pages", [](uintptr_t address, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
        constexpr uintptr_t kPage = 4096;
        const uintptr_t begin = (address + kPage - 1) & ~(kPage - 1), end = (address + bytes) & ~(kPage - 1);
        return end > begin && madvise(at<void>(begin), end - begin, MADV_HUGEPAGE) == 0;
#else
        return address == 0 && bytes < 0;
#endif
    });
    // Whole pages of it backed by memory now, as a write would, whatever is there; whether the system did.
    m.def("populate", [](uintptr_t address, int64_t bytes) {
#if defined(__linux__)
        nb::gil_scoped_release release;
        constexpr uintptr_t kPage = 4096;
        constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, which older C libraries do not name
        const uintptr_t begin = address & ~(kPage - 1), end = (address + bytes + kPage - 1) & ~(kPage - 1);
        return madvise(at<void>(begin), end - begin, kPopulateWrite) == 0;
#else
        return address == 0 && bytes < 0;
#endif
    });
    // For the benchmarks: reads that many bytes on all threads; does floating-point operations and says how many.
    m.def("read_probe", [](uintptr_t address, int64_t bytes) {
        nb::gil_scoped_release release;
        constexpr int64_t kPiece = int64_t{1} << 18;
        std::atomic<float> sink{0.0f};
        pool().run(bytes / kPiece, [&](int64_t i) {
            sink.store(kernels().read_probe(at<float>(address + i * kPiece), kPiece / 4));
        });
        return sink.load();
    });
    m.def("fma_probe", [](int64_t rounds) {
        nb::gil_scoped_release release;
        const int64_t pieces = 16 * pool().size();
        std::atomic<float> sink{0.0f};
        pool().run(pieces, [&](int64_t) { sink.store(kernels().fma_probe(rounds / pieces)); });
        return rounds / pieces * pieces * kernels().probe_flops;
    });
    m.def("digest", [](Ids ids, Ids replicas, uint64_t version) {
        return kernels().digest(ids.data(), replicas.data(), static_cast<int64_t>(ids.size()), version);
    });
    nb::class_<ExpertTable>(m, "ExpertTable")
        .def("__init__", [](ExpertTable *self, int experts, int64_t hidden, int64_t inner, int dtype) {
            new (self) ExpertTable(experts, hidden, inner, static_cast<DType>(dtype));
        })
        .def("set", [](ExpertTable &t, int expert, uintptr_t gate, uintptr_t up, uintptr_t down, uintptr_t gate_bias,
                       uintptr_t up_bias, uintptr_t down_bias, uintptr_t gate_scale, uintptr_t up_scale,
                       uintptr_t down_scale, int64_t group) {
            const DType dtype = t.dtype();
            t.set(expert, {{at<void>(gate), dtype, at<float>(gate_bias), at<void>(gate_scale), group},
                           {at<void>(up), dtype, at<float>(up_bias), at<void>(up_scale), group},
                           {at<void>(down), dtype, at<float>(down_bias), at<void>(down_scale), group}});
        })
        .def("run", [](ExpertTable &t, uintptr_t x, uintptr_t ids, uintptr_t mine, uintptr_t weights, int64_t tokens,
                       int64_t topk,
                       bool clamped, float alpha, float limit, uintptr_t out) {
            int64_t missing = 0;
            if (!t.group(at<int32_t>(ids), at<bool>(mine), at<double>(weights), tokens, topk, missing))
                throw nb::key_error(("expert " + std::to_string(missing) + " is not loaded here").c_str());
            {
                nb::gil_scoped_release release;
                t.compute(at<float>(x), tokens, {clamped, alpha, limit}, at<double>(out));
            }
            return nb::make_tuple(t.calls(), t.pairs());
        });
    nb::class_<Scheduler>(m, "Scheduler")
        .def("__init__", [](Scheduler *self, Ids slot_of, int slots) {
            new (self) Scheduler(slot_of.data(), static_cast<int>(slot_of.shape(0)),
                                 static_cast<int>(slot_of.shape(1)), slots);
        })
        .def("run", &run_schedule)
        .def("replay", &run_replay, nb::arg("begin"), nb::arg("active"), nb::arg("policy"), nb::arg("peaks"),
             nb::arg("pressure").none());
}
