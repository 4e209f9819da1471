// One LowBitMatMul call, cut into tasks.
#pragma once
#include <cstddef>

#include "base/isa.h"
#include "low_bit_matmul/contract.h"

namespace graphopt::low_bit_matmul {

// The implementation for an instruction set; one that `isa` includes.
const Kernels& kernels_for(Isa isa);

// Rows that are worked on at once, which bounds the memory for rounded activations.
constexpr size_t slab_rows = 384;

// Where up to slab_rows rows of x from m0 on are rounded to, in memory of this thread that is valid until its next call
// of this function; `tiles` is nullptr if there is none.
Rounded rounded_rows(const Call& call, const Kernels& kernels, size_t m0);

// Rounds those rows. Tasks may run in any order on any threads.
class Rounding {
 public:
  Rounding(const Call& call, const Kernels& kernels, const Rounded& x);

  size_t tasks() const { return tasks_; }
  bool run(size_t task) const;

 private:
  Call call_;
  const Kernels& kernels_;
  Rounded x_;
  size_t tasks_;
};

// Multiplies them, or with activations as floats the rows of x themselves. Tasks write disjoint parts of y.
class Product {
 public:
  Product(const Call& call, const Kernels& kernels, const Rounded& x);
  Product(const Call& call, const Kernels& kernels);

  size_t tasks() const { return row_tasks_ * panel_tasks_; }
  bool run(size_t task) const;

 private:
  void share_out();

  Call call_;
  const Kernels& kernels_;
  Rounded x_;  // tiles is nullptr for activations as floats
  size_t row_tasks_ = 1, panel_tasks_ = 1;
  size_t group_ = 1;  // panels that stay together
};

}  // namespace graphopt::low_bit_matmul
