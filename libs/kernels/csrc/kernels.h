// Kernels of one instruction set. Each is compiled several times (kernels_*.cpp) from kernels.inl; the
// best one that the processor has is chosen at run time (dispatch.cpp).
//
// Every result is a fixed sequence of operations on a token's own data: it does not depend on the other
// tokens of the call, on the number of threads, or on which part of the work a thread gets. AVX2 and AVX-512
// give the same bits (16 accumulator lanes and one reduction tree); the portable build may not, as it has
// no fused multiply-add.
#pragma once

#include <cstdint>

namespace janus {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };

struct Weights {
    const void *data;
    DType dtype;
};

// Paged attention of one layer; see ops/attention.py for the meaning of each field.
struct AttentionCall {
    const float *query;         // [T, H, h]
    const void *keys;           // [blocks, block_size, Hkv, h]
    const void *values;
    DType dtype;
    const int32_t *query_starts;  // [B + 1]
    const int32_t *context_lens;  // [B]
    const int32_t *block_tables;  // [B, table_width]
    float *out;                 // [T, H, h]
    int64_t heads, kv_heads, head_dim, block_size, table_width, window;
    float scale;
};

struct KernelTable {
    const char *name;
    // out[t, n] = sum_k x[t, k] w[n, k] for rows n of [n0, n1); out has n_total columns. bias may be null.
    // `after` here and below: the weights that this thread reads next, to ask for them in time; may be null.
    void (*linear)(const float *x, int64_t x_stride, int64_t tokens, int64_t k, Weights w, const float *bias, int64_t n0, int64_t n1,
                   const void *after, int64_t n_total, float *out);
    // out[t, n] = silu(x gate^T) * (x up^T) for rows n of [n0, n1). x rows are picked by index.
    void (*gate_up)(const float *x, int64_t x_stride, const int32_t *rows, int64_t tokens, int64_t k, Weights gate, Weights up,
                    int64_t n0, int64_t n1, const void *after, float *out, int64_t out_stride);
    // out[rows[t], n] += grid(weight[t] * (h down^T)[t, n]) for n of [n0, n1).
    void (*down_add)(const float *h, int64_t h_stride, const int32_t *rows, const double *weight, int64_t tokens, int64_t k,
                     Weights down, int64_t n0, int64_t n1, const void *after, int64_t n_total, double *out);
    // One sequence's queries [first, last) for one KV head; scratch holds group * (context + 1) floats.
    void (*attend)(const AttentionCall &call, int64_t sequence, int64_t kv_head, float *scratch);
    void (*rms_norm)(const float *x, int64_t rows, int64_t width, Weights weight, float eps, float *out);
    // u64 over ids, layout version and assignment, the same on every platform.
    uint64_t (*digest)(const int32_t *ids, const int32_t *replica_ids, int64_t count, uint64_t layout_version);
    // What the processor can do at best: reads `count` floats; does `rounds` times `probe_flops` operations.
    float (*read_probe)(const float *data, int64_t count);
    float (*fma_probe)(int64_t rounds);
    int64_t probe_flops;
};

extern const KernelTable kPortable;
#if defined(__x86_64__)
extern const KernelTable kAvx2;
extern const KernelTable kAvx512;
#endif

// The table in use; `force` (or null) names another that the processor has.
const KernelTable *select(const char *force);

}  // namespace janus
