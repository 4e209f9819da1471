#include "low_bit_matmul/run.h"

#include "base/scratch.h"

namespace graphopt::low_bit_matmul {
namespace {

constexpr size_t rounding_task = size_t{1} << 15;  // numbers that are worth a task
constexpr size_t product_task = size_t{1} << 18;   // products that are worth a task
constexpr size_t enough_tasks = 16;

thread_local Scratch scratch;

size_t parts(size_t total, size_t per_part) { return (total + per_part - 1) / per_part; }

}  // namespace

const Kernels& kernels_for(Isa isa) {
  static const IsaTable<Kernels> table = [] {
    IsaTable<Kernels> made;
    made.set(Isa::scalar, scalar_kernels());
#if defined(GRAPHOPT_X86)
    made.set(Isa::avx2, avx2_kernels());
#if defined(GRAPHOPT_HAS_AVXVNNI)
    made.set(Isa::avxvnni, avxvnni_kernels());
#endif
    made.set(Isa::avx512vnni, avx512vnni_kernels());
#elif defined(GRAPHOPT_ARM64)
    made.set(Isa::neon, neon_kernels());
    made.set(Isa::neon_dotprod, dotprod_kernels());
#endif
    return made;
  }();
  return table.best(isa);
}

Rounded rounded_rows(const Call& call, const Kernels& kernels, size_t m0) {
  Rounded x{nullptr, m0, call.m - m0 < slab_rows ? call.m - m0 : slab_rows, 0, 0};
  const bool lookup = looks_up(*call.w, kernels, x.rows);
  x.count = parts(x.rows, lookup ? 1 : kernels.max_rows);
  x.stride = records_bytes(*call.w, parts(x.rows, x.count));
  if (lookup) x.stride += call.w->blocks * call.w->block * lookup_bytes;
  x.tiles = static_cast<unsigned char*>(scratch.reserve(x.count * x.stride));
  return x;
}

Rounding::Rounding(const Call& call, const Kernels& kernels, const Rounded& x) : call_(call), kernels_(kernels), x_(x) {
  const size_t most = parts(x.rows * call.w->k, rounding_task);
  tasks_ = x.count < most ? x.count : most;
}

bool Rounding::run(size_t task) const {
  for (size_t tile = task * x_.count / tasks_; tile < (task + 1) * x_.count / tasks_; ++tile)
    kernels_.round(call_, x_, tile);
  return true;
}

Product::Product(const Call& call, const Kernels& kernels, const Rounded& x) : call_(call), kernels_(kernels), x_(x) {
  share_out();
}

Product::Product(const Call& call, const Kernels& kernels)
    : call_(call), kernels_(kernels), x_{nullptr, 0, call.m, parts(call.m, kernels.max_float_rows), 0} {
  share_out();
}

void Product::share_out() {
  const size_t panels = call_.w->panels;
  const size_t most = parts(x_.rows * call_.w->k * panels * panel_columns, product_task);
  if (x_.tiles != nullptr && looks_up(*call_.w, kernels_, x_.rows)) group_ = lookup_panels;
  const size_t groups = parts(panels, group_);
  panel_tasks_ = groups < most ? groups : most;
  row_tasks_ = parts(enough_tasks, panel_tasks_);
  if (row_tasks_ > x_.count) row_tasks_ = x_.count;
  if (row_tasks_ > parts(most, panel_tasks_)) row_tasks_ = parts(most, panel_tasks_);
}

bool Product::run(size_t task) const {
  const size_t panels = call_.w->panels;
  const size_t panel_task = task / row_tasks_, row_task = task % row_tasks_;
  const size_t first = row_task * x_.count / row_tasks_, end = (row_task + 1) * x_.count / row_tasks_;
  const size_t groups = parts(panels, group_), last = (panel_task + 1) * groups / panel_tasks_ * group_;
  const size_t panel_end = last < panels ? last : panels;
  size_t panel = panel_task * groups / panel_tasks_ * group_;
  if (x_.tiles != nullptr) {
    kernels_.panels(call_, x_, first, end, panel, panel_end);
    return true;
  }
  for (; panel < panel_end; ++panel) {
    for (size_t tile = first; tile < end; ++tile) kernels_.panel_float(call_, x_.start(tile), x_.size(tile), panel);
  }
  return true;
}

}  // namespace graphopt::low_bit_matmul
