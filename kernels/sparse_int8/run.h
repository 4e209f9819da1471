// Calls of the sparse int8 operators, cut into tasks.
#pragma once
#include <cstddef>

#include "base/isa.h"
#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {

// The implementation for an instruction set; one that it includes.
const Kernels& kernels_for(Isa isa);

// How many vectors of rows of x go together in a tile of at most `groups` of them, so that a K-block of it stays in L1.
unsigned vectors_for(const PackedWeights& w, const Kernels& kernels, size_t groups);

// The grid of DynamicQuantizeLinear, found by several threads.
class FindGrid {
 public:
  FindGrid(const float* x, size_t count, const Kernels& kernels);

  size_t tasks() const { return tasks_; }
  bool run(size_t task) const;
  Grid grid() const;  // when all tasks have run

 private:
  static constexpr size_t max_tasks = 32;
  const float* x_;
  size_t count_, tasks_;
  const Kernels& kernels_;
  mutable float low_[max_tasks], high_[max_tasks];
};

// The tasks of one SparseInt8MatMul. They write disjoint parts of y and may run in any order on any threads.
class MatMulWork {
 public:
  MatMulWork(const MatMul& call, const Kernels& kernels);

  size_t tasks() const { return tiles_ * call_.w->panels; }
  // False if there was no memory for the scratch of this thread.
  bool run(size_t task) const;

 private:
  MatMul call_;
  const Kernels& kernels_;
  size_t groups_, tiles_;
  unsigned long long serial_;  // tells the tiles of this call from those of every other
};

}  // namespace graphopt::sparse_int8
