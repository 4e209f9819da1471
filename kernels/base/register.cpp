// The one entry point that ONNX Runtime looks for, and the list of operators.
#include <cstdio>

#include "base/describe.h"
#include "base/infer.h"
#include "base/isa.h"
#include "base/ort_abi.h"
#include "low_bit_matmul/op.h"
#include "sparse_conv/op.h"
#include "sparse_int8/op.h"
#include "sparse_matmul/op.h"

#define GRAPHOPT_EXPORT extern "C" __attribute__((visibility("default")))

namespace graphopt {
namespace {

// The version of the interface that a runtime has: the second number of its own. Asking for a version that it does not have
// would make it write a message.
uint32_t version_of(const char* runtime) {
  unsigned major = 0, minor = 0;
  return std::sscanf(runtime, "%u.%u", &major, &minor) != 2 ? 0 : major > 1 ? UINT32_MAX : minor;
}

ort::Status register_domain(const ort::Api& api, const char* runtime, OrtSessionOptions* options) {
  // Sessions keep pointers to the domain and its operators, so both live as long as the process.
  struct Domain {
    OrtCustomOpDomain* domain = nullptr;
    ort::Status error = nullptr;
  };
  static const Domain once = [](const ort::Api& first, const char* version) {
    Domain made;
    if (version_of(version) >= ort::in_place_version) ort::operator_version = ort::in_place_version;
    made.error = first.create_domain("ai.graphopt", &made.domain);
    ort::set_inference_table(first.table());
    const OrtCustomOp* const operators[] = {low_bit_matmul::custom_op(), sparse_conv::custom_op(), sparse_conv::to_padded_op(),
                                            sparse_conv::from_padded_op(), sparse_matmul::custom_op()};
    for (const OrtCustomOp* op : operators) {
      if (made.error == nullptr) made.error = first.domain_add(made.domain, op);
    }
    for (size_t i = 0; i < sparse_int8::operators; ++i) {
      if (made.error == nullptr) made.error = first.domain_add(made.domain, sparse_int8::custom_op(i));
    }
    return made;
  }(api, runtime);
  if (once.error != nullptr) return api.create_status(ort::error_fail, "the domain ai.graphopt could not be created");
  return api.add_domain(options, once.domain);
}

}  // namespace
}  // namespace graphopt

GRAPHOPT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace graphopt;
  const OrtApi* table = base->GetApi(ort::api_version);
  if (table == nullptr) {
    const OrtApi* old = base->GetApi(1);  // every runtime has the first version
    char message[320];
    std::snprintf(message, sizeof message,
                  "the graphopt kernels need ONNX Runtime %s or newer, and this is %.40s. Update onnxruntime, or use the "
                  "fallback model of the bundle, which has standard operators only.",
                  ort::oldest_runtime, base->GetVersionString());
    return ort::Api(old).create_status(ort::error_not_implemented, message);
  }
  const ort::Api api(table);
  if (isa_choice().error != nullptr) return api.create_status(ort::error_invalid_argument, isa_choice().error);
  return register_domain(api, base->GetVersionString(), options);
}

// One line: "<chosen> <forced|detected> <supported,...>", or "error: " and why GRAPHOPT_ISA cannot be followed.
GRAPHOPT_EXPORT const char* graphopt_isa_report() {
  using namespace graphopt;
  struct Report {
    char text[512];
  };
  static const Report report = [] {
    Report made{};
    const IsaChoice& choice = isa_choice();
    if (choice.error != nullptr) {
      std::snprintf(made.text, sizeof made.text, "error: %s", choice.error);
      return made;
    }
    int used = std::snprintf(made.text, sizeof made.text, "%s %s ", isa_name(choice.isa),
                             choice.forced ? "forced" : "detected");
    for (int i = 0; i < isa_count; ++i) {
      if (!isa_supported(static_cast<Isa>(i))) continue;
      used += std::snprintf(made.text + used, sizeof made.text - static_cast<size_t>(used), "%s%s", i ? "," : "",
                            isa_name(static_cast<Isa>(i)));
    }
    return made;
  }();
  return report.text;
}
