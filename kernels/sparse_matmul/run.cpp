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

}  // namespace

const Kernels& kernels_for(Isa isa, size_t m) {
#if defined(GRAPHOPT_X86)
  // Half of the sixteen lanes would be idle, and narrow vectors are loaded twice as fast.
  const bool narrow = m > avx512_kernels().max_vectors && m <= avx2_kernels().lanes;
  if (isa_includes(isa, Isa::avx512) && !narrow) return avx512_kernels();
  if (isa_includes(isa, Isa::avx2)) return avx2_kernels();
#endif
  (void)isa;
  (void)m;
  return scalar_kernels();
}

Work::Work(const Call& call, const Kernels& kernels)
    : call_(call),
      kernels_(kernels),
      tiles_(call.m <= kernels.max_vectors ? call.m : (call.m + kernels.max_width - 1) / kernels.max_width),
      panels_(call.w->panels),
      serial_(next_serial()) {}

bool Work::run(size_t task) const {
  const size_t tile = task / panels_, panel = task % panels_;
  if (call_.m <= kernels_.max_vectors) {
    kernels_.vector(call_, tile, panel);
    return true;
  }
  // Whole groups of lanes are shared out evenly: 13 of them over 4 tiles go as 4, 3, 3, 3.
  const size_t groups = (call_.m + kernels_.lanes - 1) / kernels_.lanes;
  const size_t m0 = (tile * groups + tiles_ - 1) / tiles_ * kernels_.lanes;
  const size_t next = ((tile + 1) * groups + tiles_ - 1) / tiles_ * kernels_.lanes;
  const unsigned rows = static_cast<unsigned>((next < call_.m ? next : call_.m) - m0);
  const size_t width = round_up(rows, kernels_.lanes);

  const size_t packed = width * round_up(call_.w->k, kernels_.lanes);
  const size_t sums = width * round_up(call_.w->panel_rows, kernels_.lanes);
  float* memory = static_cast<float*>(held.memory.reserve((packed + sums) * sizeof(float)));
  if (memory == nullptr) return false;
  if (held.serial != serial_ || held.tile != tile || held.grown != held.memory.grown) {
    kernels_.pack(call_, m0, rows, memory);
    held.serial = serial_;
    held.tile = tile;
    held.grown = held.memory.grown;
  }
  kernels_.panel(call_, m0, rows, panel, memory, memory + packed);
  return true;
}

}  // namespace graphopt::sparse_matmul
