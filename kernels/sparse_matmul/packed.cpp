#include "sparse_matmul/packed.h"

#include "base/blob.h"

namespace graphopt::sparse_matmul {
namespace {

constexpr uint64_t max_dimension = uint64_t{1} << 31;
constexpr uint64_t max_entries = uint64_t{1} << 40;  // keeps every product below far from overflow

class Reader : BlobReader {
 public:
  using BlobReader::BlobReader;

  bool read(PackedMatrix* out) {
    if (!read_header(out)) return false;
    if (out->block_rows == 1) return read_sections(out) && check_block_table(*out) && check_blocks(*out);
    return read_strip_sections(out) && check_strip_table(*out) && check_strips(*out);
  }

 private:
  bool read_header(PackedMatrix* out) {
    if (!header("GOSPMM\r\n", format_version, header_bytes)) return false;
    if (field<uint32_t>(116) != 0) return refuse("the reserved field is not as version %u has it", format_version);

    const uint64_t k = field<uint64_t>(24), n = field<uint64_t>(32), entries = field<uint64_t>(40);
    if (k == 0 || n == 0 || k >= max_dimension || n >= max_dimension)
      return refuse("K or N is zero or not below 2^31");
    const uint32_t block_rows = field<uint32_t>(112);
    if (block_rows != 1 && block_rows != 4 && block_rows != 8 && block_rows != 16)
      return refuse("blocks of %u rows; there are blocks of 1, 4, 8 and 16", block_rows);
    const uint64_t strips = (n + block_rows - 1) / block_rows;
    if (entries > max_entries || entries > k * strips) return refuse("more entries than the matrix has places");
    runs_ = field<uint64_t>(48);
    listed_rows_ = field<uint64_t>(56);
    if (block_rows == 1 && (runs_ > listed_rows_ || listed_rows_ > entries || listed_rows_ > UINT32_MAX))
      return refuse("the numbers of runs, listed rows and entries do not rise");
    if (block_rows != 1 && (runs_ != 0 || listed_rows_ != 0)) return refuse("runs or listed rows, which strips have not");

    const uint32_t k_block = field<uint32_t>(104), panel_rows = field<uint32_t>(108);
    const uint32_t most = block_rows == 1 ? max_k_block : max_strip_k_block;
    if (k_block == 0 || k_block > most) return refuse("a K-block of %u; it must be 1 to %u", k_block, most);
    if (panel_rows == 0 || panel_rows > max_panel_rows)
      return refuse("panels of %u rows; they must have 1 to %u", panel_rows, max_panel_rows);
    if (block_rows != 1 && panel_rows % tallest_block != 0)
      return refuse("panels of %u rows, which is no multiple of %u", panel_rows, tallest_block);

    out->block_rows = block_rows;
    out->strips = static_cast<size_t>(strips);
    out->k = static_cast<size_t>(k);
    out->n = static_cast<size_t>(n);
    out->entries = static_cast<size_t>(entries);
    out->k_block = k_block;
    out->k_blocks = (out->k + k_block - 1) / k_block;
    out->panel_rows = panel_rows;
    out->panels = (out->n + panel_rows - 1) / panel_rows;
    return true;
  }

  // Places each section by the counts and requires the header to say the same.
  bool read_sections(PackedMatrix* out) {
    const uint64_t blocks = static_cast<uint64_t>(out->panels) * out->k_blocks;
    if (blocks >= max_entries) return refuse("too many blocks");
    return section(64, (blocks + 1) * block_bytes, &out->blocks, "blocks") &&
           section(72, runs_ * run_bytes, &out->runs, "runs") &&
           section(80, listed_rows_ * row_bytes, &out->rows, "rows") &&
           section(88, out->entries, &out->indices, "indices") &&
           section(96, out->entries * sizeof(float), &out->values, "values") && end();
  }

  bool read_strip_sections(PackedMatrix* out) {
    const uint64_t blocks = static_cast<uint64_t>(out->strips) * out->k_blocks;
    if (blocks >= max_entries) return refuse("too many blocks");
    return section(64, (blocks + 1) * strip_bytes, &out->blocks, "blocks") && section(72, 0, &out->runs, "runs") &&
           section(80, 0, &out->rows, "rows") &&
           section(88, out->entries * strip_index_bytes, &out->indices, "indices") &&
           section(96, out->entries * out->block_rows * sizeof(float), &out->values, "values") && end();
  }

  bool check_strip_table(const PackedMatrix& w) {
    const size_t count = w.strips * w.k_blocks;
    uint64_t entry = 0;
    for (size_t b = 0; b <= count; ++b) {
      const uint64_t next = load_as<uint64_t>(w.blocks + b * strip_bytes);
      if (next < entry) return refuse("the start of block %zu lies before that of the block before it", b);
      if (b == 0 && next != 0) return refuse("block 0 does not start at 0");
      entry = next;
    }
    return entry == w.entries || refuse("the blocks do not end where the sections end");
  }

