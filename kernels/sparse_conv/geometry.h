// The spatial attributes of a convolution, and the sizes that follow from them.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sparse_conv/contract.h"

namespace graphopt::sparse_conv {

constexpr size_t max_axes = 2;

// The last axis is the width; with one axis the height is 1.
struct Geometry {
  size_t axes = 0;  // 1 or 2
  int64_t kernel[max_axes] = {1, 1};
  int64_t strides[max_axes] = {1, 1};
  int64_t dilations[max_axes] = {1, 1};
  int64_t before[max_axes] = {0, 0}, after[max_axes] = {0, 0};  // pads

  // Takes ONNX lists as they stand in a node; an empty list is the default. False with a message if they do not fit.
  struct Lists {
    const int64_t *kernel, *strides, *dilations, *pads;
    size_t kernels, stride_count, dilation_count, pad_count;
  };
  bool read(const Lists& lists, char* message, size_t message_size);

  // The size of the output along a spatial axis of the node; -1 if the kernel does not fit in.
  int64_t output(size_t axis, int64_t input) const;
  // True if the output is as large as the input, whatever that is.
  bool keeps(size_t axis) const;

  // Input sizes of the spatial axes -> all sizes but those of images and planes. False if the kernel does not fit in.
  bool shape(const int64_t* input, Shape* out) const;

 private:
  size_t place(size_t axis) const { return axis + max_axes - axes; }
};

}  // namespace graphopt::sparse_conv
