#include "obs/subtract.h"

namespace graphopt::obs {

void subtract_scalar(double* column, const double* basis, size_t stride, const double* factors, size_t count,
                 size_t length) {
  subtract(column, basis, stride, factors, count, length);
}

}  // namespace graphopt::obs