  bool check_strips(const PackedMatrix& w) {
    const size_t count = w.strips * w.k_blocks;
    size_t entry = 0;
    for (size_t b = 0; b < count; ++b) {
      const size_t k_left = w.k - b % w.k_blocks * w.k_block;
      const int width = static_cast<int>(k_left < w.k_block ? k_left : w.k_block);
      const size_t next = load_as<uint64_t>(w.blocks + (b + 1) * strip_bytes);
      for (int last = -1; entry < next; ++entry) {
        const int index = load_as<uint16_t>(w.indices + entry * strip_index_bytes);
        if (index <= last || index >= width)
          return refuse("index %d in block %zu is out of order or outside its %d columns", index, b, width);
        last = index;
      }
    }
    return true;
  }

  bool check_block_table(const PackedMatrix& w) {
    const size_t count = w.panels * w.k_blocks;
    uint64_t entry = 0;
    uint32_t run = 0, row = 0;
    for (size_t b = 0; b <= count; ++b) {
      const unsigned char* at = w.blocks + b * block_bytes;
      const uint64_t next_entry = load_as<uint64_t>(at);
      const uint32_t next_run = load_as<uint32_t>(at + 8), next_row = load_as<uint32_t>(at + 12);
      if (next_entry < entry || next_run < run || next_row < row)
        return refuse("the starts of block %zu lie before those of the block before it", b);
      if (b == 0 && (next_entry != 0 || next_run != 0 || next_row != 0)) return refuse("block 0 does not start at 0");
      entry = next_entry;
      run = next_run;
      row = next_row;
    }
    if (entry != w.entries || run != runs_ || row != listed_rows_)
      return refuse("the blocks do not end where the sections end");
    return true;
  }

  bool check_blocks(const PackedMatrix& w) {
    for (size_t panel = 0; panel < w.panels; ++panel) {
      const size_t rows_left = w.n - panel * w.panel_rows;
      const size_t panel_rows = rows_left < w.panel_rows ? rows_left : w.panel_rows;
      for (size_t kb = 0; kb < w.k_blocks; ++kb) {
        const size_t k_left = w.k - kb * w.k_block;
        const size_t width = k_left < w.k_block ? k_left : w.k_block;
        if (!check_block(w, panel * w.k_blocks + kb, panel_rows, width)) return false;
      }
    }
    return true;
  }

  bool check_block(const PackedMatrix& w, size_t block, size_t panel_rows, size_t width) {
    const unsigned char* here = w.blocks + block * block_bytes;
    const unsigned char* next = here + block_bytes;
    uint64_t entry = load_as<uint64_t>(here);
    uint64_t row = load_as<uint32_t>(here + 12);
    const uint64_t entry_end = load_as<uint64_t>(next), row_end = load_as<uint32_t>(next + 12);
    unsigned char seen[(max_panel_rows + 7) / 8] = {};
    for (uint32_t run = load_as<uint32_t>(here + 8), end = load_as<uint32_t>(next + 8); run < end; ++run) {
      const unsigned char* at = w.runs + size_t{run} * run_bytes;
      const uint64_t per_row = load_as<uint16_t>(at), rows = load_as<uint16_t>(at + 2);
      if (per_row == 0 || per_row > width || rows == 0)
        return refuse("run %u of block %zu has no rows, no entries, or more entries than columns", run, block);
      if (rows > row_end - row || per_row * rows > entry_end - entry)
        return refuse("run %u reaches beyond block %zu", run, block);
      int last = -1;
      for (uint64_t i = 0; i < rows; ++i) {
        const int r = load_as<uint16_t>(w.rows + (row + i) * row_bytes);
        if (r <= last || static_cast<size_t>(r) >= panel_rows)
          return refuse("row %d in block %zu is out of order or outside its panel of %zu rows", r, block, panel_rows);
        if ((seen[r / 8] >> r % 8 & 1) != 0) return refuse("row %d in block %zu is in two runs", r, block);
        seen[r / 8] = static_cast<unsigned char>(seen[r / 8] | 1u << r % 8);
        last = r;
      }
      row += rows;
      entry += per_row * rows;
    }
    if (row != row_end || entry != entry_end) return refuse("the runs of block %zu do not fill it", block);

    unsigned highest = 0;
    for (uint64_t i = load_as<uint64_t>(here); i < entry_end; ++i) {
      if (w.indices[i] > highest) highest = w.indices[i];
    }
    if (highest >= width && entry_end > load_as<uint64_t>(here))
      return refuse("index %u in block %zu is outside its %zu columns", highest, block, width);
    return true;
  }

  uint64_t runs_ = 0, listed_rows_ = 0;
};

}  // namespace

bool parse(const unsigned char* data, size_t size, PackedMatrix* out, char* message, size_t message_size) {
  return Reader(data, size, message, message_size).read(out);
}

}  // namespace graphopt::sparse_matmul
