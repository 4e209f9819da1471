#include "sparse_conv/packed.h"

#include "base/blob.h"

namespace graphopt::sparse_conv {
namespace {

constexpr uint64_t max_dimension = uint64_t{1} << 31;
constexpr uint64_t max_count = uint64_t{1} << 40;  // keeps every product below far from overflow

class Reader {
 public:
  Reader(const unsigned char* data, size_t size, char* message, size_t message_size)
      : blob_(data, size, message, message_size) {}

  bool read(PackedConv* out) {
    return blob_.header("GOSPCV\r\n", format_version, header_bytes) && read_sizes(out) && read_blocking(out) &&
           read_sections(out) && check_part_table(*out) && check_parts(*out);
  }

 private:
  bool read_sizes(PackedConv* out) {
    const uint64_t out_channels = blob_.field<uint64_t>(24), groups = blob_.field<uint64_t>(32),
                   in_channels = blob_.field<uint64_t>(40), kernel_h = blob_.field<uint64_t>(48),
                   kernel_w = blob_.field<uint64_t>(56);
    const uint64_t sizes[] = {out_channels, groups, in_channels, kernel_h, kernel_w};
    for (const uint64_t size : sizes) {
      if (size == 0 || size >= max_dimension) return blob_.refuse("a size of the weight is zero or not below 2^31");
    }
    if (out_channels % groups != 0)
      return blob_.refuse("the output channels are not a multiple of the %llu groups",
                          static_cast<unsigned long long>(groups));
    if (kernel_h * kernel_w >= max_dimension || in_channels * (kernel_h * kernel_w) >= max_dimension)
      return blob_.refuse("a row of the weight has 2^31 columns or more");
    for (size_t at = 144; at < header_bytes - 8; at += 8) {
      if (blob_.field<uint64_t>(at) != 0) return blob_.refuse("a reserved field is not zero");
    }
    out->out_channels = static_cast<size_t>(out_channels);
    out->groups = static_cast<size_t>(groups);
    out->in_channels = static_cast<size_t>(in_channels);
    out->kernel_h = static_cast<size_t>(kernel_h);
    out->kernel_w = static_cast<size_t>(kernel_w);
    out->k = out->in_channels * out->taps();
    return true;
  }

  bool read_blocking(PackedConv* out) {
    const size_t block = blob_.field<uint32_t>(128), k_block = blob_.field<uint32_t>(132),
                 panel_rows = blob_.field<uint32_t>(136);
    if (block != 1 && block != 4 && block != 8) return blob_.refuse("blocks of %zu channels; they have 1, 4 or 8", block);
    if (k_block == 0 || k_block > max_k_block)
      return blob_.refuse("a K-block of %zu; it must be 1 to %zu", k_block, max_k_block);
    if (panel_rows == 0 || panel_rows > max_panel_rows)
      return blob_.refuse("panels of %zu rows; they must have 1 to %zu", panel_rows, max_panel_rows);
    if (blob_.field<uint32_t>(140) != group_rows) return blob_.refuse("groups that do not have %u rows", group_rows);
    out->block = block;
    out->rows = (out->group_out() + block - 1) / block;
    out->k_block = k_block;
    out->k_blocks = (out->k + k_block - 1) / k_block;
    out->panel_rows = panel_rows;
    out->panels = (out->rows + panel_rows - 1) / panel_rows;

    const uint64_t entries = blob_.field<uint64_t>(64), all_rows = static_cast<uint64_t>(out->groups) * out->rows;
    runs_ = blob_.field<uint64_t>(72);
    listed_ = blob_.field<uint64_t>(80);
    if (entries > max_count || entries > all_rows * out->k) return blob_.refuse("more entries than the weight has places");
    if (all_rows * out->k_blocks > UINT32_MAX || listed_ != all_rows * out->k_blocks)
      return blob_.refuse("the number of listed rows is not that of rows and K-blocks");
    if (runs_ > listed_) return blob_.refuse("more runs than listed rows");
    out->entries = static_cast<size_t>(entries);
    return true;
  }

  bool read_sections(PackedConv* out) {
    const uint64_t parts = static_cast<uint64_t>(out->groups) * out->panels * out->k_blocks;
    return blob_.section(88, (parts + 1) * part_bytes, &out->parts, "parts") &&
           blob_.section(96, runs_ * run_bytes, &out->runs, "runs") &&
           blob_.section(104, listed_ * 2, &out->listed, "listed rows") &&
           blob_.section(112, static_cast<uint64_t>(out->entries) * 2, &out->indices, "indices") &&
           blob_.section(120, static_cast<uint64_t>(out->entries) * out->block * sizeof(float), &out->values, "values") &&
           blob_.end();
  }

