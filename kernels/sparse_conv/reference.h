// SparseConv as plainly as it can be said: the specification that every implementation is tested against.
#pragma once
#include "sparse_conv/contract.h"

namespace graphopt::sparse_conv {

void reference(const Call& call);

}  // namespace graphopt::sparse_conv
