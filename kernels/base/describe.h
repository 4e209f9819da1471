// An operator as ONNX Runtime is told about it, made from a class.
//
// The class has: static constexpr const char* name; static constexpr size_t inputs, outputs; static int input_type(size_t),
// output_type(size_t); static bool is_optional(size_t input); static Status infer(OrtShapeInferContext*); a constructor
// (api, info); Status read(info), once, when a session is made; Status compute(context) const, from several threads.
#pragma once
#include <new>

#include "base/infer.h"
#include "base/ort_abi.h"

namespace graphopt::ort {

// The version of the operators: set once, before the first of them is made.
inline uint32_t operator_version = api_version;

// `overwrites`: the input whose memory the first output may take where nothing else reads it any more, or -1. Each
// element is then read before the one of the output is written.
template <class Kernel, int overwrites>
OrtCustomOp describe() {
  OrtCustomOp op{};
  op.version = operator_version;
  op.GetName = [](const OrtCustomOp*) { return Kernel::name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return Kernel::inputs; };
  op.GetInputType = [](const OrtCustomOp*, size_t i) -> int { return Kernel::input_type(i); };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int {
    return Kernel::is_optional(i) ? input_optional : input_required;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return Kernel::outputs; };
  op.GetOutputType = [](const OrtCustomOp*, size_t i) -> int { return Kernel::output_type(i); };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return input_required; };
  const auto none = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputMinArity = none;
  op.GetVariadicInputHomogeneity = none;
  op.GetVariadicOutputMinArity = none;
  op.GetVariadicOutputHomogeneity = none;
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* table, const OrtKernelInfo* info, void** out) -> Status {
    const Api api(table);
    Kernel* kernel = new (std::nothrow) Kernel(api, info);
    if (kernel == nullptr) return api.create_status(error_fail, "out of memory");
    if (Status status = kernel->read(info)) {
      delete kernel;
      return status;
    }
    *out = kernel;
    return nullptr;
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> Status {
    return static_cast<const Kernel*>(kernel)->compute(context);
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) -> Status {
    return Kernel::infer(context);
  };
  if constexpr (overwrites >= 0) {
    static int input = overwrites, output = 0;
    op.GetMayInplace = [](int** inputs, int** outputs) -> size_t {
      *inputs = &input;
      *outputs = &output;
      return 1;
    };
    op.ReleaseMayInplace = [](int*, int*) {};
  }
  return op;
}

// The operator, alive as long as the process.
template <class Kernel, int overwrites = -1>
const OrtCustomOp* operator_of() {
  static const OrtCustomOp op = describe<Kernel, overwrites>();
  return &op;
}

}  // namespace graphopt::ort
