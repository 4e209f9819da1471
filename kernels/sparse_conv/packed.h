// The bytes of a packed convolution weight, format version 1; see contract.h for their meaning and base/blob.h for what
// all formats have alike. Header:
//   0  char[8] "GOSPCV\r\n"            64  uint64 entries               128  uint32 block
//   8  uint32 format version           72  uint64 runs                  132  uint32 k_block
//  12  uint32 header bytes             80  uint64 listed rows           136  uint32 panel_rows
//  16  uint64 bytes in all             88  uint64 offset of parts       140  uint32 group_rows
//  24  uint64 output channels          96  uint64 offset of runs        144  zeros
//  32  uint64 groups                  104  uint64 offset of listed rows 184  uint64 hash
//  40  uint64 input channels a group  112  uint64 offset of indices
//  48  uint64 kernel height           120  uint64 offset of values
//  56  uint64 kernel width
#pragma once
#include <cstddef>

#include "sparse_conv/contract.h"

namespace graphopt::sparse_conv {

constexpr unsigned format_version = 1;
constexpr size_t header_bytes = 192;

// False with a message unless every size, offset and index is as the format says. Nothing outside is read.
bool parse(const unsigned char* data, size_t size, PackedConv* out, char* message, size_t message_size);

}  // namespace graphopt::sparse_conv
