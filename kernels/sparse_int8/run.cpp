#include "sparse_int8/run.h"

#include <algorithm>

#include "sparse_int8/held.h"

namespace graphopt::sparse_int8 {
namespace {

constexpr size_t tile_bytes = 28 * 1024;       // of a K-block, in an L1 of 32 KiB
constexpr size_t range_bytes = size_t{1} << 17;  // of x for one task

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

}  // namespace

const Kernels& kernels_for(Isa isa) {
  static const IsaTable<Kernels> made = [] {
    IsaTable<Kernels> all;
    all.set(Isa::scalar, scalar_kernels());
#if defined(GRAPHOPT_X86)
    all.set(Isa::avx2, avx2_kernels());
#if defined(GRAPHOPT_HAS_AVXVNNI)
    all.set(Isa::avxvnni, avxvnni_kernels());
#endif
    all.set(Isa::avx512vnni, avx512vnni_kernels());
#elif defined(GRAPHOPT_ARM64)
    all.set(Isa::neon, neon_kernels());
    all.set(Isa::neon_dotprod, dotprod_kernels());
#endif
    return all;
  }();
  return made.best(isa);
}

unsigned vectors_for(const PackedWeights& w, const Kernels& kernels, size_t groups) {
  const size_t most = kernels.max_vectors[w.unit == 4];
  const size_t fitting = std::max<size_t>(1, tile_bytes / (kernels.lanes * std::min(w.k_block, w.k)));
  return static_cast<unsigned>(std::min(groups, w.unit == 4 ? most : std::min(most, fitting)));
}

FindGrid::FindGrid(const float* x, size_t count, const Kernels& kernels)
    : x_(x),
      count_(count),
      tasks_(std::clamp<size_t>(count * sizeof(float) / range_bytes, 1, max_tasks)),
      kernels_(kernels) {}

bool FindGrid::run(size_t task) const {
  const size_t begin = count_ * task / tasks_, end = count_ * (task + 1) / tasks_;
  low_[task] = high_[task] = 0.0f;
  kernels_.range(x_ + begin, end - begin, &low_[task], &high_[task]);
  return true;
}

Grid FindGrid::grid() const {
  const float low = *std::min_element(low_, low_ + tasks_), high = *std::max_element(high_, high_ + tasks_);
  const float scale = low == high ? 1.0f : (high - low) / 255.0f;
  const float zero_point = 0.0f - low / scale;
  // NaN, which an infinite range gives, becomes 255 as in ONNX Runtime.
  const float inside = zero_point < 255.0f ? (zero_point > 0.0f ? zero_point : 0.0f) : 255.0f;
  return {scale, static_cast<int32_t>(__builtin_rintf(inside))};
}

MatMulWork::MatMulWork(const MatMul& call, const Kernels& kernels)
    : call_(call),
      kernels_(kernels),
      groups_((call.m + kernels.lanes - 1) / kernels.lanes),
      tiles_(0),
      serial_(next_serial()) {
  if (groups_ == 0) return;
  const size_t most = vectors_for(*call.w, kernels, groups_);
  tiles_ = (groups_ + most - 1) / most;
}

bool MatMulWork::run(size_t task) const {
  const PackedWeights& w = *call_.w;
  const size_t tile = task / w.panels, panel = task % w.panels;
  const size_t m0 = share_begin(groups_, tile, tiles_) * kernels_.lanes;
  const size_t next = share_begin(groups_, tile + 1, tiles_) * kernels_.lanes;
  const unsigned rows = static_cast<unsigned>(std::min(next, call_.m) - m0);
  const unsigned width = static_cast<unsigned>(round_up(rows, kernels_.lanes));

  Held& held = Held::of_this_thread();
  if (held.reserve(w, width, kernels_.lanes) == nullptr) return false;
  if (held.is_new(serial_, tile)) kernels_.pack_rows(call_, m0, rows, width, held.tile);
  const size_t n0 = panel * w.panel, size = call_.y.floats ? sizeof(float) : 1;
  const unsigned char* y = call_.y.floats ? reinterpret_cast<const unsigned char*>(call_.y.floats) : call_.y.bytes;
  const Region region{y + (m0 * w.n + n0) * size, rows, std::min(w.panel, w.n - n0) * size, w.n * size};
  kernels_.panel(w, panel, call_.grid.zero_point, held.tile, width, region, held.starts, held.sums);
  kernels_.finish_rows(call_, m0, rows, width, panel, held.sums, held.factors, held.lines);
  return true;
}

}  // namespace graphopt::sparse_int8
