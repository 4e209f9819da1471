#include "sparse_matmul/op.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <new>

#include "base/isa.h"
#include "sparse_matmul/packed.h"
#include "sparse_matmul/run.h"

namespace graphopt::sparse_matmul {
namespace {

using ort::Api;
using ort::Status;

#define GRAPHOPT_TRY(expression)                              \
  do {                                                        \
    if (Status status_ = (expression); status_ != nullptr) return status_; \
  } while (0)

constexpr size_t max_rank = 16;

// Shape inference is not given a table of its own.
const OrtApi* inference_table = nullptr;

struct Shape {
  size_t rank = 0;
  int64_t dims[max_rank] = {};
  int type = 0;
};

// Reads and releases the shape of a tensor; *fits is false if its rank is above max_rank.
Status read_shape(const Api& api, const OrtValue* value, Shape* out, bool* fits) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  GRAPHOPT_TRY(api.shape_of(value, &info));
  Status status = api.rank(info, &out->rank);
  *fits = out->rank <= max_rank;
  if (status == nullptr) status = api.element_type(info, &out->type);
  if (status == nullptr && *fits) status = api.dimensions(info, out->dims, out->rank);
  api.release_shape(info);
  return status;
}

class Kernel {
 public:
  static Status create(const Api& api, const OrtKernelInfo* info, Kernel** out) {
    char name[128] = "?";
    size_t size = sizeof name;
    if (Status status = api.node_name(info, name, &size)) api.release_status(status);
    name[sizeof name - 1] = '\0';

    Kernel* kernel = new (std::nothrow) Kernel(api);
    if (kernel == nullptr) return api.create_status(ort::error_fail, "out of memory");
    std::memcpy(kernel->name_, name, sizeof name);
    if (Status status = kernel->read(info)) {
      delete kernel;
      return status;
    }
    *out = kernel;
    return nullptr;
  }

  Status compute(OrtKernelContext* context) const {
    const OrtValue* x_value = nullptr;
    GRAPHOPT_TRY(api_.input(context, 0, &x_value));
    Shape x;
    bool fits = false;
    GRAPHOPT_TRY(read_shape(api_, x_value, &x, &fits));
    if (!fits || x.rank == 0 || x.dims[x.rank - 1] != static_cast<int64_t>(w_.k))
      return refuse_input("X must have rank 1 to %zu and a last dimension of K = %zu; it has rank %zu and %lld", max_rank,
                          w_.k, x.rank, fits && x.rank ? static_cast<long long>(x.dims[x.rank - 1]) : -1LL);

    Call call{};
    call.w = &w_;
    call.activation = activation_;
    call.m = 1;
    for (size_t i = 0; i + 1 < x.rank; ++i) call.m *= static_cast<size_t>(x.dims[i]);
    void* data = nullptr;
    GRAPHOPT_TRY(api_.tensor_data(x_value, &data));
    call.x = static_cast<const float*>(data);
    GRAPHOPT_TRY(read_bias(context, &call.bias));

    x.dims[x.rank - 1] = static_cast<int64_t>(w_.n);
    OrtValue* y_value = nullptr;
    GRAPHOPT_TRY(api_.output(context, 0, x.dims, x.rank, &y_value));
    if (call.m == 0) return nullptr;
    GRAPHOPT_TRY(api_.tensor_data(y_value, &data));
    call.y = static_cast<float*>(data);
    return run(context, call);
  }

 private:
  explicit Kernel(const Api& api) : api_(api) {}

  template <class... Args>
  Status refuse_input(const char* format, Args... args) const {
    return refuse(ort::error_invalid_argument, format, args...);
  }

  template <class... Args>
  Status refuse(int code, const char* format, Args... args) const {
    char text[512];
    const int used = std::snprintf(text, sizeof text, "ai.graphopt::SparseMatMul node '%s': ", name_);
    std::snprintf(text + used, sizeof text - static_cast<size_t>(used), format, args...);
    return api_.create_status(code, text);
  }

