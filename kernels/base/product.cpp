#include "base/product.h"

namespace graphopt::ort {

Status require_sizes(const Node& node, const OrtKernelInfo* info, size_t k, size_t n) {
  int64_t said_k = 0, said_n = 0;
  GRAPHOPT_TRY(node.read_int(info, "K", &said_k));
  GRAPHOPT_TRY(node.read_int(info, "N", &said_n));
  if (static_cast<int64_t>(k) == said_k && static_cast<int64_t>(n) == said_n) return nullptr;
  return node.refuse(error_invalid_graph,
                     "the packed weight has K = %zu and N = %zu, and the node's attributes say %lld and %lld. They must "
                     "agree; compile the model again.",
                     k, n, static_cast<long long>(said_k), static_cast<long long>(said_n));
}

Status read_product(const Node& node, OrtKernelContext* context, int x_type, size_t k, size_t n, Product* out) {
  Tensor x;
  GRAPHOPT_TRY(node.input(context, 0, x_type, &x));
  if (x.rank == 0 || x.dims[x.rank - 1] != static_cast<int64_t>(k))
    return node.refuse(error_invalid_argument,
                       "X must have rank 1 to %zu and a last dimension of K = %zu; it has rank %zu and %lld", max_rank, k,
                       x.rank, x.rank ? static_cast<long long>(x.dims[x.rank - 1]) : -1LL);
  out->x = x.data;
  for (size_t i = 0; i + 1 < x.rank; ++i) out->rows *= static_cast<size_t>(x.dims[i]);
  x.dims[x.rank - 1] = static_cast<int64_t>(n);
  GRAPHOPT_TRY(node.read_bias(context, 2, n, &out->bias));
  GRAPHOPT_TRY(node.read_residual(context, 3, x.dims, x.rank, &out->residual));
  return node.output(context, 0, x.dims, x.rank, &out->y);
}

Status infer_product(const Inference& inference, int y_type) {
  KnownShape shape;
  GRAPHOPT_TRY(inference.input(0, &shape));
  if (!shape.known) return nullptr;
  shape.dims[shape.rank - 1] = -1;
  shape.names[shape.rank - 1] = nullptr;
  GRAPHOPT_TRY(inference.read_int("N", &shape.dims[shape.rank - 1]));
  return inference.set_output(0, y_type, shape);
}

}  // namespace graphopt::ort
