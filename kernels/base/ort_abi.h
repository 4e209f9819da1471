// The part of ONNX Runtime's C interface that these kernels use, written down from its published layout: the order of
// the table's functions, their arguments, and the values of its enums. Nothing of ONNX Runtime is needed to build or
// link. Every function here exists since ONNX Runtime 1.17 (interface version 17), and none was ever moved.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;
struct OrtOpAttr;

// An append-only table of function pointers; see graphopt::ort::Slot.
struct OrtApi {
  void* slot[1];
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // nullptr if the runtime is older than `version`
  const char* (*GetVersionString)();
};

// What the runtime asks of a custom operator. Members after ReleaseMayInplace came with version 18 and are not read
// when `version` says 17.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // extern "C"

static_assert(sizeof(OrtCustomOp) == 26 * sizeof(void*), "OrtCustomOp has 26 members of pointer size");

namespace graphopt::ort {

// The interface version asked for. Not the newest: a runtime refuses operators of a version above its own.
constexpr uint32_t api_version = 17;
constexpr const char* oldest_runtime = "1.17";
// Operators of this version may say which input their output may overwrite.
constexpr uint32_t in_place_version = 18;

enum ElementType : int { element_float = 1, element_uint8 = 2, element_int8 = 3, element_int32 = 6 };
enum Characteristic : int { input_required = 0, input_optional = 1 };
enum AttributeType : int { attribute_int = 1, attribute_ints = 2, attribute_text = 5 };
enum ErrorCode : int { error_fail = 1, error_invalid_argument = 2, error_not_implemented = 9, error_invalid_graph = 10 };

using Status = OrtStatus*;

// The table with types. A call is a plain indirect call.
class Api {
 public:
  explicit Api(const OrtApi* table = nullptr) : table_(table) {}

  Status create_status(int code, const char* message) const { return call<0, Status>(code, message); }
  void release_status(Status status) const { call<93, void>(status); }

  Status create_domain(const char* name, OrtCustomOpDomain** out) const { return call<26, Status>(name, out); }
  Status domain_add(OrtCustomOpDomain* domain, const OrtCustomOp* op) const { return call<27, Status>(domain, op); }
  Status add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return call<28, Status>(options, domain);
  }

  // Works for constant inputs too; their contents must not be written.
  Status tensor_data(const OrtValue* value, void** out) const { return call<51, Status>(value, out); }
  Status create_shape(OrtTensorTypeAndShapeInfo** out) const { return call<57, Status>(out); }
  Status set_element_type(OrtTensorTypeAndShapeInfo* shape, int type) const { return call<58, Status>(shape, type); }
  Status set_dimensions(OrtTensorTypeAndShapeInfo* shape, const int64_t* dims, size_t rank) const {
    return call<59, Status>(shape, dims, rank);
  }
  Status element_type(const OrtTensorTypeAndShapeInfo* shape, int* out) const { return call<60, Status>(shape, out); }
  Status rank(const OrtTensorTypeAndShapeInfo* shape, size_t* out) const { return call<61, Status>(shape, out); }
  Status dimensions(const OrtTensorTypeAndShapeInfo* shape, int64_t* out, size_t rank) const {
    return call<62, Status>(shape, out, rank);
  }
  Status symbolic_dimensions(const OrtTensorTypeAndShapeInfo* shape, const char** out, size_t rank) const {
    return call<63, Status>(shape, out, rank);
  }
  // The caller releases the result.
  Status shape_of(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) const { return call<65, Status>(value, out); }
  void release_shape(OrtTensorTypeAndShapeInfo* shape) const { call<99, void>(shape); }

  Status attribute_float(const OrtKernelInfo* info, const char* name, float* out) const {
    return call<85, Status>(info, name, out);
  }
  Status attribute_int64(const OrtKernelInfo* info, const char* name, int64_t* out) const {
    return call<86, Status>(info, name, out);
  }
  // `size` counts the final zero; with out == nullptr only the size is given.
  Status attribute_string(const OrtKernelInfo* info, const char* name, char* out, size_t* size) const {
    return call<87, Status>(info, name, out, size);
  }
  // With out == nullptr only the number is given.
  Status attribute_ints(const OrtKernelInfo* info, const char* name, int64_t* out, size_t* count) const {
    return call<163, Status>(info, name, out, count);
  }
  Status node_name(const OrtKernelInfo* info, char* out, size_t* size) const {
    return call<244, Status>(info, out, size);
  }
  Status info_input_count(const OrtKernelInfo* info, size_t* out) const { return call<230, Status>(info, out); }
  Status constant_input(const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** out) const {
    return call<249, Status>(info, index, is_constant, out);
  }

  Status input_count(const OrtKernelContext* context, size_t* out) const { return call<88, Status>(context, out); }
  // *out is nullptr for an optional input that is absent.
  Status input(const OrtKernelContext* context, size_t index, const OrtValue** out) const {
    return call<90, Status>(context, index, out);
  }
  Status output(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank, OrtValue** out) const {
    return call<91, Status>(context, index, dims, rank, out);
  }
  // Calls body(data, 0..total-1) on the session's pool and returns when all are done. batches == 0: one task each.
  Status parallel_for(const OrtKernelContext* context, void (*body)(void*, size_t), size_t total, size_t batches,
                      void* data) const {
    return call<274, Status>(context, body, total, batches, data);
  }

  // The result belongs to the context.
  Status infer_input(const OrtShapeInferContext* context, size_t index, OrtTensorTypeAndShapeInfo** out) const {
    return call<268, Status>(context, index, out);
  }
  Status infer_attribute(const OrtShapeInferContext* context, const char* name, const OrtOpAttr** out) const {
    return call<269, Status>(context, name, out);
  }
  Status infer_set_output(const OrtShapeInferContext* context, size_t index,
                          const OrtTensorTypeAndShapeInfo* shape) const {
    return call<270, Status>(context, index, shape);
  }
  // After set_dimensions, with the same rank; "" keeps the number.
  Status set_symbolic_dimensions(OrtTensorTypeAndShapeInfo* shape, const char** names, size_t rank) const {
    return call<271, Status>(shape, names, rank);
  }
  const OrtApi* table() const { return table_; }

  Status read_attribute(const OrtOpAttr* attribute, int type, void* data, size_t size, size_t* out) const {
    return call<272, Status>(attribute, type, data, size, out);
  }

 private:
  template <int Slot, class Result, class... Args>
  Result call(Args... args) const {
    return reinterpret_cast<Result (*)(Args...)>(table_->slot[Slot])(args...);
  }

  const OrtApi* table_;
};

}  // namespace graphopt::ort
