#include "base/infer.h"

#include <atomic>
#include <cstdio>
#include <cstring>

namespace graphopt::ort {
namespace {

const OrtApi* inference_table = nullptr;

void name_unknown(char* out, size_t size) {
  static std::atomic<unsigned long long> last{0};
  std::snprintf(out, size, "ai.graphopt.size.%llu", ++last);
}

}  // namespace

void set_inference_table(const OrtApi* table) { inference_table = table; }

Api inference_api() { return Api(inference_table); }

Status Inference::input(size_t index, KnownShape* out) const {
  *out = KnownShape{};
  OrtTensorTypeAndShapeInfo* info = nullptr;
  GRAPHOPT_TRY(api_.infer_input(context_, index, &info));
  if (info == nullptr) return nullptr;
  GRAPHOPT_TRY(api_.rank(info, &out->rank));
  if (out->rank == 0 || out->rank > max_rank) return nullptr;  // unknown: nothing to say
  GRAPHOPT_TRY(api_.dimensions(info, out->dims, out->rank));
  GRAPHOPT_TRY(api_.symbolic_dimensions(info, out->names, out->rank));
  out->known = true;
  return nullptr;
}

Status Inference::read_int(const char* name, int64_t* out) const {
  const OrtOpAttr* attribute = nullptr;
  size_t size = 0;
  if (Status status = api_.infer_attribute(context_, name, &attribute)) {
    api_.release_status(status);
    return nullptr;
  }
  return attribute == nullptr ? nullptr : api_.read_attribute(attribute, attribute_int, out, sizeof *out, &size);
}

Status Inference::read_ints(const char* name, int64_t* out, size_t room, size_t* count) const {
  *count = 0;
  const OrtOpAttr* attribute = nullptr;
  size_t bytes = 0;
  if (Status status = api_.infer_attribute(context_, name, &attribute)) {
    api_.release_status(status);
    return nullptr;
  }
  if (attribute == nullptr) return nullptr;
  GRAPHOPT_TRY(api_.read_attribute(attribute, attribute_ints, out, room * sizeof *out, &bytes));
  *count = bytes / sizeof *out;
  return nullptr;
}

Status Inference::is_text(const char* name, const char* text, bool* out) const {
  *out = false;
  const OrtOpAttr* attribute = nullptr;
  if (Status status = api_.infer_attribute(context_, name, &attribute)) {
    api_.release_status(status);
    return nullptr;
  }
  char found[64] = "";
  size_t bytes = 0;
  if (attribute == nullptr) return nullptr;
  if (Status status = api_.read_attribute(attribute, attribute_text, found, sizeof found - 1, &bytes)) {
    api_.release_status(status);  // longer than any text that is asked for
    return nullptr;
  }
  *out = std::strcmp(found, text) == 0;
  return nullptr;
}

Status Inference::set_output(size_t index, int type, const KnownShape& shape) const {
  const char* names[max_rank] = {};
  char made[max_rank][40];
  for (size_t i = 0; i < shape.rank; ++i) {
    names[i] = shape.names[i] == nullptr || shape.dims[i] >= 0 ? "" : shape.names[i];
    if (shape.dims[i] >= 0 || names[i][0] != '\0') continue;
    name_unknown(made[i], sizeof made[i]);
    names[i] = made[i];
  }
  OrtTensorTypeAndShapeInfo* info = nullptr;
  GRAPHOPT_TRY(api_.create_shape(&info));
  Status status = api_.set_element_type(info, type);
  if (status == nullptr) status = api_.set_dimensions(info, shape.dims, shape.rank);
  if (status == nullptr) status = api_.set_symbolic_dimensions(info, names, shape.rank);
  if (status == nullptr) status = api_.infer_set_output(context_, index, info);
  api_.release_shape(info);
  return status;
}

}  // namespace graphopt::ort
