#include "low_bit_matmul/run.h"

#include "base/scratch.h"

namespace graphopt::low_bit_matmul {
namespace {

constexpr size_t rounding_task = size_t{1} << 15;  // numbers that are worth a task
constexpr size_t product_task = size_t{1} << 18;   // products that are worth a task
constexpr size_t enough_tasks = 16;

thread_local Scratch scratch;

size_t parts(size_t total, size_t per_part) { return (total + per_part - 1) / per_part; }

// Tiles lie one behind the other, each at a multiple of 64; those of one slab have at most one row more or less.
size_t tile_at(const PackedMatrix& w, const Tiles& tiles, size_t tile) {
  return tile * tile_bytes(w, (tiles.rows + tiles.count - 1) / tiles.count);
}

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

unsigned char* rounded_rows(const Call& call, const Kernels& kernels) {
  const Tiles tiles(call.m < slab_rows ? call.m : slab_rows, kernels.max_rows);
  return static_cast<unsigned char*>(scratch.reserve(tile_at(*call.w, tiles, tiles.count)));
}

Rounding::Rounding(const Call& call, const Kernels& kernels, size_t m0, size_t rows, unsigned char* rounded)
    : call_(call), kernels_(kernels), m0_(m0), tiles_(rows, kernels.max_rows), rounded_(rounded) {
  const size_t most = parts(rows * call.w->k, rounding_task);
  tasks_ = tiles_.count < most ? tiles_.count : most;
}

bool Rounding::run(size_t task) const {
  for (size_t tile = task * tiles_.count / tasks_; tile < (task + 1) * tiles_.count / tasks_; ++tile)
    kernels_.round(call_, m0_ + tiles_.start(tile), tiles_.size(tile), rounded_ + tile_at(*call_.w, tiles_, tile));
  return true;
}

Product::Product(const Call& call, const Kernels& kernels, size_t m0, size_t rows, const unsigned char* rounded)
    : call_(call),
      kernels_(kernels),
      m0_(m0),
      tiles_(rows, rounded ? kernels.max_rows : kernels.max_float_rows),
      rounded_(rounded) {
  const size_t panels = call.w->panels;
  const size_t most = parts(rows * call.w->k * panels * panel_columns, product_task);
  panel_tasks_ = panels < most ? panels : most;
  row_tasks_ = parts(enough_tasks, panel_tasks_);
  if (row_tasks_ > tiles_.count) row_tasks_ = tiles_.count;
  if (row_tasks_ > parts(most, panel_tasks_)) row_tasks_ = parts(most, panel_tasks_);
}

bool Product::run(size_t task) const {
  const size_t panels = call_.w->panels;
  const size_t panel_task = task / row_tasks_, row_task = task % row_tasks_;
  const size_t first_tile = row_task * tiles_.count / row_tasks_, end_tile = (row_task + 1) * tiles_.count / row_tasks_;
  for (size_t panel = panel_task * panels / panel_tasks_; panel < (panel_task + 1) * panels / panel_tasks_; ++panel) {
    for (size_t tile = first_tile; tile < end_tile; ++tile) {
      const size_t m0 = m0_ + tiles_.start(tile);
      if (rounded_ != nullptr) {
        kernels_.panel(call_, m0, tiles_.size(tile), panel, rounded_ + tile_at(*call_.w, tiles_, tile));
      } else {
        kernels_.panel_float(call_, m0, tiles_.size(tile), panel);
      }
    }
  }
  return true;
}

}  // namespace graphopt::low_bit_matmul
