// The packed matrix as bytes: header, sections, validation.
#pragma once
#include <cstddef>

#include "base/blob.h"
#include "sparse_matmul/contract.h"

namespace graphopt::sparse_matmul {

// Header, little-endian, at byte 0; sections follow it in this order, each starting at a multiple of 64 bytes.
//   0  char[8] "GOSPMM\r\n"            48 uint64 runs in all
//   8  uint32 format version (2)        56 uint64 listed rows in all
//  12  uint32 header bytes (128)        64 uint64 offset of blocks
//  16  uint64 bytes in all              72 uint64 offset of runs
//  24  uint64 K                         80 uint64 offset of rows
//  32  uint64 N                         88 uint64 offset of indices
//  40  uint64 entries                   96 uint64 offset of values
// 104  uint32 k_block, 108 uint32 panel_rows, 112 uint32 block_rows (1, 4, 8, 16), 116 uint32 zero
// 120  uint64 FNV-1a hash (64 bit) of bytes 0..119
// Strips have no runs and no listed rows, and panels of whole blocks of the tallest form.
constexpr unsigned format_version = 2;
constexpr size_t header_bytes = 128;

// Checks every field, pointer and index of `size` bytes at `data`, which may be unaligned, and fills `out` with pointers
// into them. False with a message of at most `message_size` bytes if anything does not hold; nothing outside the bytes
// is ever read.
bool parse(const unsigned char* data, size_t size, PackedMatrix* out, char* message, size_t message_size);

}  // namespace graphopt::sparse_matmul
