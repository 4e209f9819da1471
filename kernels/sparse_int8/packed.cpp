#include "sparse_int8/packed.h"

#include <cmath>

#include "base/blob.h"

namespace graphopt::sparse_int8 {
namespace {

constexpr char magic[9] = "GOSPI8\r\n";
constexpr size_t header_bytes = 128;
constexpr uint64_t max_steps = uint64_t{1} << 36;  // keeps every product below far from overflow
constexpr uint32_t max_n = uint32_t{1} << 24;

class Parser {
 public:
  Parser(const unsigned char* data, size_t size, char* message, size_t message_size)
      : blob_(data, size, message, message_size) {}

  bool parse(PackedWeights* out) {
    return blob_.header(magic, format_version, header_bytes) && read_sizes(out) && read_sections(out) &&
           check_scales(*out) && check_blocks(*out);
  }

 private:
  bool read_sizes(PackedWeights* out) {
    const uint32_t k = blob_.field<uint32_t>(24), n = blob_.field<uint32_t>(28), unit = blob_.field<uint32_t>(32);
    const uint32_t k_block = blob_.field<uint32_t>(36), panel = blob_.field<uint32_t>(40);
    if (k == 0 || k > max_k || n == 0 || n > max_n)
      return blob_.refuse("K is %u and N is %u; they must be 1 to %zu and 1 to %u", k, n, max_k, max_n);
    if (unit != 1 && unit != 4) return blob_.refuse("units of %u outputs; they must have 1 or 4", unit);
    if (k_block == 0 || k_block > max_k || k_block % 4 != 0)
      return blob_.refuse("a K-block of %u; it must be a multiple of 4 up to %zu", k_block, max_k);
    if (panel == 0 || panel > max_panel || panel % 16 != 0)
      return blob_.refuse("panels of %u outputs; they must have a multiple of 16 up to %zu", panel, max_panel);
    if (blob_.field<uint32_t>(44) != 0) return blob_.refuse("a reserved field is not zero");
    const uint64_t steps = blob_.field<uint64_t>(48);
    groups_ = blob_.field<uint64_t>(112);
    if (steps > max_steps || groups_ > max_steps) return blob_.refuse("too many steps or groups");
    out->k = k;
    out->n = n;
    out->padded_n = (size_t{n} + 3) / 4 * 4;
    out->unit = unit;
    out->group = 4 / unit;
    out->k_block = k_block;
    out->k_blocks = (out->k + k_block - 1) / k_block;
    out->panel = panel;
    out->panels = (out->n + panel - 1) / panel;
    out->steps = static_cast<size_t>(steps);
    return true;
  }

  bool read_sections(PackedWeights* out) {
    const uint64_t blocks = uint64_t{out->panels} * out->k_blocks + 1, per_output = uint64_t{out->padded_n} * 4;
    return blob_.section(56, per_output, &out->scales, "scales") &&
           blob_.section(64, per_output, &out->fixes, "fixes") &&
           blob_.section(72, per_output, &out->totals, "totals") &&
           blob_.section(80, blocks * block_bytes, &out->blocks, "blocks") &&
           blob_.section(88, groups_ * group_bytes(out->group), &out->groups, "groups") &&
           blob_.section(96, out->steps * uint64_t{out->group} * 2, &out->indices, "indices") &&
           blob_.section(104, out->steps * uint64_t{step_bytes}, &out->values, "values") && blob_.end();
  }

  bool check_scales(const PackedWeights& w) {
    for (size_t i = 0; i < w.padded_n; ++i) {
      const float scale = load_as<float>(w.scales + i * sizeof(float));
      if (!std::isfinite(scale) || scale < 0) return blob_.refuse("scale %zu is not a positive number", i);
    }
    return true;
  }

