#pragma once
#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {

// The specification. `bytes` has room for K, `sums` for N.
void reference(const MatMul& call, unsigned char* bytes, int32_t* sums);

// The same for a convolution; `sums` has room for the outputs of w.
void reference(const Conv& call, int32_t* sums);

// The grid of x where none is given.
Grid reference_grid(const float* x, size_t count);

// A number as a byte of the grid.
unsigned char reference_byte(float v, const Grid& grid);

}  // namespace graphopt::sparse_int8
