// One SparseMatMul call, cut into tasks.
#pragma once
#include <cstddef>

#include "base/isa.h"
#include "sparse_matmul/contract.h"

namespace graphopt::sparse_matmul {

// How one call is computed: a pure function of the instruction set, the form of the packed matrix and the shape.
struct Choice {
  const Kernels* kernels;
  const Method* method;
  unsigned most_rows;  // of a tile
};
Choice choose(Isa isa, const PackedMatrix& w, size_t m);

// The tasks of one call. Tasks write disjoint parts of y and may run in any order on any threads.
class Work {
 public:
  Work(const Call& call, const Choice& choice);

  size_t tasks() const { return tiles_ * call_.w->panels; }
  // False if there was no memory for the scratch of this thread.
  bool run(size_t task) const;

 private:
  Call call_;
  Choice choice_;
  size_t steps_, tiles_;
  unsigned long long serial_;  // tells the tiles of this call from those of every other
};

}  // namespace graphopt::sparse_matmul
