// Kernels of one instruction set. Each is compiled several times (kernels_*.cpp) from kernels.inl; the
// best one that the processor has is chosen at run time (dispatch.cpp).
//
// Every result is a fixed sequence of operations on a token's own data: it does not depend on the other
// tokens of the call, on the number of threads, or on which part of the work a thread gets.
#pragma once

#include <cstdint>

namespace janus {

// i8: weight = scale of its row * byte. i4: scale * nibble + shift of its group, see widen_i4(). Weights only.
enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, i8 = 3, i4 = 4 };

// Of a group of int4: float16, so that scale * nibble is exact in float and fused or not makes no difference.
struct Pair {
    uint16_t scale, shift;
};

struct Weights {
    const void *data;  // [N, K], rows contiguous
    DType dtype;
    const float *bias = nullptr;  // [N] or null, added to the products
    const void *scale = nullptr;   // i8: float [N]; i4: Pair [N, K / group]
    int64_t group = 0;             // elements of a row that share a scale, a multiple of 32
};

// Row n of weights with rows of k elements.
inline const void *row_of(const Weights &w, int64_t n, int64_t k) {
    constexpr int64_t half_bytes[] = {8, 4, 4, 2, 1};
    return static_cast<const char *>(w.data) + n * k * half_bytes[static_cast<int>(w.dtype)] / 2;
}

// Paged attention of one layer; see ops/attention.py for the meaning of each field.
struct AttentionCall {
    const float *query;           // [T, H, h]
    const void *keys;             // [blocks, block_size, Hkv, key_row], the first h of each row
    const void *values;           // [blocks, block_size, Hkv, value_row], the first value_dim of each row
    DType dtype;
    const int32_t *query_starts;  // [B + 1]
    const int32_t *context_lens;  // [B]
    const int32_t *block_tables;  // [B, table_width]
    const float *sinks;           // [H] or null: one more logit in each head's softmax, with no value
    float *out;                   // [T, H, value_dim]
    int64_t heads, kv_heads, head_dim, value_dim, key_row, value_row, block_size, table_width, window;
    float scale;
    // Set: a page holds [Hkv][h][block_size] keys and [Hkv][block_size][value_row] values; elements from one block
    // and one KV head to the next. block_size is a multiple of 16 and divides 256.
    bool columns;
    int64_t key_block, key_head, value_block, value_head;
};

// Queries [first, last) (rows of the call, all of one sequence) of some heads: those of KV heads
// [kv_begin, kv_end), or a part of one KV head's.
struct AttentionPiece {
    int32_t sequence, kv_begin, kv_end, head_begin, head_end, first, last;
};

// What lies between an expert's first products and its last: silu(gate) * up, or, clamped,
// (up + 1) * gate * sigmoid(alpha * gate) with gate at most `limit` and up within it on both sides.
struct Activation {
    bool clamped = false;
    float alpha = 1.0f, limit = 0.0f;
};

// Choosing experts; see ops/routing.py.
struct RouteCall {
    const float *logits;  // [T, E]
    const float *bias;    // [E] or null: added for choosing only
    int64_t experts, top_k, groups, groups_kept;
    bool sigmoid, renormalize, group_top2;
    float scale;
    int32_t *ids;     // [T, k]
    double *weights;  // [T, k]
};

// Choosing a token; see ops/sampling.py.
struct SampleCall {
    const float *logits;
    int64_t vocabulary, top_k;
    float temperature, top_p, min_p;
    double uniform;  // [0, 1)
};

// `after`: weights that the same thread probably reads next, or null.
struct KernelTable {
    const char *name;
    // out[t, n] = sum_k x[t, k] w[n, k] + bias[n] for rows n of [n0, n1); out has n_total columns.
    void (*linear)(const float *x, int64_t x_stride, int64_t tokens, int64_t k, Weights w,
                   int64_t n0, int64_t n1, const void *after, int64_t n_total, float *out);
    // out[t, n] = activation(x gate^T, x up^T) for rows n of [n0, n1); x rows are picked by index unless rows is null.
    void (*gate_up)(const float *x, int64_t x_stride, const int32_t *rows, int64_t tokens, int64_t k, Weights gate,
                    Weights up, const Activation &activation, int64_t n0, int64_t n1, const void *after, float *out,
                    int64_t out_stride);
    // out[rows[t], n] += grid(weight[t] * (h down^T)[t, n]) for n of [n0, n1).
    void (*down_add)(const float *h, int64_t h_stride, const int32_t *rows, const double *weight, int64_t tokens,
                     int64_t k, Weights down, int64_t n0, int64_t n1, const void *after, int64_t n_total,
                     double *out);
    // `then`: the piece that the same thread probably takes next, or null.
    void (*attend)(const AttentionCall &call, const AttentionPiece &piece, const AttentionPiece *then);
    void (*rms_norm)(const float *x, int64_t rows, int64_t width, Weights weight, float eps, float *out);
    // Halves of each head rotated: x and out [T, H, h], cos and sin [positions, h / 2].
    void (*rotary)(const float *x, int64_t tokens, int64_t heads, int64_t head_dim, const float *cos,
                   const float *sin, const int64_t *positions, float *out);
    // Sum of fp64 partial sums, in order, rounded once.
    void (*combine)(const double *const *partials, int64_t parts, int64_t first, int64_t last, float *out);
    int64_t (*sample)(const SampleCall &call);
    void (*route)(const RouteCall &call, int64_t first, int64_t last);
    // See scheduling.py: 64 bits over (ids, replica ids), layout version.
    uint64_t (*digest)(const int32_t *ids, const int32_t *replica_ids, int64_t count, uint64_t version);
    // For the benchmarks: reads the floats; does rounds * probe_flops floating-point operations.
    float (*read_probe)(const float *data, int64_t count);
    float (*fma_probe)(int64_t rounds);
    int64_t probe_flops;
    // seen[id] = 1 for each; false when one is outside [0, experts).
    bool (*mark)(const int32_t *ids, int64_t count, uint32_t experts, uint8_t *seen);
};

extern const KernelTable kPortable;
#if defined(__x86_64__)
extern const KernelTable kAvx2;
extern const KernelTable kAvx512;
#endif

// The best table that this processor runs, or the one called `force`; null when it cannot run that.
const KernelTable *select(const char *force);

}  // namespace janus
