// The specification of LowBitMatMul, in double precision and without any blocking. Activations are rounded as the
// contract says where `rounds` is true.
#pragma once
#include "low_bit_matmul/contract.h"

namespace graphopt::low_bit_matmul {

void reference(const Call& call, bool rounds);

}  // namespace graphopt::low_bit_matmul
