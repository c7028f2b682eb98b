// Grouped SwiGLU over the experts of one layer on one instance.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"

namespace janus {

class ExpertTable {
   public:
    ExpertTable(int experts, int64_t hidden, int64_t inner, DType dtype)
        : experts_(experts), hidden_(hidden), inner_(inner), dtype_(dtype) {}

    struct Expert {
        Weights gate{}, up{}, down{};
    };

    DType dtype() const { return dtype_; }
    void set(int expert, const Expert &weights) { experts_.at(expert) = weights; }

    // Sorts the pairs that are `mine` by expert. False, and `missing`, when one of their experts is not here.
    bool group(const int32_t *ids, const bool *mine, const double *weights, int64_t tokens, int64_t topk,
               int64_t &missing);

    // Writes the sum of the grouped pairs' outputs to out [tokens, hidden].
    void compute(const float *x, int64_t tokens, const Activation &activation, double *out);

    int64_t calls() const { return static_cast<int64_t>(active_.size()); }
    int64_t pairs() const { return static_cast<int64_t>(rows_.size()); }

   private:
    std::vector<Expert> experts_;
    int64_t hidden_, inner_;
    DType dtype_;
    // Of the call under way; kept so that a call allocates nothing once it has seen its largest size.
    std::vector<int64_t> begin_, fill_;
    std::vector<int32_t> active_, rows_;
    std::vector<double> scale_;
    std::vector<float> x_rows_, inner_rows_;
};

}  // namespace janus
