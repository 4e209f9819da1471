// Sizes and tasks of SparseInt8Conv.
#pragma once
#include <cstddef>

#include "base/isa.h"
#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {

// What a node says of its convolution.
struct ConvAttributes {
  int64_t outputs = 0, group = 1, channels_last = 0;
  int64_t kernel[2] = {1, 1}, strides[2] = {1, 1}, dilations[2] = {1, 1};
  int64_t pads[4] = {0, 0, 0, 0};  // top, left, bottom, right
};

// nullptr, or what is wrong with the attributes themselves or beside the packed weights.
const char* problem_of(const ConvAttributes& attributes, const PackedWeights& w);

// Fills `out` for an input; nullptr, or why it does not fit.
const char* shape_of(const ConvAttributes& attributes, const PackedWeights& w, const int64_t (&x)[4], ConvShape* out);

// Outputs of an axis, 0 if there are none.
int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t pads);

// The tasks of one call, in two steps: all of `planes` run before any of `sums`. `memory` is what `bytes` says, aligned
// to 64.
class ConvWork {
 public:
  ConvWork(const Conv& call, const Kernels& kernels);

  size_t bytes() const { return offset_bytes_ + (in_place_ ? 0 : planes_of_all() * call_.shape.plane + beyond_bytes); }
  void use(unsigned char* memory);

  struct Planes {
    const ConvWork* work;
    size_t tasks() const;
    bool run(size_t task) const;
  };
  struct Sums {
    const ConvWork* work;
    size_t tasks() const;
    bool run(size_t task) const;
  };
  Planes planes() const { return {this}; }
  Sums sums() const { return {this}; }

 private:
  static constexpr size_t beyond_bytes = 64;  // what a tile reads beyond the last plane
  size_t planes_of_all() const { return call_.shape.batch * call_.shape.channels; }

  Conv call_;
  const Kernels& kernels_;
  bool in_place_;  // the planes are those of x
  size_t channels_per_task_, rows_per_task_, plane_tasks_;  // the last: of an image
  size_t offset_bytes_;
  size_t vectors_, tiles_, panels_;  // tiles of a group of an image; panels of a group
  unsigned long long serial_;
  const unsigned char* planes_ = nullptr;
  unsigned char* written_ = nullptr;
  size_t* offsets_ = nullptr;  // of each k within the planes of a group
};

}  // namespace graphopt::sparse_int8
