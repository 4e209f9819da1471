#include "sparse_int8/attributes.h"

#include <cmath>

#include "sparse_int8/packed.h"

namespace graphopt::sparse_int8 {
namespace {

constexpr const char* output_names[] = {"float", "uint8"};

// *present is false if there is no scale.
ort::Status read_grid(const ort::Node& node, const OrtKernelInfo* info, const char* scale_name, const char* zero_name,
                      bool* present, Grid* out) {
  float scale = 0;
  int64_t zero_point = 0;
  GRAPHOPT_TRY(node.read_float_or(info, scale_name, 0.0f, &scale));
  GRAPHOPT_TRY(node.read_int_or(info, zero_name, 0, &zero_point));
  *present = scale != 0.0f;
  if (!*present) return nullptr;
  if (!std::isfinite(scale) || scale < 0.0f || zero_point < 0 || zero_point > 255)
    return node.refuse(ort::error_invalid_graph, "the attributes '%s' and '%s' must be a positive number and 0 to 255",
                       scale_name, zero_name);
  *out = {scale, static_cast<int32_t>(zero_point)};
  return nullptr;
}

}  // namespace

ort::Status Attributes::read(const ort::Node& node, const OrtKernelInfo* info, bool bytes_in, bool bytes_out) {
  bool has_x = false, has_y = false;
  int output = 0;
  GRAPHOPT_TRY(read_grid(node, info, "x_scale", "x_zero_point", &has_x, &x));
  GRAPHOPT_TRY(read_grid(node, info, "y_scale", "y_zero_point", &has_y, &y));
  GRAPHOPT_TRY(node.read_choice(info, "output", output_names, 2, 0, &output));
  GRAPHOPT_TRY(node.read_epilogue(info, &epilogue));
  epilogue = with_bounds(epilogue);
  if (bytes_in && !has_x)
    return node.refuse(ort::error_invalid_graph, "X is uint8, and the attribute 'x_scale' (float) is missing. Add it.");
  if (bytes_out != (output == 1))
    return node.refuse(ort::error_invalid_graph, "Y is %s, and the attribute 'output' says %s. They must agree.",
                       output_names[bytes_out], output_names[output]);
  if (bytes_out && !has_y)
    return node.refuse(ort::error_invalid_graph, "Y is uint8, and the attribute 'y_scale' (float) is missing. Add it.");
  finds_grid = !has_x;

  const unsigned char* data = nullptr;
  size_t size = 0;
  GRAPHOPT_TRY(node.read_packed(info, 1, &data, &size, packed_type(bytes_out)));
  char why[256] = "";
  if (!parse(data, size, &w, why, sizeof why))
    return node.refuse_packed(why);
  return nullptr;
}

ort::Status infer_type(const ort::Inference& inference, int* type) {
  bool bytes = false;
  GRAPHOPT_TRY(inference.is_text("output", "uint8", &bytes));
  *type = bytes ? ort::element_uint8 : ort::element_float;
  return nullptr;
}

}  // namespace graphopt::sparse_int8
