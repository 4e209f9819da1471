#include "sparse_conv/op.h"

#include "base/describe.h"
#include "base/isa.h"
#include "base/node.h"
#include "sparse_conv/geometry.h"
#include "sparse_conv/packed.h"
#include "sparse_conv/run.h"

namespace graphopt::sparse_conv {
namespace {

using ort::Api;
using ort::Status;

constexpr const char* layouts[] = {"nchw", "padded"};
constexpr int residual_input = 3;
constexpr size_t list_room = 2 * max_axes + 1;  // one more than fits, so that too long a list is seen

class Kernel {
 public:
  static constexpr const char* name = "SparseConv";
  static constexpr size_t inputs = 4, outputs = 1;
  static int input_type(size_t i) { return i == 1 ? ort::element_uint8 : ort::element_float; }
  static int output_type(size_t) { return ort::element_float; }
  static bool is_optional(size_t i) { return i >= 2; }

  Kernel(const Api& api, const OrtKernelInfo* info) : node_(api, name, info) {}

  Status read(const OrtKernelInfo* info) {
    GRAPHOPT_TRY(read_geometry(info));
    int layout_in = 0, layout_out = 0;
    GRAPHOPT_TRY(node_.read_choice(info, "layout_in", layouts, 2, 0, &layout_in));
    GRAPHOPT_TRY(node_.read_choice(info, "layout_out", layouts, 2, 0, &layout_out));
    padded_in_ = layout_in == 1;
    padded_out_ = layout_out == 1;
    GRAPHOPT_TRY(node_.read_epilogue(info, &epilogue_));
    if (padded_in_) {
      size_t count = 0;
      GRAPHOPT_TRY(node_.read_ints(info, "spatial", spatial_, max_axes, &count));
      bool sizes = count == geometry_.axes;
      for (size_t i = 0; i < count; ++i) sizes = sizes && spatial_[i] >= 1 && spatial_[i] < int64_t{1} << 31;
      if (!sizes)
        return node_.refuse(ort::error_invalid_graph,
                            "with layout_in = 'padded' the attribute 'spatial' must have the %zu spatial sizes of X, each 1 "
                            "or more",
                            geometry_.axes);
    }
    return read_weight(info);
  }

  Status compute(OrtKernelContext* context) const {
    ort::Tensor x;
    GRAPHOPT_TRY(node_.input(context, 0, ort::element_float, &x));
    Call call{};
    GRAPHOPT_TRY(read_input(x, &call));
    int64_t dims[ort::max_rank] = {x.dims[0], static_cast<int64_t>(w_.out_channels)};
    size_t rank = 3;
    const size_t image = call.shape.out_h * call.shape.out_w;
    call.shape.out_plane = padded_out_ ? padded_plane(image) : image;
    if (padded_out_) {
      dims[2] = static_cast<int64_t>(call.shape.out_plane);
    } else {
      rank = 2 + geometry_.axes;
      if (geometry_.axes == 2) dims[2] = static_cast<int64_t>(call.shape.out_h);
      dims[rank - 1] = static_cast<int64_t>(call.shape.out_w);
    }
    call.w = &w_;
    call.epilogue = epilogue_;
    GRAPHOPT_TRY(node_.read_bias(context, 2, w_.out_channels, &call.bias));
    GRAPHOPT_TRY(node_.read_residual(context, residual_input, dims, rank, &call.residual));
    void* y = nullptr;
    GRAPHOPT_TRY(node_.output(context, 0, dims, rank, &y));
    if (y == nullptr || call.shape.images == 0) return nullptr;
    call.y = static_cast<float*>(y);

    Job job;
    switch (job.prepare(call, kernels_for(isa_choice().isa))) {
      case Job::Problem::memory: return node_.refuse(ort::error_fail, "out of memory");
      case Job::Problem::size:
        return node_.refuse(ort::error_invalid_argument, "the planes of one group of X have 2^30 elements or more");
      case Job::Problem::none: break;
    }
    GRAPHOPT_TRY(node_.parallel(context, Rearrange(job)));
    return node_.parallel(context, Convolve(job));
  }

