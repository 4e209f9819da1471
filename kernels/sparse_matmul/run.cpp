#include "sparse_matmul/run.h"

#include <atomic>

#include "base/scratch.h"

namespace graphopt::sparse_matmul {
namespace {

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

// The scratch of one thread and the tile that it holds transposed. Tasks of one tile mostly follow each other on a
// thread, which then transposes the tile once.
struct Tile {
  Scratch memory;
  unsigned long long grown = 0;   // of the memory when it was filled
  unsigned long long serial = 0;  // of the call; 0 is none
  size_t tile = 0;
};

thread_local Tile held;

unsigned long long next_serial() {
  static std::atomic<unsigned long long> last{0};
  return ++last;
}

constexpr size_t tile_bytes = 512 * 1024;  // of x, which then stays in L2 while the strips pass

const Kernels& kernels_of(Isa isa) {
  static const IsaTable<Kernels> table = [] {
    IsaTable<Kernels> made;
    made.set(Isa::scalar, scalar_kernels());
#if defined(GRAPHOPT_X86)
    made.set(Isa::avx2, avx2_kernels()).set(Isa::avx512, avx512_kernels());
#elif defined(GRAPHOPT_ARM64)
    made.set(Isa::neon, neon_kernels());
#endif
    return made;
  }();
  return table.best(isa);
}

// Whole steps of rows are shared out evenly: 13 of them over 4 tiles go as 4, 3, 3, 3.
size_t first_step(size_t tile, size_t steps, size_t tiles) { return (tile * steps + tiles - 1) / tiles; }

}  // namespace

Choice choose(Isa isa, const PackedMatrix& w, size_t m) {
  const Kernels* kernels = &kernels_of(isa);
  if (w.block_rows == 1) {
    if (m <= kernels->vectors_up_to) return {kernels, &kernels->vector, 1};
    // Half of sixteen lanes would be idle, and narrow vectors are loaded twice as fast.
    if (kernels->lanes == 16 && m <= 8) kernels = &kernels_of(isa_below(Isa::avx512));
    return {kernels, &kernels->tile, kernels->tile.most_rows};
  }
  const int form = strip_form(w.block_rows);
  const Method* method = m <= kernels->direct[form].most_rows  ? &kernels->direct[form]
                         : m <= kernels->columns_up_to[form] ? &kernels->columns[form]
                                                              : &kernels->rows[form];
  const bool wide = method == &kernels->rows[form] && w.k * method->most_rows * sizeof(float) > tile_bytes;
  return {kernels, method, wide ? kernels->lanes : method->most_rows};
}

Work::Work(const Call& call, const Choice& choice)
    : call_(call),
      choice_(choice),
      steps_((call.m + choice.method->row_step - 1) / choice.method->row_step),
      tiles_((call.m + choice.most_rows - 1) / choice.most_rows),
      serial_(next_serial()) {}

bool Work::run(size_t task) const {
  const PackedMatrix& w = *call_.w;
  const Method& method = *choice_.method;
  const size_t tile = task / w.panels, panel = task % w.panels;
  const size_t m0 = first_step(tile, steps_, tiles_) * method.row_step;
  const size_t next = first_step(tile + 1, steps_, tiles_) * method.row_step;
  const unsigned rows = static_cast<unsigned>((next < call_.m ? next : call_.m) - m0);
  if (!method.transposed) {
    method.run(call_, m0, rows, panel, nullptr, nullptr);
    return true;
  }
  const size_t lanes = choice_.kernels->lanes;
  const size_t width = round_up(rows, lanes);
  const size_t packed = width * round_up(w.k, lanes);
  const size_t sums_rows = method.sums == Method::Sums::panel   ? round_up(w.panel_rows, lanes)
                           : method.sums == Method::Sums::lanes ? sums_in_lanes * lanes
                                                                : 0;
  float* memory = static_cast<float*>(held.memory.reserve((packed + width * sums_rows) * sizeof(float)));
  if (memory == nullptr) return false;
  if (held.serial != serial_ || held.tile != tile || held.grown != held.memory.grown) {
    choice_.kernels->pack(call_, m0, rows, memory);
    held.serial = serial_;
    held.tile = tile;
    held.grown = held.memory.grown;
  }
  method.run(call_, m0, rows, panel, memory, memory + packed);
  return true;
}

}  // namespace graphopt::sparse_matmul
