#include "obs/elimination.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace graphopt::obs {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
// What is left of a pivot after cancellation; below it the column is a combination of those that went before.
constexpr double least_pivot = 1e-300;

size_t padded(size_t width) { return (width + 7) / 8 * 8; }

}  // namespace

Elimination::Elimination(const Problem& problem, Subtract subtract)
    : problem_(problem),
      subtract_(subtract),
      blocks_(problem.width / problem.block),
      width_(problem.width),
      stride_(padded(problem.width)),
      last_block_(static_cast<double>(problem.block) /
                  static_cast<double>(problem.columns - (blocks_ - 1) * problem.block)),
      weight_(problem.group_rows * stride_),
      basis_(problem.steps * problem.block * stride_),
      diagonal_(blocks_ * problem.block * problem.block),
      columns_(problem.block * stride_),
      factors_(problem.steps * problem.block),
      losses_(blocks_),
      id_(blocks_),
      gone_(problem.of == 0 ? 0 : (blocks_ + problem.of - 1) / problem.of) {}

void Elimination::run(size_t group) {
  start(group);
  for (size_t step = 0; step < problem_.steps; ++step) {
    size_t position = 0;
    const double loss = cheapest(&position);
    problem_.order[group * problem_.steps + step] = id_[position];
    problem_.losses[group * problem_.steps + step] = loss;
    if (problem_.of != 0) ++gone_[static_cast<size_t>(id_[position]) / problem_.of];
    move_to_end(position);
    remove_last();
  }
}

void Elimination::start(size_t group) {
  const size_t block = problem_.block;
  const size_t first = group * problem_.group_rows;
  std::fill(weight_.begin(), weight_.end(), 0.0);
  for (size_t r = 0; r < problem_.group_rows && first + r < problem_.rows; ++r) {
    const double* row = problem_.weight + (first + r) * problem_.columns;
    std::copy(row, row + problem_.columns, weight_.begin() + static_cast<ptrdiff_t>(r * stride_));
  }
  for (size_t b = 0; b < blocks_; ++b) {
    id_[b] = static_cast<int32_t>(b);
    for (size_t x = 0; x < block; ++x) {
      const double* row = problem_.inverse + (b * block + x) * width_ + b * block;
      std::copy(row, row + block, diagonal_.begin() + static_cast<ptrdiff_t>((b * block + x) * block));
    }
  }
  std::fill(gone_.begin(), gone_.end(), 0u);
  active_ = blocks_;
  taken_ = 0;
}

// Among equal losses the first block goes, wherever it has been moved to.
double Elimination::cheapest(size_t* position) {
  double least = infinity;
  if (problem_.block == 1) {
    const double* w = weight_.data();
    for (size_t i = 0; i < active_; ++i) losses_[i] = w[i] * w[i];
    for (size_t r = 1; r < problem_.group_rows; ++r) {
      w += stride_;
      for (size_t i = 0; i < active_; ++i) losses_[i] += w[i] * w[i];
    }
    for (size_t i = 0; i < active_; ++i) losses_[i] /= diagonal_[i];
  } else {
    for (size_t i = 0; i < active_; ++i) {
      losses_[i] = loss(i);
      if (static_cast<size_t>(id_[i]) + 1 == blocks_) losses_[i] *= last_block_;
    }
  }
  size_t best = active_;
  for (size_t i = 0; i < active_; ++i) {
    if (losses_[i] > least || (problem_.of != 0 && !may_go(i))) continue;
    if (losses_[i] < least || best == active_ || id_[i] < id_[best]) {
      least = losses_[i];
      best = i;
    }
  }
  // Losses that are not numbers compare with nothing: then the first block that may go does.
  for (size_t i = 0; best == active_; ++i) {
    if (problem_.of == 0 || may_go(i)) best = i;
  }
  *position = best;
  return static_cast<size_t>(id_[best]) + 1 == blocks_ ? losses_[best] / last_block_ : losses_[best];
}

