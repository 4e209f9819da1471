// The scratch of one thread and the tile that it holds. Tasks of one tile mostly follow each other on a thread, which
// then packs the tile once.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/scratch.h"
#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {

// A number that tells the tiles of a call from those of every other.
unsigned long long next_serial();

class Held {
 public:
  // Room for a tile of `width` positions and for what a panel needs; nullptr if there is no memory.
  unsigned char* reserve(const PackedWeights& w, size_t width, size_t lanes);

  // True once for every tile of every call.
  bool is_new(unsigned long long serial, size_t tile);

  // Within the room.
  unsigned char* tile = nullptr;
  int32_t* sums = nullptr;
  int32_t* starts = nullptr;
  float* factors = nullptr;
  int32_t* lines = nullptr;

  static Held& of_this_thread();

 private:
  Scratch memory_;
  unsigned long long grown_ = 0;   // of the memory when it was filled
  unsigned long long serial_ = 0;  // of the call; 0 is none
  size_t tile_ = 0;
};

// Task `part` of `parts` gets the items from the first to the second: 13 of them over 4 parts go as 4, 3, 3, 3.
constexpr size_t share_begin(size_t items, size_t part, size_t parts) { return (part * items + parts - 1) / parts; }

}  // namespace graphopt::sparse_int8
