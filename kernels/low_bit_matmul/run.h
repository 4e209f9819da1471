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

// Rows cut evenly into tiles of at most `most`.
struct Tiles {
  size_t rows, count;
  Tiles(size_t rows_, size_t most) : rows(rows_), count((rows_ + most - 1) / most) {}
  size_t start(size_t tile) const { return tile * rows / count; }
  unsigned size(size_t tile) const { return static_cast<unsigned>(start(tile + 1) - start(tile)); }
};

// Memory for the rounded rows of any slab of a call, of this thread and valid until its next call; nullptr if there is
// none.
unsigned char* rounded_rows(const Call& call, const Kernels& kernels);

// Rounds up to slab_rows rows of x from m0 on. Tasks may run in any order on any threads.
class Rounding {
 public:
  Rounding(const Call& call, const Kernels& kernels, size_t m0, size_t rows, unsigned char* rounded);

  size_t tasks() const { return tasks_; }
  bool run(size_t task) const;

 private:
  Call call_;
  const Kernels& kernels_;
  size_t m0_;
  Tiles tiles_;
  unsigned char* rounded_;
  size_t tasks_;
};

// Multiplies those rows; `rounded` is nullptr for activations as floats. Tasks write disjoint parts of y.
class Product {
 public:
  Product(const Call& call, const Kernels& kernels, size_t m0, size_t rows, const unsigned char* rounded);

  size_t tasks() const { return row_tasks_ * panel_tasks_; }
  bool run(size_t task) const;

 private:
  Call call_;
  const Kernels& kernels_;
  size_t m0_;
  Tiles tiles_;
  const unsigned char* rounded_;
  size_t row_tasks_, panel_tasks_;
};

}  // namespace graphopt::low_bit_matmul
