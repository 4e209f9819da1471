// Packed weights as bytes: what all their formats have alike, and how it is checked.
//
// A header, then sections, each starting at a multiple of 64 bytes; all numbers are little-endian:
//   0  char[8] of the format             12  uint32 header bytes
//   8  uint32 format version             16  uint64 bytes in all
//  24  fields of the format; the last 8 bytes of the header are the FNV-1a hash (64 bit) of those before them
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace graphopt {

constexpr size_t section_alignment = 64;

template <class T>
T load_as(const unsigned char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Reads bytes that nobody vouches for. Nothing outside `size` bytes at `data` is ever read; `data` may be unaligned.
class BlobReader {
 public:
  BlobReader(const unsigned char* data, size_t size, char* message, size_t message_size);

  // Writes the message; always false.
  __attribute__((format(printf, 2, 3))) bool refuse(const char* format, ...);

  // False unless the common fields are those of this format and the hash is right. `header_bytes` is a multiple of 64.
  bool header(const char (&magic)[9], uint32_t version, size_t header_bytes);

  // A field of the header, at its offset from the start.
  template <class T>
  T field(size_t offset) const {
    return load_as<T>(data_ + offset);
  }

  // Places the next section of so many bytes and requires the header to have its offset in this field.
  bool section(size_t field_offset, uint64_t bytes, const unsigned char** start, const char* name);

  // False if bytes are left over.
  bool end();

 private:
  const unsigned char* data_;
  size_t size_;
  char* message_;
  size_t message_size_;
  uint64_t at_ = 0;   // where the next section starts
  uint64_t end_ = 0;  // of the last section
};

}  // namespace graphopt
