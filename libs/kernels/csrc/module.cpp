// Python bindings. Tensors come as addresses: ops/native.py checks shapes, types and layout beforehand.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "kernels.h"
#include "pool.h"
#include "schedule.h"

namespace nb = nanobind;
using namespace janus;

namespace {

struct Engine {
    const KernelTable *table = select(nullptr);
    Pool pool;
};

Engine &engine() {
    // Never destroyed: its threads must not be joined while the interpreter goes away.
    static Engine *instance = new Engine;
    return *instance;
}

template <class T>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

constexpr int64_t kBlock = 32;  // weight rows per chunk: whole register tiles of every build

int64_t blocks(int64_t n) { return (n + kBlock - 1) / kBlock; }

// Address of row n, for asking ahead.
const void *row(Weights w, int64_t n, int64_t k) {
    return static_cast<const char *>(w.data) + n * k * (w.dtype == DType::f32 ? 4 : 2);
}

// Rows of a power of two bytes would fall on the same few lines of the first cache: they get one line more.
int64_t spread(int64_t k) { return (k + 15) / 16 * 16 + 16; }

// The rows of x, spread; or x itself where there is one row. *stride is set.
const float *spread_rows(const float *x, int64_t tokens, int64_t k, std::vector<float> &buffer, int64_t *stride) {
    *stride = k;
    if (tokens < 2) return x;
    *stride = spread(k);
    if (static_cast<int64_t>(buffer.size()) < tokens * *stride) buffer.resize(tokens * *stride);
    for (int64_t t = 0; t < tokens; ++t) std::copy_n(x + t * k, k, buffer.data() + t * *stride);
    return buffer.data();
}

// A job this small is done before another thread would have noticed it.
bool is_small(int64_t tokens, int64_t n, int64_t k) { return n * k * (tokens + 4) < (int64_t{1} << 18); }

void linear(uintptr_t x, int64_t tokens, int64_t k, uintptr_t w, int dtype, uintptr_t bias, int64_t n, uintptr_t out) {
    nb::gil_scoped_release release;
    const Weights weights{at<void>(w), static_cast<DType>(dtype)};
    const KernelTable &table = *engine().table;
    thread_local std::vector<float> buffer;
    int64_t stride;
    const float *input = spread_rows(at<float>(x), tokens, k, buffer, &stride);
    if (is_small(tokens, n, k)) {
        table.linear(input, stride, tokens, k, weights, at<float>(bias), 0, n, nullptr, n, at<float>(out));
        return;
    }
    engine().pool.run(blocks(n), [&](int64_t i, int64_t next) {
        table.linear(input, stride, tokens, k, weights, at<float>(bias), i * kBlock, std::min(n, (i + 1) * kBlock),
                     next < 0 ? nullptr : row(weights, next * kBlock, k), n, at<float>(out));
    });
}

struct Expert {
    uintptr_t gate, up, down;
};

// Weights of one layer's experts on one instance.
class ExpertTable {
   public:
    ExpertTable(int experts, int64_t hidden, int64_t inner, int dtype)
        : experts_(experts), hidden_(hidden), inner_(inner), dtype_(static_cast<DType>(dtype)) {}

    void set(int expert, uintptr_t gate, uintptr_t up, uintptr_t down) { experts_.at(expert) = {gate, up, down}; }

