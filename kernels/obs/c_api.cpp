// The entry of the library of solvers, for ctypes.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/isa.h"
#include "obs/elimination.h"

namespace graphopt::obs {
namespace {

Subtract subtract_for(Isa isa) {
#if defined(GRAPHOPT_X86)
  if (isa_includes(isa, Isa::avx512)) return subtract_avx512;
  if (isa_includes(isa, Isa::avx2)) return subtract_avx2;
#endif
  (void)isa;
  return subtract_scalar;
}

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// How many blocks a group of rows may lose.
size_t removable(size_t blocks, size_t keep, size_t of) {
  if (of == 0) return blocks;
  const size_t rest = blocks % of;
  return blocks / of * (of - keep) + (rest > keep ? rest - keep : 0);
}

void check(const Problem& p, size_t blocks) {
  require(p.weight != nullptr && p.inverse != nullptr, "weight or inverse is missing");
  require(p.rows > 0 && p.columns > 0 && p.columns <= max_columns, "the matrix is empty or too wide");
  require(p.group_rows > 0 && p.group_rows <= max_group_rows, "a group of rows is empty or too large");
  require(p.block > 0 && p.block <= max_block, "a block of columns is empty or too large");
  require(p.of == 0 || (p.keep > 0 && p.keep <= p.of), "no N of M blocks can stay");
  require(p.steps <= removable(blocks, p.keep, p.of), "more blocks are to go than may");
  require(p.steps == 0 || (p.order != nullptr && p.losses != nullptr), "order or losses is missing");
}

std::vector<double> with_padding(const Problem& p) {
  std::vector<double> inverse(p.width * p.width);
  for (size_t i = 0; i < p.width; ++i) {
    if (i < p.columns) {
      std::copy(p.inverse + i * p.columns, p.inverse + (i + 1) * p.columns, inverse.data() + i * p.width);
    } else {
      inverse[i * p.width + i] = 1.0;
    }
  }
  return inverse;
}

void solve(const Problem& problem, Subtract subtract, size_t threads) {
  const size_t groups = (problem.rows + problem.group_rows - 1) / problem.group_rows;
  std::atomic<size_t> next{0};
  std::vector<std::exception_ptr> failures(std::max<size_t>(1, std::min(threads, groups)));
  const auto work = [&](size_t thread) {
    try {
      Elimination elimination(problem, subtract);
      for (size_t group = next++; group < groups; group = next++) elimination.run(group);
    } catch (...) {
      failures[thread] = std::current_exception();
    }
  };
  std::vector<std::thread> started;
  started.reserve(failures.size());
  for (size_t thread = 1; thread < failures.size(); ++thread) {
    try {
      started.emplace_back(work, thread);
    } catch (const std::exception&) {
      break;  // the system has no more threads to give: those that run do the work
    }
  }
  work(0);
  for (std::thread& each : started) each.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace
}  // namespace graphopt::obs

// Fills order and losses, [ceil(rows / group_rows), steps]; see obs/contract.h. inverse is [columns, columns].
// 0, or 1 with a message.
extern "C" __attribute__((visibility("default"))) int graphopt_obs_path(
    const double* weight, const double* inverse, uint64_t rows, uint64_t columns, uint64_t group_rows, uint64_t block,
    uint64_t keep, uint64_t of, uint64_t steps, uint64_t threads, int32_t* order, double* losses, char* message,
    size_t message_size) {
  using namespace graphopt;
  using namespace graphopt::obs;
  try {
    const IsaChoice& choice = isa_choice();
    require(choice.error == nullptr, choice.error);
    const size_t blocks = block == 0 ? 0 : (columns + block - 1) / block;
    Problem problem{weight, inverse, rows,  columns, blocks * block, group_rows, block,
                    keep,   of,      steps, order,   losses};
    check(problem, blocks);
    std::vector<double> inverse_with_padding;
    if (problem.width != problem.columns) {
      inverse_with_padding = with_padding(problem);
      problem.inverse = inverse_with_padding.data();
    }
    if (steps > 0) solve(problem, subtract_for(choice.isa), threads);
    return 0;
  } catch (const std::bad_alloc&) {
    std::snprintf(message, message_size, "out of memory");
  } catch (const std::exception& failure) {
    std::snprintf(message, message_size, "%s", failure.what());
  } catch (...) {
    std::snprintf(message, message_size, "an unknown failure");
  }
  return 1;
}
