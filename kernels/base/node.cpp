#include "base/node.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace graphopt::ort {
namespace {

constexpr const char* activation_names[activation_count] = {"none", "relu", "relu6",    "clip",
                                                            "silu", "gelu", "gelu_tanh"};

const char* type_name(int type) {
  switch (type) {
    case element_float: return "float";
    case element_uint8: return "uint8";
    case element_int8: return "int8";
    case element_int32: return "int32";
    default: return "another type";
  }
}

}  // namespace

size_t Tensor::elements() const {
  size_t count = 1;
  for (size_t i = 0; i < rank; ++i) count *= static_cast<size_t>(dims[i]);
  return count;
}

bool Tensor::has_shape_of(const Tensor& other) const {
  return rank == other.rank && std::memcmp(dims, other.dims, rank * sizeof dims[0]) == 0;
}

Node::Node(const Api& api, const char* op, const OrtKernelInfo* info) : api_(api), op_(op), name_("?") {
  size_t size = sizeof name_;
  if (Status status = api_.node_name(info, name_, &size)) api_.release_status(status);
  name_[sizeof name_ - 1] = '\0';
}

Status Node::refuse(int code, const char* format, ...) const {
  char text[640];
  const int used = std::snprintf(text, sizeof text, "ai.graphopt::%s node '%s': ", op_, name_);
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text + used, sizeof text - static_cast<size_t>(used), format, arguments);
  va_end(arguments);
  return api_.create_status(code, text);
}

Status Node::refuse_packed(const char* why) const {
  return refuse(error_invalid_graph,
                "the packed weight is not valid: %s. The file is damaged or was written for another version of the kernels; "
                "compile the model again.",
                why);
}

Status Node::read_int(const OrtKernelInfo* info, const char* name, int64_t* out) const {
  if (Status status = api_.attribute_int64(info, name, out)) {
    api_.release_status(status);
    return refuse(error_invalid_graph, "the attribute '%s' (int) is missing. Add it.", name);
  }
  return nullptr;
}

Status Node::read_int_or(const OrtKernelInfo* info, const char* name, int64_t absent, int64_t* out) const {
  if (Status status = api_.attribute_int64(info, name, out)) {
    api_.release_status(status);
    *out = absent;
  }
  return nullptr;
}

Status Node::read_float_or(const OrtKernelInfo* info, const char* name, float absent, float* out) const {
  if (Status status = api_.attribute_float(info, name, out)) {
    api_.release_status(status);
    *out = absent;
  }
  return nullptr;
}

Status Node::read_ints(const OrtKernelInfo* info, const char* name, int64_t* out, size_t room, size_t* count) const {
  *count = 0;
  if (Status status = api_.attribute_ints(info, name, nullptr, count)) {
    api_.release_status(status);
    *count = 0;
    return nullptr;
  }
  if (*count > room) return refuse(error_invalid_graph, "the attribute '%s' has %zu numbers; at most %zu", name, *count, room);
  return *count == 0 ? nullptr : api_.attribute_ints(info, name, out, count);
}

Status Node::read_choice(const OrtKernelInfo* info, const char* name, const char* const* names, int count, int absent,
                         int* out) const {
  *out = absent;
  char text[32] = "";
  size_t size = 0;
  if (Status status = api_.attribute_string(info, name, nullptr, &size)) {
    api_.release_status(status);
    return nullptr;
  }
  if (size <= sizeof text) GRAPHOPT_TRY(api_.attribute_string(info, name, text, &size));
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(text, names[i]) != 0) continue;
    *out = i;
    return nullptr;
  }
  char valid[256] = "";
  size_t used = 0;
  for (int i = 0; i < count && used < sizeof valid; ++i) {
    used += static_cast<size_t>(std::snprintf(valid + used, sizeof valid - used, "%s%s", i ? ", " : "", names[i]));
  }
  return refuse(error_invalid_graph, "the attribute '%s' must be one of %s", name, valid);
}

