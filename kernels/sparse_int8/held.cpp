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

unsigned char* Held::reserve(const PackedWeights& w, size_t width, size_t lanes) {
  const size_t packed = width * round_up(w.k, 16), per_output = round_up(w.panel + 4, 16), size = sizeof(int32_t);
  tile = static_cast<unsigned char*>(memory_.reserve(packed + (width + 2 + lanes) * per_output * size));
  if (tile == nullptr) return nullptr;
  sums = reinterpret_cast<int32_t*>(tile + packed);
  lines = sums + width * per_output;
  starts = lines + lanes * per_output;
  factors = reinterpret_cast<float*>(starts + per_output);
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