  // [N, C, spatial] -> [N, M, spatial]; symbolic sizes keep their names where the convolution keeps the size.
  static Status infer(OrtShapeInferContext* context) {
    const ort::Inference inference(context);
    ort::KnownShape x;
    GRAPHOPT_TRY(inference.input(0, &x));
    int64_t lists[4][list_room] = {};
    size_t counts[4] = {};
    static constexpr const char* names[] = {"kernel_shape", "strides", "dilations", "pads"};
    for (size_t i = 0; i < 4; ++i) GRAPHOPT_TRY(inference.read_ints(names[i], lists[i], list_room, &counts[i]));
    Geometry geometry;
    char why[128] = "";
    if (!geometry.read({lists[0], lists[1], lists[2], lists[3], counts[0], counts[1], counts[2], counts[3]}, why, sizeof why))
      return nullptr;  // the kernel says what is wrong
    bool padded_in = false, padded_out = false;
    GRAPHOPT_TRY(inference.is_text("layout_in", "padded", &padded_in));
    GRAPHOPT_TRY(inference.is_text("layout_out", "padded", &padded_out));
    int64_t spatial[max_axes] = {-1, -1};
    if (padded_in) {
      size_t count = 0;
      GRAPHOPT_TRY(inference.read_ints("spatial", spatial, max_axes, &count));
      if (count != geometry.axes) return nullptr;
    }
    if (!x.known || x.rank != (padded_in ? 3 : 2 + geometry.axes)) return nullptr;

    ort::KnownShape y;
    y.known = true;
    y.dims[0] = x.dims[0];
    y.names[0] = x.names[0];
    y.dims[1] = -1;
    GRAPHOPT_TRY(inference.read_int("out_channels", &y.dims[1]));
    int64_t positions = 1;
    for (size_t i = 0; i < geometry.axes; ++i) {
      const int64_t in = padded_in ? spatial[i] : x.dims[2 + i];
      y.dims[2 + i] = in < 0 ? -1 : geometry.output(i, in);
      if (!padded_in && in < 0 && geometry.keeps(i)) y.names[2 + i] = x.names[2 + i];
      positions = y.dims[2 + i] < 1 || positions < 0 ? -1 : positions * y.dims[2 + i];
    }
    y.rank = 2 + geometry.axes;
    if (padded_out) {
      y.rank = 3;
      y.dims[2] = positions < 1 ? -1 : static_cast<int64_t>(padded_plane(static_cast<size_t>(positions)));
      y.names[2] = nullptr;
    }
    return inference.set_output(0, ort::element_float, y);
  }

 private:
  Status read_geometry(const OrtKernelInfo* info) {
    int64_t lists[4][list_room] = {};
    size_t counts[4] = {};
    static constexpr const char* names[] = {"kernel_shape", "strides", "dilations", "pads"};
    for (size_t i = 0; i < 4; ++i) GRAPHOPT_TRY(node_.read_ints(info, names[i], lists[i], list_room, &counts[i]));
    char why[128] = "";
    if (!geometry_.read({lists[0], lists[1], lists[2], lists[3], counts[0], counts[1], counts[2], counts[3]}, why, sizeof why))
      return node_.refuse(ort::error_invalid_graph, "%s", why);
    return nullptr;
  }

  Status read_weight(const OrtKernelInfo* info) {
    int64_t groups = 1, channels = 0;
    GRAPHOPT_TRY(node_.read_int_or(info, "group", 1, &groups));
    GRAPHOPT_TRY(node_.read_int(info, "out_channels", &channels));
    const unsigned char* data = nullptr;
    size_t size = 0;
    GRAPHOPT_TRY(node_.read_packed(info, 1, &data, &size));
    char why[256] = "";
    if (!parse(data, size, &w_, why, sizeof why))
      return node_.refuse_packed(why);
    const auto is = [](size_t packed, int64_t said) { return static_cast<int64_t>(packed) == said; };
    if (!is(w_.out_channels, channels) || !is(w_.groups, groups) || !is(w_.kernel_h, geometry_.kernel[0]) ||
        !is(w_.kernel_w, geometry_.kernel[1]))
      return node_.refuse(ort::error_invalid_graph,
                          "the packed weight has %zu output channels, %zu groups and a kernel of %zu x %zu, and the node's "
                          "attributes say %lld, %lld and %lld x %lld. They must agree; compile the model again.",
                          w_.out_channels, w_.groups, w_.kernel_h, w_.kernel_w, static_cast<long long>(channels),
                          static_cast<long long>(groups), static_cast<long long>(geometry_.kernel[0]),
                          static_cast<long long>(geometry_.kernel[1]));
    return nullptr;
  }

  Status read_input(const ort::Tensor& x, Call* call) const {
    const size_t rank = padded_in_ ? 3 : 2 + geometry_.axes;
    const size_t channels = w_.groups * w_.in_channels;
    if (x.rank != rank || x.dims[1] != static_cast<int64_t>(channels))
      return node_.refuse(ort::error_invalid_argument,
                          "X must have rank %zu and %zu channels; it has rank %zu and %lld", rank, channels, x.rank,
                          x.rank > 1 ? static_cast<long long>(x.dims[1]) : -1LL);
    const int64_t* spatial = padded_in_ ? spatial_ : x.dims + 2;
    if (!geometry_.shape(spatial, &call->shape))
      return node_.refuse(ort::error_invalid_argument, "X with its pads is smaller than the kernel");
    const size_t image = call->shape.in_h * call->shape.in_w;
    call->shape.in_plane = padded_in_ ? padded_plane(image) : image;
    if (padded_in_ && x.dims[2] != static_cast<int64_t>(call->shape.in_plane))
      return node_.refuse(ort::error_invalid_argument,
                          "padded planes of %zu elements have %zu floats, and those of X have %lld. 'spatial' must be the "
                          "spatial sizes of X.",
                          image, call->shape.in_plane, static_cast<long long>(x.dims[2]));
    call->shape.images = static_cast<size_t>(x.dims[0]);
    call->x = static_cast<const float*>(x.data);
    return nullptr;
  }

  ort::Node node_;
  PackedConv w_{};
  Geometry geometry_;
  Epilogue epilogue_{};
  bool padded_in_ = false, padded_out_ = false;
  int64_t spatial_[max_axes] = {1, 1};
};

}  // namespace

const OrtCustomOp* custom_op() { return ort::operator_of<Kernel, residual_input>(); }

}  // namespace graphopt::sparse_conv
