// One group of rows: the order in which its blocks go, and what each costs.
#pragma once
#include <cstdint>
#include <vector>

#include "obs/contract.h"

namespace graphopt::obs {

// Scratch memory of one thread; columns^2 doubles, used again for every group of rows.
class Elimination {
 public:
  // Throws std::bad_alloc.
  Elimination(const Problem& problem, Subtract subtract);

  // Writes row `group` of problem.order and problem.losses.
  void run(size_t group);

 private:
  void start(size_t group);
  double cheapest(size_t* position);
  double loss(size_t position) const;
  bool may_go(size_t position) const;
  void move_to_end(size_t position);
  void remove_last();

  const Problem& problem_;
  Subtract subtract_;
  size_t blocks_, width_, stride_, active_ = 0, taken_ = 0;
  double last_block_;               // by what the loss of the last block is multiplied where blocks compare
  std::vector<double> weight_;     // [group_rows, stride]: the weights as they are now, by position
  std::vector<double> basis_;      // [taken, stride]: the vectors u, by position
  std::vector<double> diagonal_;   // [blocks, block, block]: the blocks on the diagonal of the present inverse
  std::vector<double> columns_;    // [block, stride]: the columns of the present inverse that are about to go
  std::vector<double> factors_;    // [taken]
  std::vector<double> losses_;     // [blocks]: of the blocks that are left
  std::vector<int32_t> id_;        // [blocks]: which block lies at a position
  std::vector<uint32_t> gone_;     // of every `of` blocks side by side, how many went
};

}  // namespace graphopt::obs
