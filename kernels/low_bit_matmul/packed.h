// The packed matrix as bytes: header, streams, validation.
#pragma once
#include <cstddef>

#include "base/blob.h"
#include "low_bit_matmul/contract.h"

namespace graphopt::low_bit_matmul {

// Header, little-endian, at byte 0; the streams follow it.
//   0  char[8] "GOLOWB\r\n"          40 uint32 bits             64 float[16] book, or zeros
//   8  uint32 format version (1)      44 uint32 block           128 uint64 offset of the streams
//  12  uint32 header bytes (256)      48 uint32 zeros           136 zeros
//  16  uint64 bytes in all            52 uint32 constant zero   248 uint64 FNV-1a hash (64 bit) of bytes 0..247
//  24  uint64 K                       56 uint32 levels
//  32  uint64 N                       60 uint32 zero
constexpr unsigned format_version = 1;
constexpr size_t header_bytes = 256;

// Checks every field of `size` bytes at `data`, which may be unaligned, and fills `out` with pointers into them. False
// with a message of at most `message_size` bytes if anything does not hold; nothing outside the bytes is ever read.
// Scales, zeros and codes may be anything: no number among them leads outside.
bool parse(const unsigned char* data, size_t size, PackedMatrix* out, char* message, size_t message_size);

}  // namespace graphopt::low_bit_matmul
