#include "sparse_int8/held.h"

#include <atomic>

namespace graphopt::sparse_int8 {
namespace {

thread_local Held held;

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

}  // namespace

unsigned long long next_serial() {
  static std::atomic<unsigned long long> last{0};
  return ++last;
}

Held& Held::of_this_thread() { return held; }

unsigned char* Held::reserve(const PackedWeights& w, size_t width) {
  const size_t packed = width * round_up(w.k, 16), sum_bytes = width * (w.panel + 4) * sizeof(int32_t);
  const size_t per_output = (w.panel + 16) * sizeof(int32_t);
  tile = static_cast<unsigned char*>(memory_.reserve(packed + sum_bytes + 2 * per_output));
  if (tile == nullptr) return nullptr;
  sums = reinterpret_cast<int32_t*>(tile + packed);
  starts = sums + width * (w.panel + 4);
  factors = reinterpret_cast<float*>(starts + w.panel + 16);
  return tile;
}

bool Held::is_new(unsigned long long serial, size_t tile) {
  if (serial_ == serial && tile_ == tile && grown_ == memory_.grown) return false;
  serial_ = serial;
  tile_ = tile;
  grown_ = memory_.grown;
  return true;
}

}  // namespace graphopt::sparse_int8