Status Node::read_epilogue(const OrtKernelInfo* info, Epilogue* out) const {
  int activation = 0;
  GRAPHOPT_TRY(read_choice(info, "activation", activation_names, activation_count, 0, &activation));
  out->activation = static_cast<Activation>(activation);
  GRAPHOPT_TRY(read_float_or(info, "low", -__builtin_inff(), &out->low));
  GRAPHOPT_TRY(read_float_or(info, "high", __builtin_inff(), &out->high));
  if (out->activation == Activation::clip && !(out->low <= out->high))
    return refuse(error_invalid_graph, "the attributes 'low' and 'high' must be numbers with low <= high");
  return nullptr;
}

Status Node::read_packed(const OrtKernelInfo* info, size_t index, const unsigned char** data, size_t* size,
                         int type) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  GRAPHOPT_TRY(api_.constant_input(info, index, &is_constant, &value));
  if (!is_constant || value == nullptr)
    return refuse(error_invalid_graph,
                  "the weight (input %zu) is not a constant initializer. The packed matrix must be stored in the model. "
                  "Fold the nodes that produce it, and do not list it among the graph's inputs.",
                  index);
  Tensor tensor;
  GRAPHOPT_TRY(read_tensor(value, &tensor));
  if (tensor.rank != 1 || tensor.type != type)
    return refuse(error_invalid_graph, "the weight (input %zu) must be a %s tensor of rank 1", index,
                  type == element_int8 ? "int8" : "uint8");
  *data = static_cast<const unsigned char*>(tensor.data);
  *size = static_cast<size_t>(tensor.dims[0]);
  return nullptr;
}

Status Node::input(const OrtKernelContext* context, size_t index, int type, Tensor* out) const {
  GRAPHOPT_TRY(optional_input(context, index, type, out));
  return *out ? nullptr : refuse(error_invalid_argument, "input %zu is missing", index);
}

Status Node::optional_input(const OrtKernelContext* context, size_t index, int type, Tensor* out) const {
  *out = Tensor{};
  size_t inputs = 0;
  GRAPHOPT_TRY(api_.input_count(context, &inputs));
  const OrtValue* value = nullptr;
  if (index < inputs) GRAPHOPT_TRY(api_.input(context, index, &value));
  if (value == nullptr) return nullptr;
  GRAPHOPT_TRY(read_tensor(value, out));
  if (out->type != type) return refuse(error_invalid_argument, "input %zu must be %s", index, type_name(type));
  return nullptr;
}

Status Node::output(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank, void** data) const {
  *data = nullptr;
  OrtValue* value = nullptr;
  GRAPHOPT_TRY(api_.output(context, index, dims, rank, &value));
  for (size_t i = 0; i < rank; ++i) {
    if (dims[i] == 0) return nullptr;
  }
  return api_.tensor_data(value, data);
}

Status Node::read_bias(const OrtKernelContext* context, size_t index, size_t n, const float** out) const {
  Tensor bias;
  GRAPHOPT_TRY(optional_input(context, index, element_float, &bias));
  if (bias && (bias.rank != 1 || bias.dims[0] != static_cast<int64_t>(n)))
    return refuse(error_invalid_argument, "the bias (input %zu) must have the shape [N] = [%zu]", index, n);
  *out = static_cast<const float*>(bias.data);
  return nullptr;
}

Status Node::read_residual(const OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank,
                           const float** out) const {
  Tensor residual;
  GRAPHOPT_TRY(optional_input(context, index, element_float, &residual));
  *out = nullptr;
  if (!residual) return nullptr;
  if (residual.rank != rank || std::memcmp(residual.dims, dims, rank * sizeof dims[0]) != 0)
    return refuse(error_invalid_argument, "the residual (input %zu) must have the shape of the output", index);
  *out = static_cast<const float*>(residual.data);
  return nullptr;
}

Status Node::read_tensor(const OrtValue* value, Tensor* out) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  GRAPHOPT_TRY(api_.shape_of(value, &info));
  Status status = api_.rank(info, &out->rank);
  const bool fits = out->rank <= max_rank;
  if (status == nullptr) status = api_.element_type(info, &out->type);
  if (status == nullptr && fits) status = api_.dimensions(info, out->dims, out->rank);
  api_.release_shape(info);
  if (status != nullptr) return status;
  if (!fits) return refuse(error_invalid_argument, "an input has rank %zu; at most %zu", out->rank, max_rank);
  void* data = nullptr;
  GRAPHOPT_TRY(api_.tensor_data(value, &data));
  out->data = data;
  return nullptr;
}

}  // namespace graphopt::ort
