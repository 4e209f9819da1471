// The specification of SparseMatMul, in double precision and without any blocking.
#pragma once
#include "sparse_matmul/contract.h"

namespace graphopt::sparse_matmul {

// `sums` holds N doubles.
void reference(const Call& call, double* sums);

}  // namespace graphopt::sparse_matmul
