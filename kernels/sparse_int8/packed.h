// The packed weights as bytes: header, sections, validation. See base/blob.h for what all formats share.
#pragma once
#include <cstddef>

#include "sparse_int8/contract.h"

namespace graphopt::sparse_int8 {

// Header of 128 bytes after the common fields; sections follow it in the order of their offsets.
//  24  uint32 K          40  uint32 panel             56  uint64 offset of scales   80  uint64 offset of blocks
//  28  uint32 N          44  uint32 zero              64  uint64 offset of fixes    88  uint64 offset of groups
//  32  uint32 unit       48  uint64 steps             72  uint64 offset of totals   96  uint64 offset of indices
//  36  uint32 k_block   112  uint64 groups                                         104  uint64 offset of values
constexpr unsigned format_version = 1;

// Checks every field, pointer and index of `size` bytes at `data`, which may be unaligned, and fills `out` with pointers
// into them. False with a message of at most `message_size` bytes if anything does not hold; nothing outside the bytes
// is ever read.
bool parse(const unsigned char* data, size_t size, PackedWeights* out, char* message, size_t message_size);

}  // namespace graphopt::sparse_int8
