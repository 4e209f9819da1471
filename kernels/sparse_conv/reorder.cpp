// ToPadded and FromPadded.
#include <cstring>

#include "base/describe.h"
#include "base/node.h"
#include "sparse_conv/contract.h"
#include "sparse_conv/geometry.h"
#include "sparse_conv/op.h"

namespace graphopt::sparse_conv {
namespace {

using ort::Api;
using ort::Status;

// Copies planes of `image` floats between planes of different size; what lies behind the image is zero.
class Copy {
 public:
  Copy(const float* from, size_t from_plane, float* to, size_t to_plane, size_t image, size_t planes)
      : from_(from), from_plane_(from_plane), to_(to), to_plane_(to_plane), image_(image), planes_(planes) {
    constexpr size_t task_floats = 16384;
    together_ = task_floats / to_plane_ + 1;
  }

  size_t tasks() const { return (planes_ + together_ - 1) / together_; }

  bool run(size_t task) const {
    const size_t end = (task + 1) * together_ < planes_ ? (task + 1) * together_ : planes_;
    for (size_t plane = task * together_; plane < end; ++plane) {
      float* to = to_ + plane * to_plane_;
      std::memcpy(to, from_ + plane * from_plane_, image_ * sizeof(float));
      for (size_t i = image_; i < to_plane_; ++i) to[i] = 0.0f;
    }
    return true;
  }

 private:
  const float* from_;
  size_t from_plane_;
  float* to_;
  size_t to_plane_, image_, planes_, together_;
};

struct FloatOp {
  static constexpr size_t inputs = 1, outputs = 1;
  static int input_type(size_t) { return ort::element_float; }
  static int output_type(size_t) { return ort::element_float; }
  static bool is_optional(size_t) { return false; }
};

class ToPadded : public FloatOp {
 public:
  static constexpr const char* name = "ToPadded";
  ToPadded(const Api& api, const OrtKernelInfo* info) : node_(api, name, info) {}

  Status read(const OrtKernelInfo*) { return nullptr; }

  Status compute(OrtKernelContext* context) const {
    ort::Tensor x;
    GRAPHOPT_TRY(node_.input(context, 0, ort::element_float, &x));
    if (x.rank < 3 || x.rank > 2 + max_axes)
      return node_.refuse(ort::error_invalid_argument, "X must have the shape [N, C, W] or [N, C, H, W]; its rank is %zu",
                          x.rank);
    size_t image = 1;
    for (size_t i = 2; i < x.rank; ++i) image *= static_cast<size_t>(x.dims[i]);
    const int64_t dims[] = {x.dims[0], x.dims[1], static_cast<int64_t>(padded_plane(image))};
    void* y = nullptr;
    GRAPHOPT_TRY(node_.output(context, 0, dims, 3, &y));
    if (y == nullptr) return nullptr;
    const size_t planes = static_cast<size_t>(x.dims[0]) * static_cast<size_t>(x.dims[1]);
    return node_.parallel(context, Copy(static_cast<const float*>(x.data), image, static_cast<float*>(y),
                                        padded_plane(image), image, planes));
  }

  static Status infer(OrtShapeInferContext* context) {
    const ort::Inference inference(context);
    ort::KnownShape x;
    GRAPHOPT_TRY(inference.input(0, &x));
    if (!x.known || x.rank < 3 || x.rank > 2 + max_axes) return nullptr;
    int64_t positions = 1;
    for (size_t i = 2; i < x.rank; ++i) positions = x.dims[i] < 0 || positions < 0 ? -1 : positions * x.dims[i];
    x.rank = 3;
    x.dims[2] = positions < 0 ? -1 : static_cast<int64_t>(padded_plane(static_cast<size_t>(positions)));
    x.names[2] = nullptr;
    return inference.set_output(0, ort::element_float, x);
  }

 private:
  ort::Node node_;
};

class FromPadded : public FloatOp {
 public:
  static constexpr const char* name = "FromPadded";
  FromPadded(const Api& api, const OrtKernelInfo* info) : node_(api, name, info) {}

  Status read(const OrtKernelInfo* info) {
    GRAPHOPT_TRY(node_.read_ints(info, "spatial", spatial_, max_axes, &axes_));
    bool sizes = axes_ >= 1;
    for (size_t i = 0; i < axes_; ++i) sizes = sizes && spatial_[i] >= 0 && spatial_[i] < int64_t{1} << 31;
    if (!sizes)
      return node_.refuse(ort::error_invalid_graph, "the attribute 'spatial' must have one or two sizes of 0 or more");
    return nullptr;
  }

  Status compute(OrtKernelContext* context) const {
    ort::Tensor x;
    GRAPHOPT_TRY(node_.input(context, 0, ort::element_float, &x));
    size_t image = 1;
    int64_t dims[2 + max_axes] = {};
    for (size_t i = 0; i < axes_; ++i) {
      image *= static_cast<size_t>(spatial_[i]);
      dims[2 + i] = spatial_[i];
    }
    if (x.rank != 3 || x.dims[2] != static_cast<int64_t>(padded_plane(image)))
      return node_.refuse(ort::error_invalid_argument,
                          "X must have the shape [N, C, %zu], planes of %zu elements; its rank is %zu and its last size %lld",
                          padded_plane(image), image, x.rank, x.rank ? static_cast<long long>(x.dims[x.rank - 1]) : -1LL);
    dims[0] = x.dims[0];
    dims[1] = x.dims[1];
    void* y = nullptr;
    GRAPHOPT_TRY(node_.output(context, 0, dims, 2 + axes_, &y));
    if (y == nullptr) return nullptr;
    const size_t planes = static_cast<size_t>(x.dims[0]) * static_cast<size_t>(x.dims[1]);
    return node_.parallel(
        context, Copy(static_cast<const float*>(x.data), padded_plane(image), static_cast<float*>(y), image, image, planes));
  }

  static Status infer(OrtShapeInferContext* context) {
    const ort::Inference inference(context);
    ort::KnownShape x;
    GRAPHOPT_TRY(inference.input(0, &x));
    size_t axes = 0;
    int64_t spatial[max_axes] = {};
    GRAPHOPT_TRY(inference.read_ints("spatial", spatial, max_axes, &axes));
    if (!x.known || x.rank != 3 || axes == 0) return nullptr;
    x.rank = 2 + axes;
    for (size_t i = 0; i < axes; ++i) {
      x.dims[2 + i] = spatial[i];
      x.names[2 + i] = nullptr;
    }
    return inference.set_output(0, ort::element_float, x);
  }

 private:
  ort::Node node_;
  int64_t spatial_[max_axes] = {};
  size_t axes_ = 0;
};

}  // namespace

const OrtCustomOp* to_padded_op() { return ort::operator_of<ToPadded>(); }
const OrtCustomOp* from_padded_op() { return ort::operator_of<FromPadded>(); }

}  // namespace graphopt::sparse_conv