bool Elimination::may_go(size_t position) const {
  const size_t first = static_cast<size_t>(id_[position]) / problem_.of * problem_.of;
  const size_t size = std::min(problem_.of, blocks_ - first);
  return gone_[first / problem_.of] + problem_.keep < size;
}

// Sum over the rows of |L^-1 w_B|^2, where L L' is the block of the inverse.
double Elimination::loss(size_t position) const {
  const size_t block = problem_.block;
  double factor[max_block * max_block];
  const double* source = diagonal_.data() + position * block * block;
  for (size_t x = 0; x < block; ++x) {
    for (size_t y = 0; y <= x; ++y) {
      double value = source[x * block + y];
      for (size_t k = 0; k < y; ++k) value -= factor[x * block + k] * factor[y * block + k];
      factor[x * block + y] = x == y ? std::sqrt(std::max(value, least_pivot)) : value / factor[y * block + y];
    }
  }
  double sum = 0;
  double solved[max_block];
  for (size_t r = 0; r < problem_.group_rows; ++r) {
    const double* w = weight_.data() + r * stride_ + position * block;
    for (size_t x = 0; x < block; ++x) {
      double value = w[x];
      for (size_t k = 0; k < x; ++k) value -= factor[x * block + k] * solved[k];
      solved[x] = value / factor[x * block + x];
      sum += solved[x] * solved[x];
    }
  }
  return sum;
}

void Elimination::move_to_end(size_t position) {
  const size_t last = active_ - 1;
  if (position == last) return;
  const size_t block = problem_.block;
  const auto exchange = [&](double* values, size_t size) {
    std::swap_ranges(values + position * size, values + (position + 1) * size, values + last * size);
  };
  for (size_t r = 0; r < problem_.group_rows; ++r) exchange(weight_.data() + r * stride_, block);
  for (size_t j = 0; j < taken_; ++j) exchange(basis_.data() + j * stride_, block);
  exchange(diagonal_.data(), block * block);
  std::swap(id_[position], id_[last]);
}

void Elimination::remove_last() {
  const size_t block = problem_.block;
  const size_t last = (active_ - 1) * block;  // first column of the block that goes
  const size_t length = active_ * block;
  for (size_t t = 0; t < block; ++t) {
    double* column = columns_.data() + t * stride_;
    const double* row = problem_.inverse + (static_cast<size_t>(id_[active_ - 1]) * block + t) * width_;
    for (size_t b = 0; b < active_; ++b) {
      const double* from = row + static_cast<size_t>(id_[b]) * block;
      std::copy(from, from + block, column + b * block);
    }
    for (size_t j = 0; j < taken_; ++j) factors_[j] = basis_[j * stride_ + last + t];
    subtract_(column, basis_.data(), stride_, factors_.data(), taken_, length);
  }
  for (size_t t = 0; t < block; ++t) {
    const double* column = columns_.data() + t * stride_;
    const double scale = 1.0 / std::sqrt(std::max(column[last + t], least_pivot));
    double* u = basis_.data() + taken_ * stride_;
    for (size_t i = 0; i < length; ++i) u[i] = column[i] * scale;
    for (size_t r = 0; r < problem_.group_rows; ++r) {
      double* w = weight_.data() + r * stride_;
      const double factor = w[last + t] * scale;
      for (size_t i = 0; i < length; ++i) w[i] -= factor * u[i];
    }
    for (size_t s = t + 1; s < block; ++s) {
      double* other = columns_.data() + s * stride_;
      const double factor = u[last + s];
      for (size_t i = 0; i < length; ++i) other[i] -= factor * u[i];
    }
    if (block == 1) {
      for (size_t i = 0; i < last; ++i) diagonal_[i] = std::max(diagonal_[i] - u[i] * u[i], least_pivot);
    } else {
      for (size_t b = 0; b + 1 < active_; ++b) {
        for (size_t x = 0; x < block; ++x) {
          for (size_t y = 0; y < block; ++y) {
            diagonal_[(b * block + x) * block + y] -= u[b * block + x] * u[b * block + y];
          }
        }
      }
    }
    ++taken_;
  }
  --active_;
}

}  // namespace graphopt::obs
