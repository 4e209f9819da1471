// One SparseConv call, cut into tasks.
#pragma once
#include <cstddef>

#include "base/isa.h"
#include "sparse_conv/plan.h"

namespace graphopt::sparse_conv {

// The implementation of an instruction set.
const Kernels& kernels_for(Isa isa);

// A call with the memory that its tasks share; lives on one thread and is read by all that help.
class Job {
 public:
  enum class Problem { none, memory, size };
  Problem prepare(const Call& call, const Kernels& kernels);

  const Call& call() const { return call_; }
  const Kernels& kernels() const { return *kernels_; }
  const Plan& plan() const { return plan_; }
  const Source* sources() const { return sources_; }
  float* planes() const { return planes_; }    // rearranged
  uint64_t number() const { return number_; }  // no other call of the process has it

 private:
  Call call_{};
  const Kernels* kernels_ = nullptr;
  Plan plan_{};
  const Source* sources_ = nullptr;
  float* planes_ = nullptr;
  uint64_t number_ = 0;
};

// First all tasks of Rearrange, then all of Convolve. Tasks of one kind write disjoint memory and may run in any order
// on any threads.
class Rearrange {
 public:
  explicit Rearrange(const Job& job);
  size_t tasks() const;  // 0 where nothing is rearranged
  bool run(size_t task) const;

 private:
  const Job& job_;
  size_t channels_ = 0;               // of an image
  size_t rows_ = 0, together_ = 0;    // of a task, which has all rows or all channels
  size_t parts_ = 0;                  // tasks of an image
};

class Convolve {
 public:
  explicit Convolve(const Job& job) : job_(job) {}
  size_t tasks() const;
  // False if there was no memory for the scratch of this thread.
  bool run(size_t task) const;

 private:
  const Job& job_;
};

}  // namespace graphopt::sparse_conv