  Status read(const OrtKernelInfo* info) {
    int64_t k = 0, n = 0;
    GRAPHOPT_TRY(read_int(info, "K", &k));
    GRAPHOPT_TRY(read_int(info, "N", &n));
    GRAPHOPT_TRY(read_activation(info));

    int is_constant = 0;
    const OrtValue* value = nullptr;
    GRAPHOPT_TRY(api_.constant_input(info, 1, &is_constant, &value));
    if (!is_constant || value == nullptr)
      return refuse(ort::error_invalid_graph, "%s",
                    "the weight (input 1) is not a constant initializer. The packed matrix must be stored in the model. "
                    "Fold the nodes that produce it, and do not list it among the graph's inputs.");
    Shape shape;
    bool fits = false;
    GRAPHOPT_TRY(read_shape(api_, value, &shape, &fits));
    if (!fits || shape.rank != 1 || shape.type != ort::element_uint8)
      return refuse(ort::error_invalid_graph, "%s", "the weight (input 1) must be a uint8 tensor of rank 1");
    void* data = nullptr;
    GRAPHOPT_TRY(api_.tensor_data(value, &data));
    char why[256] = "";
    if (!parse(static_cast<const unsigned char*>(data), static_cast<size_t>(shape.dims[0]), &w_, why, sizeof why))
      return refuse(ort::error_invalid_graph,
                    "the packed weight is not valid: %s. The file is damaged or was written for another version of the "
                    "kernels; compile the model again.",
                    why);
    if (static_cast<int64_t>(w_.k) != k || static_cast<int64_t>(w_.n) != n)
      return refuse(ort::error_invalid_graph,
                    "the packed weight has K = %zu and N = %zu, and the node's attributes say %lld and %lld. They must "
                    "agree; compile the model again.",
                    w_.k, w_.n, static_cast<long long>(k), static_cast<long long>(n));
    return nullptr;
  }

  Status read_int(const OrtKernelInfo* info, const char* name, int64_t* out) {
    if (Status status = api_.attribute_int64(info, name, out)) {
      api_.release_status(status);
      return refuse(ort::error_invalid_graph, "the attribute '%s' (int) is missing. Add it.", name);
    }
    return nullptr;
  }

  Status read_activation(const OrtKernelInfo* info) {
    char text[16] = "";
    size_t size = 0;
    if (Status status = api_.attribute_string(info, "activation", nullptr, &size)) {
      api_.release_status(status);
      return nullptr;  // absent: none
    }
    if (size <= sizeof text) GRAPHOPT_TRY(api_.attribute_string(info, "activation", text, &size));
    if (std::strcmp(text, "none") == 0) return nullptr;
    if (std::strcmp(text, "relu") != 0)
      return refuse(ort::error_invalid_graph, "the attribute 'activation' must be one of none, relu%s", "");
    activation_ = Activation::relu;
    return nullptr;
  }

  Status read_bias(OrtKernelContext* context, const float** out) const {
    size_t inputs = 0;
    GRAPHOPT_TRY(api_.input_count(context, &inputs));
    const OrtValue* value = nullptr;
    if (inputs > 2) GRAPHOPT_TRY(api_.input(context, 2, &value));
    if (value == nullptr) return nullptr;
    Shape shape;
    bool fits = false;
    GRAPHOPT_TRY(read_shape(api_, value, &shape, &fits));
    if (!fits || shape.rank != 1 || shape.dims[0] != static_cast<int64_t>(w_.n))
      return refuse_input("the bias (input 2) must have the shape [N] = [%zu]", w_.n);
    void* data = nullptr;
    GRAPHOPT_TRY(api_.tensor_data(value, &data));
    *out = static_cast<const float*>(data);
    return nullptr;
  }

  Status run(OrtKernelContext* context, const Call& call) const {
    struct Job {
      Work work;
      std::atomic<bool> failed{false};
    };
    Job job{Work(call, kernels_for(isa_choice().isa, call.m))};
    const auto body = [](void* data, size_t task) {
      Job* mine = static_cast<Job*>(data);
      if (!mine->work.run(task)) mine->failed.store(true, std::memory_order_relaxed);
    };
    if (job.work.tasks() == 1) {
      body(&job, 0);
    } else {
      GRAPHOPT_TRY(api_.parallel_for(context, body, job.work.tasks(), 0, &job));
    }
    if (job.failed) return refuse(ort::error_fail, "%s", "out of memory");
    return nullptr;
  }