  bool check_part_table(const PackedConv& w) {
    const size_t count = w.groups * w.panels * w.k_blocks;
    uint64_t entry = 0;
    uint32_t run = 0, row = 0;
    for (size_t part = 0; part <= count; ++part) {
      const unsigned char* at = w.parts + part * part_bytes;
      const uint64_t next_entry = load_as<uint64_t>(at);
      const uint32_t next_run = load_as<uint32_t>(at + 8), next_row = load_as<uint32_t>(at + 12);
      if (next_entry < entry || next_run < run || next_row < row)
        return blob_.refuse("the starts of part %zu lie before those of the part before it", part);
      if (part == 0 && (next_entry != 0 || next_run != 0 || next_row != 0))
        return blob_.refuse("part 0 does not start at 0");
      entry = next_entry;
      run = next_run;
      row = next_row;
    }
    return (entry == w.entries && run == runs_ && row == listed_) ||
           blob_.refuse("the parts do not end where the sections end");
  }

  bool check_parts(const PackedConv& w) {
    size_t part = 0;
    for (size_t panel = 0; panel < w.groups * w.panels; ++panel) {
      const size_t rows_left = w.rows - panel % w.panels * w.panel_rows;
      const size_t panel_rows = rows_left < w.panel_rows ? rows_left : w.panel_rows;
      for (size_t kb = 0; kb < w.k_blocks; ++kb, ++part) {
        const size_t k_left = w.k - kb * w.k_block;
        if (!check_part(w, part, panel_rows, k_left < w.k_block ? k_left : w.k_block)) return false;
      }
    }
    return true;
  }

  bool check_part(const PackedConv& w, size_t part, size_t panel_rows, size_t width) {
    const unsigned char* here = w.parts + part * part_bytes;
    const unsigned char* next = here + part_bytes;
    uint64_t entry = load_as<uint64_t>(here);
    size_t row = load_as<uint32_t>(here + 12);
    const uint64_t entry_end = load_as<uint64_t>(next);
    const size_t row_end = load_as<uint32_t>(next + 12);
    if (row_end - row != panel_rows)
      return blob_.refuse("part %zu lists %zu rows and its panel has %zu", part, row_end - row, panel_rows);

    unsigned char seen[(max_panel_rows + 8) / 8] = {};
    for (uint32_t run = load_as<uint32_t>(here + 8), end = load_as<uint32_t>(next + 8); run < end; ++run) {
      const unsigned char* at = w.runs + size_t{run} * run_bytes;
      const uint64_t per_row = load_as<uint32_t>(at), rows = load_as<uint32_t>(at + 4);
      if (per_row > width || rows == 0)
        return blob_.refuse("run %u of part %zu has no rows or more entries than columns", run, part);
      if (rows > row_end - row || per_row * rows > entry_end - entry)
        return blob_.refuse("run %u reaches beyond part %zu", run, part);
      for (size_t i = 0; i < rows; ++i) {
        const size_t r = load_as<uint16_t>(w.listed + (row + i) * 2);
        if (r >= panel_rows || (seen[r / 8] >> r % 8 & 1) != 0)
          return blob_.refuse("row %zu in part %zu is listed twice or outside its panel of %zu rows", r, part, panel_rows);
        seen[r / 8] = static_cast<unsigned char>(seen[r / 8] | 1u << r % 8);
      }
      row += static_cast<size_t>(rows);
      entry += per_row * rows;
    }
    if (row != row_end || entry != entry_end) return blob_.refuse("the runs of part %zu do not fill it", part);

    size_t highest = 0;
    for (uint64_t i = load_as<uint64_t>(here); i < entry_end; ++i) {
      const size_t index = load_as<uint16_t>(w.indices + i * 2);
      if (index > highest) highest = index;
    }
    return highest < width || blob_.refuse("index %zu in part %zu is outside its %zu columns", highest, part, width);
  }

  BlobReader blob_;
  uint64_t runs_ = 0, listed_ = 0;
};

}  // namespace

bool parse(const unsigned char* data, size_t size, PackedConv* out, char* message, size_t message_size) {
  return Reader(data, size, message, message_size).read(out);
}

}  // namespace graphopt::sparse_conv