    // Adds the weighted outputs of the pairs whose replica is on `rank` (all pairs when slots is 0) to out.
    // Returns (distinct experts, pairs).
    std::pair<int, int64_t> run(uintptr_t x, uintptr_t ids, uintptr_t mine, uintptr_t weights, int64_t tokens,
                                int64_t topk, uintptr_t out) {
        const int32_t *id = at<int32_t>(ids);
        const uint8_t *take = at<uint8_t>(mine);
        const double *weight = at<double>(weights);
        counts_.assign(experts_.size() + 1, 0);
        for (int64_t i = 0; i < tokens * topk; ++i) {
            if (!take[i]) continue;
            if (id[i] < 0 || id[i] >= static_cast<int64_t>(experts_.size()) || !experts_[id[i]].gate)
                throw nb::key_error(("expert " + std::to_string(id[i]) + " is not loaded here").c_str());
            ++counts_[id[i] + 1];
        }
        active_.clear();
        for (size_t e = 0; e < experts_.size(); ++e) {
            if (counts_[e + 1]) active_.push_back(static_cast<int32_t>(e));
            counts_[e + 1] += counts_[e];
        }
        const int64_t pairs = counts_.back();
        rows_.resize(pairs);
        scale_.resize(pairs);
        fill_ = counts_;
        for (int64_t i = 0; i < tokens * topk; ++i) {
            if (!take[i]) continue;
            const int64_t place = fill_[id[i]]++;
            rows_[place] = static_cast<int32_t>(i / topk);
            scale_[place] = weight[i];
        }
        nb::gil_scoped_release release;
        compute(at<float>(x), tokens, at<double>(out), pairs);
        return {static_cast<int>(active_.size()), pairs};
    }

   private:
    void compute(const float *x, int64_t tokens, double *out, int64_t pairs) {
        Engine &e = engine();
        std::fill(out, out + tokens * hidden_, 0.0);
        const int64_t inner_stride = spread(inner_);
        if (static_cast<int64_t>(inner_rows_.size()) < pairs * inner_stride) inner_rows_.resize(pairs * inner_stride);
        int64_t stride;
        x = spread_rows(x, tokens, hidden_, hidden_rows_, &stride);
        float *h = inner_rows_.data();
        const int64_t wide = blocks(inner_), narrow = blocks(hidden_);
        e.pool.run(static_cast<int64_t>(active_.size()) * wide, [&](int64_t i, int64_t next) {
            const int32_t expert = active_[i / wide];
            const int64_t first = counts_[expert], count = counts_[expert + 1] - first, n0 = i % wide * kBlock;
            const void *after =
                next < 0 ? nullptr : row(gate(active_[next / wide]), next % wide * kBlock, hidden_);
            e.table->gate_up(x, stride, rows_.data() + first, count, hidden_, gate(expert), up(expert), n0,
                             std::min(inner_, n0 + kBlock), after, h + first * inner_stride, inner_stride);
        });
        // A thread owns columns of the output over all experts, so that no two add to the same number.
        e.pool.run(narrow, [&](int64_t i, int64_t next) {
            for (size_t a = 0; a < active_.size(); ++a) {
                const int32_t expert = active_[a];
                const int64_t first = counts_[expert], count = counts_[expert + 1] - first;
                const void *after = a + 1 < active_.size() ? row(down(active_[a + 1]), i * kBlock, inner_)
                                    : next < 0             ? nullptr
                                                           : row(down(active_[0]), next * kBlock, inner_);
                e.table->down_add(h + first * inner_stride, inner_stride, rows_.data() + first, scale_.data() + first, count, inner_,
                                  down(expert), i * kBlock, std::min(hidden_, (i + 1) * kBlock), after, hidden_,
                                  out);
            }
        });
    }

    Weights gate(int32_t expert) const { return {at<void>(experts_[expert].gate), dtype_}; }
    Weights up(int32_t expert) const { return {at<void>(experts_[expert].up), dtype_}; }
    Weights down(int32_t expert) const { return {at<void>(experts_[expert].down), dtype_}; }

