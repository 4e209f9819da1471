// What the kernel of every operator does alike: reads its attributes, weights and inputs, says what is wrong with them,
// and shares its tasks out over the session's threads.
#pragma once
#include <atomic>
#include <cstddef>

#include "base/activation.h"
#include "base/ort_abi.h"

// Returns from the function if the expression gives an error.
#define GRAPHOPT_TRY(expression)                                                              \
  do {                                                                                        \
    if (::graphopt::ort::Status status_ = (expression); status_ != nullptr) return status_; \
  } while (0)

namespace graphopt::ort {

constexpr size_t max_rank = 16;

struct Tensor {
  const void* data = nullptr;  // nullptr for an optional input that is absent
  size_t rank = 0;
  int64_t dims[max_rank] = {};
  int type = 0;

  explicit operator bool() const { return data != nullptr || rank != 0 || type != 0; }
  size_t elements() const;
  bool has_shape_of(const Tensor& other) const;
};

class Node {
 public:
  // `op` is the operator's name in messages. The node's own name is read from `info`.
  Node(const Api& api, const char* op, const OrtKernelInfo* info);

  const Api& api() const { return api_; }

  // A status whose message begins with the operator and the name of the node.
  __attribute__((format(printf, 3, 4))) Status refuse(int code, const char* format, ...) const;

  // The status of a packed weight that is not valid.
  Status refuse_packed(const char* why) const;

  // Attributes. Those without a default must be there.
  Status read_int(const OrtKernelInfo* info, const char* name, int64_t* out) const;
  Status read_int_or(const OrtKernelInfo* info, const char* name, int64_t absent, int64_t* out) const;
  Status read_float_or(const OrtKernelInfo* info, const char* name, float absent, float* out) const;
  // At most `room` integers; *count is 0 if the attribute is absent.
  Status read_ints(const OrtKernelInfo* info, const char* name, int64_t* out, size_t room, size_t* count) const;
  // The position of the attribute's text among `names`; `absent` if there is no such attribute.
  Status read_choice(const OrtKernelInfo* info, const char* name, const char* const* names, int count, int absent,
                     int* out) const;
  // activation, low, high.
  Status read_epilogue(const OrtKernelInfo* info, Epilogue* out) const;

  // A constant initializer of bytes, of rank 1, alive as long as the session. `type` is uint8 or int8.
  Status read_packed(const OrtKernelInfo* info, size_t index, const unsigned char** data, size_t* size,
                     int type = element_uint8) const;

  // An input of a run. `type` is what it must have.
  Status input(const OrtKernelContext* context, size_t index, int type, Tensor* out) const;
  Status optional_input(const OrtKernelContext* context, size_t index, int type, Tensor* out) const;
  // Makes an output. *data is nullptr if the shape has no element.
  Status output(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank, void** data) const;
  // The optional bias of shape [n], and the optional residual of the output's shape.
  Status read_bias(const OrtKernelContext* context, size_t index, size_t n, const float** out) const;
  Status read_residual(const OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank,
                       const float** out) const;

  // Runs work.run(0..work.tasks()-1) on the session's threads. `run` gives false if there was no memory.
  template <class Work>
  Status parallel(OrtKernelContext* context, const Work& work) const {
    struct Job {
      const Work& work;
      std::atomic<bool> failed{false};
    } job{work};
    const auto body = [](void* data, size_t task) {
      Job* mine = static_cast<Job*>(data);
      if (!mine->work.run(task)) mine->failed.store(true, std::memory_order_relaxed);
    };
    const size_t tasks = work.tasks();
    if (tasks == 1) body(&job, 0);
    if (tasks > 1) GRAPHOPT_TRY(api_.parallel_for(context, body, tasks, 0, &job));
    return job.failed ? refuse(error_fail, "out of memory") : nullptr;
  }

 private:
  Status read_tensor(const OrtValue* value, Tensor* out) const;

  Api api_;
  const char* op_;
  char name_[128];
};

}  // namespace graphopt::ort
