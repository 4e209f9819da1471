// What removing weights one after another computes, in plain C types: the files built for wide instruction sets
// include nothing else.
//
// The rows of a weight matrix W [rows, columns] have the error (v - w) H (v - w)'. Weights go in blocks of `group_rows`
// rows x `block` columns. Each group of rows is on its own: again and again the block goes whose loss raises the error
// least, and the weights that stay move to where they make up for it best. The loss of block B is the sum over the
// group's rows of w_B (inverse of [H^-1]_BB) w_B': exactly what the least error on the smaller support gains. Blocks
// compare by their loss per weight: the last one may be narrower.
//
// H^-1 of the weights that stay, after blocks went, is H^-1 minus the sum of u u' over the vectors u taken so far, one
// for each column that went (pivoted Cholesky). Only the columns that are about to go are ever formed, so a row costs
// columns^3 / 6 multiply-adds and reads memory that it hardly writes.
//
// All sums are elementwise, in a fixed order, never fused: every instruction set and every number of threads gives the
// same bits.
//
// Source: Frantar and Alistarh 2022, arXiv:2208.11580, section 4 (exact OBS) and appendix (blocks, N:M).
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace graphopt::obs {

constexpr size_t max_group_rows = 64;
constexpr size_t max_block = 16;
constexpr size_t max_columns = 1 << 15;

struct Problem {
  const double* weight;   // [rows, columns]
  const double* inverse;  // H^-1, [width, width]: columns rounded up to whole blocks, 1 on the diagonal of the padding
  size_t rows, columns, width;
  size_t group_rows, block;
  size_t keep, of;   // of every `of` blocks side by side at least `keep` stay; of = 0: any may go
  size_t steps;      // blocks that go in each group of rows
  int32_t* order;    // [groups, steps]: which block of columns goes, first to last
  double* losses;    // [groups, steps]: by how much the error of the group's rows grows with each
};

// column[i] -= sum over j of factors[j] * basis[j * stride + i], j rising, for i < length.
using Subtract = void (*)(double* column, const double* basis, size_t stride, const double* factors, size_t count,
                          size_t length);

void subtract_scalar(double*, const double*, size_t, const double*, size_t, size_t);
#if defined(GRAPHOPT_X86)
void subtract_avx2(double*, const double*, size_t, const double*, size_t, size_t);
void subtract_avx512(double*, const double*, size_t, const double*, size_t, size_t);
#endif

}  // namespace graphopt::obs
