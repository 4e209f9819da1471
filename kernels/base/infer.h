// Shape inference while a model is loaded.
#pragma once
#include <cstddef>

#include "base/node.h"

namespace graphopt::ort {

// Shape inference is not given a table of its own: the one that registered the operators, set once.
void set_inference_table(const OrtApi* table);
Api inference_api();

// A shape as far as it is known.
struct KnownShape {
  size_t rank = 0;
  int64_t dims[max_rank] = {};             // -1 where only a name, or nothing, is known
  const char* names[max_rank] = {};        // of the runtime, or nullptr
  bool known = false;                      // false: not even the rank
};

class Inference {
 public:
  explicit Inference(OrtShapeInferContext* context) : api_(inference_api()), context_(context) {}

  Status input(size_t index, KnownShape* out) const;
  // *out stays as it is if the attribute is absent.
  Status read_int(const char* name, int64_t* out) const;
  Status read_ints(const char* name, int64_t* out, size_t room, size_t* count) const;
  // True if the attribute is this text.
  Status is_text(const char* name, const char* text, bool* out) const;
  // Sizes with neither number nor name get a name of their own: the runtime would take -1 for a size and hand it to
  // Reshape, and two tensors must not get one name by chance, for that would say that they are equally large.
  Status set_output(size_t index, int type, const KnownShape& shape) const;

 private:
  Api api_;
  OrtShapeInferContext* context_;
};

}  // namespace graphopt::ort