  bool check_blocks(const PackedWeights& w) {
    uint64_t step = 0, group = 0;
    for (size_t b = 0; b < w.panels * w.k_blocks; ++b) {
      const unsigned char* at = w.blocks + b * block_bytes;
      if (load_as<uint64_t>(at) != step || load_as<uint64_t>(at + 8) != group)
        return blob_.refuse("block %zu does not start where the one before it ends", b);
      const uint64_t end = load_as<uint64_t>(at + block_bytes + 8);
      if (end < group || end > groups_) return blob_.refuse("the groups of block %zu reach beyond the section", b);
      if (!check_groups(w, b, group, end, &step)) return false;
      if (b % w.k_blocks == w.k_blocks - 1 && !check_totals(w, b / w.k_blocks)) return false;
      group = end;
    }
    const unsigned char* last = w.blocks + w.panels * w.k_blocks * block_bytes;
    if (load_as<uint64_t>(last) != step || load_as<uint64_t>(last + 8) != group || step != w.steps || group != groups_)
      return blob_.refuse("the blocks do not end where the sections end");
    return true;
  }

  bool check_groups(const PackedWeights& w, size_t block, uint64_t group, uint64_t end, uint64_t* step) {
    const size_t outputs = smaller(w.panel, w.n - block / w.k_blocks * w.panel);
    const size_t units = (outputs + w.unit - 1) / w.unit, missing = w.panel / w.unit;
    const size_t fours = (smaller(w.k_block, w.k - block % w.k_blocks * w.k_block) + 3) / 4;
    unsigned char seen[max_panel] = {};
    size_t listed = 0;
    for (; group < end; ++group) {
      const unsigned char* at = w.groups + group * group_bytes(w.group);
      const size_t steps = load_as<uint16_t>(at);
      if (steps > fours || steps > w.steps - *step)
        return blob_.refuse("a group of block %zu has %zu steps; the block has %zu fours of rows", block, steps, fours);
      for (unsigned u = 0; u < w.group; ++u) {
        const size_t unit = load_as<uint16_t>(at + 2 + 2 * u);
        if (unit == missing) continue;
        if (unit >= units || seen[unit])
          return blob_.refuse("unit %zu in block %zu is there twice or outside its %zu units", unit, block, units);
        seen[unit] = 1;
        ++listed;
      }
      for (uint64_t i = *step * w.group; i < (*step + steps) * w.group; ++i) {
        const unsigned index = load_as<uint16_t>(w.indices + i * 2);
        if (index >= fours) return blob_.refuse("index %u in block %zu is outside its %zu fours", index, block, fours);
      }
      if (!add_weights(w, block, at, *step, *step + steps)) return false;
      *step += steps;
    }
    if (block % w.k_blocks == 0 && listed != units)
      return blob_.refuse("block %zu lists %zu of the %zu units", block, listed, units);
    return true;
  }

  // Adds up the weights of each output. Rows behind the last one have none.
  bool add_weights(const PackedWeights& w, size_t block, const unsigned char* group, uint64_t step, uint64_t end) {
    const size_t rows = smaller(w.k_block, w.k - block % w.k_blocks * w.k_block);
    for (; step < end; ++step) {
      for (size_t i = 0; i < step_bytes; ++i) {
        const size_t u = i / 4 / w.unit, unit = load_as<uint16_t>(group + 2 + 2 * u);
        const signed char weight = static_cast<signed char>(w.values[step * step_bytes + i]);
        if (unit == w.panel / w.unit || weight == 0) continue;
        const size_t row = size_t{load_as<uint16_t>(w.indices + (step * w.group + u) * 2)} * 4 + i % 4;
        if (row >= rows) return blob_.refuse("block %zu has a weight outside its %zu rows", block, rows);
        totals_[unit * w.unit + i / 4 % w.unit] += weight;
      }
    }
    return true;
  }

  // Implementations take the totals from the section.
  bool check_totals(const PackedWeights& w, size_t panel) {
    const size_t first = panel * w.panel, outputs = smaller(w.panel, w.padded_n - first);
    for (size_t i = 0; i < outputs; ++i) {
      const int32_t total = load_as<int32_t>(w.totals + (first + i) * sizeof(int32_t));
      if (total != totals_[i])
        return blob_.refuse("the weights of output %zu add up to %d, not to %d", first + i, totals_[i], total);
      totals_[i] = 0;
    }
    return true;
  }

  static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

  BlobReader blob_;
  uint64_t groups_ = 0;
  int32_t totals_[max_panel] = {};  // of the panel at hand
};

}  // namespace

bool parse(const unsigned char* data, size_t size, PackedWeights* out, char* message, size_t message_size) {
  return Parser(data, size, message, message_size).parse(out);
}

}  // namespace graphopt::sparse_int8
