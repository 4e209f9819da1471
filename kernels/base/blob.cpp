#include "base/blob.h"

#include <cstdarg>
#include <cstdio>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "packed weights are little-endian and used in place"
#endif

namespace graphopt {
namespace {

uint64_t fnv1a(const unsigned char* data, size_t size) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * 0x100000001b3u;
  return hash;
}

}  // namespace

BlobReader::BlobReader(const unsigned char* data, size_t size, char* message, size_t message_size)
    : data_(data), size_(size), message_(message), message_size_(message_size) {}

bool BlobReader::refuse(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message_, message_size_, format, arguments);
  va_end(arguments);
  return false;
}

bool BlobReader::header(const char (&magic)[9], uint32_t version, size_t header_bytes) {
  if (size_ < header_bytes) return refuse("%zu bytes are shorter than the header, which has %zu", size_, header_bytes);
  if (std::memcmp(data_, magic, 8) != 0) return refuse("the first 8 bytes are not those of this packed format");
  if (field<uint32_t>(8) != version)
    return refuse("format version %u; this library reads version %u", field<uint32_t>(8), version);
  if (field<uint64_t>(header_bytes - 8) != fnv1a(data_, header_bytes - 8))
    return refuse("the header does not match its hash");
  if (field<uint32_t>(12) != header_bytes) return refuse("the header's size is not as version %u has it", version);
  if (field<uint64_t>(16) != size_)
    return refuse("the header says %llu bytes and there are %zu",
                  static_cast<unsigned long long>(field<uint64_t>(16)), size_);
  at_ = end_ = header_bytes;
  return true;
}

bool BlobReader::section(size_t field_offset, uint64_t bytes, const unsigned char** start, const char* name) {
  if (field<uint64_t>(field_offset) != at_ || bytes > size_ || at_ > size_ - bytes)
    return refuse("the section of %s does not fit", name);
  *start = data_ + at_;
  end_ = at_ + bytes;
  at_ = (end_ + section_alignment - 1) / section_alignment * section_alignment;
  return true;
}

bool BlobReader::end() {
  return end_ == size_ || refuse("%llu bytes are left over", static_cast<unsigned long long>(size_ - end_));
}

}  // namespace graphopt
