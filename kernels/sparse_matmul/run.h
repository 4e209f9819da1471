// One SparseMatMul call, cut into tasks.
#pragma once
#include <cstddef>

#include "base/isa.h"
#include "sparse_matmul/contract.h"

namespace graphopt::sparse_matmul {

// The implementation for `m` rows of x; one that `isa` includes.
const Kernels& kernels_for(Isa isa, size_t m);

// The tasks of one call. Tasks write disjoint parts of y and may run in any order on any threads.
class Work {
 public:
  Work(const Call& call, const Kernels& kernels);

  size_t tasks() const { return tiles_ * panels_; }
  // False if there was no memory for the scratch of this thread.
  bool run(size_t task) const;

 private:
  Call call_;
  const Kernels& kernels_;
  size_t tiles_, panels_;
  unsigned long long serial_;  // tells the tiles of this call from those of every other
};

}  // namespace graphopt::sparse_matmul