  Api api_;
  PackedMatrix w_{};
  Activation activation_ = Activation::none;
  char name_[128] = "";
};

Status infer_attribute(const Api& api, const OrtShapeInferContext* context, const char* name, int64_t* out) {
  const OrtOpAttr* attribute = nullptr;
  size_t size = 0;
  GRAPHOPT_TRY(api.infer_attribute(context, name, &attribute));
  if (attribute == nullptr) return api.create_status(ort::error_invalid_graph, "SparseMatMul: an attribute is missing");
  return api.read_attribute(attribute, ort::attribute_int, out, sizeof *out, &size);
}

// A name for a size that has neither number nor name. The runtime would take the number, -1, for a size and hand it to
// Reshape. Two tensors must not get one name by chance, for that would say that they are equally large.
void name_unknown(char* out, size_t size) {
  static std::atomic<unsigned long long> last{0};
  std::snprintf(out, size, "ai.graphopt.size.%llu", ++last);
}

// [..., K] -> [..., N]; symbolic dimensions keep their names.
Status infer(const OrtCustomOp*, OrtShapeInferContext* context) {
  const Api api(inference_table);
  OrtTensorTypeAndShapeInfo* x = nullptr;
  GRAPHOPT_TRY(api.infer_input(context, 0, &x));
  size_t rank = 0;
  GRAPHOPT_TRY(api.rank(x, &rank));
  if (rank == 0 || rank > max_rank) return nullptr;  // unknown: nothing to say

  int64_t dims[max_rank] = {};
  const char* names[max_rank] = {};
  GRAPHOPT_TRY(api.dimensions(x, dims, rank));
  GRAPHOPT_TRY(api.symbolic_dimensions(x, names, rank));
  GRAPHOPT_TRY(infer_attribute(api, context, "N", &dims[rank - 1]));
  names[rank - 1] = "";
  char made[max_rank][40];
  for (size_t i = 0; i + 1 < rank; ++i) {
    if (dims[i] >= 0 || (names[i] != nullptr && names[i][0] != '\0')) continue;
    name_unknown(made[i], sizeof made[i]);
    names[i] = made[i];
  }

  OrtTensorTypeAndShapeInfo* y = nullptr;
  GRAPHOPT_TRY(api.create_shape(&y));
  Status status = api.set_element_type(y, ort::element_float);
  if (status == nullptr) status = api.set_dimensions(y, dims, rank);
  if (status == nullptr) status = api.set_symbolic_dimensions(y, names, rank);
  if (status == nullptr) status = api.infer_set_output(context, 0, y);
  api.release_shape(y);
  return status;
}

OrtCustomOp describe() {
  OrtCustomOp op{};
  op.version = ort::api_version;
  op.GetName = [](const OrtCustomOp*) { return "SparseMatMul"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 3; };
  op.GetInputType = [](const OrtCustomOp*, size_t i) -> int { return i == 1 ? ort::element_uint8 : ort::element_float; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int {
    return i == 2 ? ort::input_optional : ort::input_required;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) -> int { return ort::element_float; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ort::input_required; };
  const auto none = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputMinArity = none;
  op.GetVariadicInputHomogeneity = none;
  op.GetVariadicOutputMinArity = none;
  op.GetVariadicOutputHomogeneity = none;
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* table, const OrtKernelInfo* info, void** out) -> Status {
    Kernel* kernel = nullptr;
    Status status = Kernel::create(Api(table), info, &kernel);
    *out = kernel;
    return status;
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> Status {
    return static_cast<const Kernel*>(kernel)->compute(context);
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.InferOutputShapeFn = infer;
  return op;
}

}  // namespace

const OrtCustomOp* custom_op(const ort::Api& api) {
  static const OrtCustomOp op = describe();
  inference_table = api.table();
  return &op;
}

}  // namespace graphopt::sparse_matmul
