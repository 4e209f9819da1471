#include "low_bit_matmul/packed.h"

#include "base/blob.h"

namespace graphopt::low_bit_matmul {
namespace {

constexpr uint64_t max_dimension = uint64_t{1} << 31;

class Reader : BlobReader {
 public:
  using BlobReader::BlobReader;

  bool read(PackedMatrix* out) { return read_sizes(out) && read_levels(out) && read_streams(out); }

 private:
  bool read_sizes(PackedMatrix* out) {
    if (!header("GOLOWB\r\n", format_version, header_bytes)) return false;
    bool reserved = field<uint32_t>(60) != 0;
    for (size_t at = 136; at < header_bytes - 8; ++at) reserved |= field<uint8_t>(at) != 0;
    if (reserved) return refuse("a reserved field is not as version %u has it", format_version);

    const uint64_t k = field<uint64_t>(24), n = field<uint64_t>(32);
    if (k == 0 || n == 0 || k >= max_dimension || n >= max_dimension)
      return refuse("K or N is zero or not below 2^31");
    const uint32_t bits = field<uint32_t>(40), block = field<uint32_t>(44);
    if (bits != 1 && bits != 2 && bits != 3 && bits != 4 && bits != 8)
      return refuse("codes of %u bits; they must have 1, 2, 3, 4 or 8", bits);
    const bool small = block == 16 && (bits == 2 || bits == 4 || bits == 8);
    if (!small && (block == 0 || block % 32 != 0 || block > max_block))
      return refuse("blocks of %u with %u bits; they must be multiples of 32 up to %u, or 16 with 2, 4 or 8 bits", block,
                    bits, max_block);
    out->k = static_cast<size_t>(k);
    out->n = static_cast<size_t>(n);
    out->bits = bits;
    out->block = block;
    out->blocks = (out->k + block - 1) / block;
    out->panels = (out->n + panel_columns - 1) / panel_columns;
    return true;
  }

  bool read_levels(PackedMatrix* out) {
    const uint32_t zeros = field<uint32_t>(48), zero = field<uint32_t>(52), levels = field<uint32_t>(56);
    if (zeros > 2) return refuse("zeros of kind %u; it must be 0, 1 or 2", zeros);
    if (zero > 255 || (zeros != 0 && zero != 0))
      return refuse("a constant zero of %u beside zeros of kind %u", zero, zeros);
    if (levels > 2) return refuse("levels of kind %u; it must be 0, 1 or 2", levels);
    out->zeros = static_cast<Zeros>(zeros);
    out->zero = static_cast<int>(zero);
    out->levels = static_cast<Levels>(levels);
    if (levels != 0 && (out->bits == 8 || out->bits == 1 || out->block == 16))
      return refuse("a book for codes of %u bits in blocks of %zu; it must be for 2, 3 or 4 bits and larger blocks",
                    out->bits, out->block);
    for (unsigned i = 0; i < book_size; ++i) {
      const float level = field<float>(64 + 4 * i);
      const bool used = levels != 0 && i < 1u << out->bits;
      if (!(level - level == 0.0f) || (!used && level != 0.0f)) return refuse("entry %u of the book is not a number", i);
      const bool fits = level >= 0.0f && level <= 255.0f && level == static_cast<float>(static_cast<int>(level));
      if (out->levels == Levels::bytes && !fits)
        return refuse("entry %u of the book is no integer from 0 to 255", i);
      out->book[i] = level;
    }
    return true;
  }

  bool read_streams(PackedMatrix* out) {
    // Below 2^31 / 16 blocks and 2^31 / 64 panels of at most 2^17 bytes per block.
    const uint64_t blocks = static_cast<uint64_t>(out->blocks) * out->panels;
    if (blocks >= uint64_t{1} << 40) return refuse("too many blocks");
    return section(128, blocks * block_bytes(*out), &out->streams, "streams") && end();
  }
};

}  // namespace

bool parse(const unsigned char* data, size_t size, PackedMatrix* out, char* message, size_t message_size) {
  return Reader(data, size, message, message_size).read(out);
}

}  // namespace graphopt::low_bit_matmul
