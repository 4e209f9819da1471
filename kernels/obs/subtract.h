// The one hot loop, compiled once for each instruction set. Private to the file that includes it.
#pragma once
#include "obs/contract.h"

namespace {

// Eight vectors at a time, so that the column is loaded and stored once for eight.
inline void subtract(double* __restrict column, const double* __restrict basis, size_t stride, const double* factors,
                     size_t count, size_t length) {
  size_t j = 0;
  for (; j + 8 <= count; j += 8) {
    const double* u = basis + j * stride;
    const double f0 = factors[j], f1 = factors[j + 1], f2 = factors[j + 2], f3 = factors[j + 3];
    const double f4 = factors[j + 4], f5 = factors[j + 5], f6 = factors[j + 6], f7 = factors[j + 7];
    for (size_t i = 0; i < length; ++i) {
      double value = column[i];
      value -= f0 * u[i];
      value -= f1 * u[i + stride];
      value -= f2 * u[i + 2 * stride];
      value -= f3 * u[i + 3 * stride];
      value -= f4 * u[i + 4 * stride];
      value -= f5 * u[i + 5 * stride];
      value -= f6 * u[i + 6 * stride];
      value -= f7 * u[i + 7 * stride];
      column[i] = value;
    }
  }
  for (; j < count; ++j) {
    const double* u = basis + j * stride;
    const double f = factors[j];
    for (size_t i = 0; i < length; ++i) column[i] -= f * u[i];
  }
}

}  // namespace