    std::vector<Expert> experts_;
    int64_t hidden_, inner_;
    std::vector<float> inner_rows_, hidden_rows_;
    DType dtype_;
    std::vector<int64_t> counts_, fill_;
    std::vector<int32_t> active_, rows_;
    std::vector<double> scale_;
};

void attention(uintptr_t query, uintptr_t keys, uintptr_t values, int dtype, uintptr_t starts, uintptr_t contexts,
               uintptr_t tables, uintptr_t out, int64_t sequences, int64_t heads, int64_t kv_heads, int64_t head_dim,
               int64_t block_size, int64_t table_width, int64_t window, float scale, int64_t longest) {
    nb::gil_scoped_release release;
    const AttentionCall call{at<float>(query), at<void>(keys), at<void>(values), static_cast<DType>(dtype),
                             at<int32_t>(starts), at<int32_t>(contexts), at<int32_t>(tables), at<float>(out),
                             heads, kv_heads, head_dim, block_size, table_width, window, scale};
    engine().pool.run(sequences * kv_heads, [&](int64_t i, int64_t) {
        thread_local std::vector<float> scratch;
        scratch.resize(heads / kv_heads * (longest + 1));
        engine().table->attend(call, i / kv_heads, i % kv_heads, scratch.data());
    });
}

void rms_norm(uintptr_t x, int64_t rows, int64_t width, uintptr_t weight, int dtype, float eps, uintptr_t out) {
    engine().table->rms_norm(at<float>(x), rows, width, {at<void>(weight), static_cast<DType>(dtype)}, eps,
                             at<float>(out));
}

using Ids = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out2 = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out1 = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Kernels in C++; use them through janus_kernels.";
    m.def("instruction_set", [] { return std::string(engine().table->name); });
    m.def("use_instruction_set", [](const std::string &name) {
        const KernelTable *table = select(name.c_str());
        if (!table) throw nb::value_error(("this processor cannot run " + name).c_str());
        engine().table = table;
    });
    m.def("set_num_threads", [](int threads) {
        if (threads < 1 || threads > 1024) throw nb::value_error("threads: allowed 1..1024");
        engine().pool.resize(threads);
    });
    m.def("num_threads", [] { return engine().pool.size(); });
    m.def("linear", &linear);
    m.def("attention", &attention);
    m.def("rms_norm", &rms_norm);
    // For the benchmarks: reads that many bytes on all threads; does floating-point operations and says how many.
    m.def("read_probe", [](uintptr_t address, int64_t bytes) {
        nb::gil_scoped_release release;
        constexpr int64_t kChunk = int64_t{1} << 18;
        std::atomic<float> sink{0.0f};
        engine().pool.run(bytes / kChunk, [&](int64_t i, int64_t) {
            sink.store(engine().table->read_probe(at<float>(address + i * kChunk), kChunk / 4));
        });
        return sink.load();
    });
    m.def("fma_probe", [](int64_t rounds) {
        nb::gil_scoped_release release;
        const int64_t chunks = 16 * engine().pool.size();
        std::atomic<float> sink{0.0f};
        engine().pool.run(chunks, [&](int64_t, int64_t) { sink.store(engine().table->fma_probe(rounds / chunks)); });
        return rounds / chunks * chunks * engine().table->probe_flops;
    });
    m.def("digest", [](Ids ids, Ids replicas, uint64_t version) {
        return engine().table->digest(ids.data(), replicas.data(), static_cast<int64_t>(ids.size()), version);
    });
    nb::class_<ExpertTable>(m, "ExpertTable")
        .def(nb::init<int, int64_t, int64_t, int>())
        .def("set", &ExpertTable::set)
        .def("run", [](ExpertTable &t, uintptr_t x, uintptr_t ids, uintptr_t mine, uintptr_t weights, int64_t tokens,
                       int64_t topk, uintptr_t out) {
            const auto [calls, pairs] = t.run(x, ids, mine, weights, tokens, topk, out);
            return nb::make_tuple(calls, pairs);
        });
    nb::class_<Scheduler>(m, "Scheduler")
        .def("__init__", [](Scheduler *self, Ids slot_of, int slots) {
            new (self) Scheduler(slot_of.data(), static_cast<int>(slot_of.shape(0)),
                                 static_cast<int>(slot_of.shape(1)), slots);
        })
        // (a_max, or a negative code; digest)
        .def("run", [](Scheduler &s, Ids ids, bool optimal, uint64_t version, Out2 replicas, Out1 load) {
            const int64_t count = static_cast<int64_t>(ids.size());
            if (static_cast<int64_t>(replicas.size()) != count || static_cast<int>(load.shape(0)) != s.instances())
                throw nb::value_error("output arrays of the wrong size");
            int peak;
            uint64_t hash = 0;
            {
                nb::gil_scoped_release release;
                peak = s.run(ids.data(), count, optimal, replicas.data(), load.data());
                if (peak >= 0) hash = engine().table->digest(ids.data(), replicas.data(), count, version);
            }
            return nb::make_tuple(peak, hash);
        });
}
