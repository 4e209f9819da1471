// SparseMatMul as plainly as it can be said: the specification that every implementation is tested against.
#include "sparse_matmul/reference.h"

#include <cstring>

#include "base/activation_reference.h"

namespace graphopt::sparse_matmul {
namespace {

template <class T>
T load(const unsigned char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Calls visit(k, n, value) for each weight of a strip, in the order of the bytes.
template <class Visit>
void for_each_of_strips(const PackedMatrix& w, Visit visit) {
  for (size_t b = 0; b < w.strips * w.k_blocks; ++b) {
    const size_t k0 = b % w.k_blocks * w.k_block, n0 = b / w.k_blocks * w.block_rows;
    const size_t end = load<uint64_t>(w.blocks + (b + 1) * strip_bytes);
    for (size_t entry = load<uint64_t>(w.blocks + b * strip_bytes); entry < end; ++entry) {
      const size_t k = k0 + load<uint16_t>(w.indices + entry * strip_index_bytes);
      for (size_t r = 0; r < w.block_rows && n0 + r < w.n; ++r) {
        visit(k, n0 + r, load<float>(w.values + (entry * w.block_rows + r) * sizeof(float)));
      }
    }
  }
}

// The same for each entry of the unstructured form.
template <class Visit>
void for_each_of_runs(const PackedMatrix& w, Visit visit) {
  for (size_t b = 0; b < w.panels * w.k_blocks; ++b) {
    const unsigned char* here = w.blocks + b * block_bytes;
    size_t entry = load<uint64_t>(here), row = load<uint32_t>(here + 12);
    const size_t k0 = b % w.k_blocks * w.k_block, n0 = b / w.k_blocks * w.panel_rows;
    for (size_t run = load<uint32_t>(here + 8), end = load<uint32_t>(here + block_bytes + 8); run < end; ++run) {
      const size_t per_row = load<uint16_t>(w.runs + run * run_bytes), rows = load<uint16_t>(w.runs + run * run_bytes + 2);
      for (size_t first = 0, group = 0; first < rows; first += group) {
        group = group_of(rows - first);
        for (size_t j = 0; j < per_row; ++j) {
          for (size_t r = 0; r < group; ++r, ++entry) {
            const size_t n = n0 + load<uint16_t>(w.rows + (row + first + r) * row_bytes);
            visit(k0 + w.indices[entry], n, load<float>(w.values + entry * sizeof(float)));
          }
        }
      }
      row += rows;
    }
  }
}

}  // namespace

void reference(const Call& call, double* sums) {
  const size_t n_all = call.w->n, k_all = call.w->k;
  for (size_t m = 0; m < call.m; ++m) {
    for (size_t n = 0; n < n_all; ++n) sums[n] = call.bias ? static_cast<double>(call.bias[n]) : 0.0;
    const auto add = [&](size_t k, size_t n, float value) {
      sums[n] += static_cast<double>(value) * static_cast<double>(call.x[m * k_all + k]);
    };
    if (call.w->block_rows == 1) {
      for_each_of_runs(*call.w, add);
    } else {
      for_each_of_strips(*call.w, add);
    }
    for (size_t n = 0; n < n_all; ++n) {
      const double residual = call.residual ? static_cast<double>(call.residual[m * n_all + n]) : 0.0;
      call.y[m * n_all + n] = static_cast<float>(activation_reference(sums[n] + residual, call.epilogue));
    }
  }
}

}  // namespace graphopt::sparse_matmul
