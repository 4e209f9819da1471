// Memory of one thread, kept between calls.
#pragma once
#include <cstddef>
#include <cstdlib>

namespace graphopt {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

  // Room for `bytes` at an address that is a multiple of 64, or nullptr. What was there before is lost if it grows;
  // `grown` then differs from what it was.
  void* reserve(size_t bytes) {
    if (bytes > capacity_) {
      std::free(memory_);
      capacity_ = (bytes + 4095) / 4096 * 4096;
      memory_ = std::aligned_alloc(64, capacity_);
      if (memory_ == nullptr) capacity_ = 0;
      ++grown;
    }
    return memory_;
  }

  unsigned long long grown = 0;

 private:
  void* memory_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace graphopt
