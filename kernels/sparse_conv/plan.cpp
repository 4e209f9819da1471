#include "sparse_conv/plan.h"

namespace graphopt::sparse_conv {
namespace {

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }
size_t ceil_div(size_t value, size_t by) { return (value + by - 1) / by; }

// Planes at multiples of this distance share so few sets of the first cache that a tile of them does not stay there.
bool collide(size_t plane) { return plane % 256 == 0; }

// Fills taps[count] and returns how many phases they read.
size_t read_axis(size_t count, size_t dilation, size_t stride, size_t pad, size_t in, size_t out, AxisTap* taps) {
  const int64_t steps = static_cast<int64_t>(stride);
  size_t phases = 0;
  for (size_t i = 0; i < count; ++i) {
    const int64_t at = static_cast<int64_t>(i * dilation) - static_cast<int64_t>(pad);
    const int64_t phase = (at % steps + steps) % steps;
    const int64_t shift = (at - phase) / steps;
    // Of this phase there are so many input indices.
    const int64_t present = static_cast<int64_t>(in) > phase ? (static_cast<int64_t>(in) - phase + steps - 1) / steps : 0;
    const int64_t first = shift < 0 ? -shift : 0;
    const int64_t end = present - shift < static_cast<int64_t>(out) ? present - shift : static_cast<int64_t>(out);
    AxisTap& tap = taps[i];
    tap = {shift,
           static_cast<size_t>(phase),
           static_cast<size_t>(present),
           static_cast<size_t>(first),
           static_cast<size_t>(end > first ? end : first),
           phases};
    for (size_t back = 1; back <= i && back <= stride; ++back) {
      if (taps[i - back].phase == tap.phase) tap.number = taps[i - back].number;
    }
    phases += tap.number == phases;
  }
  return phases;
}

// Bits first..end-1 of a word, of which only 0..63 exist.
uint64_t bits(int64_t first, int64_t end) {
  if (first < 0) first = 0;
  if (end > 64) end = 64;
  if (first >= end) return 0;
  const uint64_t below_end = end == 64 ? ~uint64_t{0} : (uint64_t{1} << end) - 1;
  return below_end & ~((uint64_t{1} << first) - 1);
}

// Vectors of a plane in as few tiles as possible, of equal width but for one vector.
void cut_tiles(const PackedConv& w, const Kernels& kernels, Plan* plan) {
  const unsigned widest = kernels.max_units[w.block == 1 ? 0 : w.block == 4 ? 1 : 2] / kernels.vector_units;
  const size_t vector = size_t{kernels.unit} * kernels.vector_units;
  const size_t vectors = ceil_div(plan->positions, vector);
  plan->tiles = ceil_div(vectors, widest);
  plan->tile = ceil_div(vectors, plan->tiles) * vector;
  plan->wide = vectors % plan->tiles == 0 ? plan->tiles : vectors % plan->tiles;
  plan->step = vector;
}

// Tiles and ranges of panels in tasks.
void cut_tasks(const Call& call, Plan* plan) {
  // Many tiles: a task goes over several, so that what the next one reads can be fetched while one is computed. Few:
  // their panels are shared out. A tile of planes that are read as they are is cheap to start, so that finer tasks,
  // which are shared out more evenly, cost little.
  constexpr size_t enough_tasks = 4, even_tasks = 8, many_tasks = 32, widest_shared = size_t{1} << 20;
  const PackedConv& w = *call.w;
  const size_t planes = call.shape.images * w.groups;
  plan->run = planes * plan->tiles > many_tasks ? ceil_div(planes * plan->tiles, many_tasks) : 1;
  if (plan->run > plan->tiles) plan->run = plan->tiles;
  plan->runs = ceil_div(plan->tiles, plan->run);
  const size_t wanted = ceil_div(plan->gathers() ? enough_tasks : even_tasks, planes * plan->runs);
  plan->chunk = ceil_div(w.panels, wanted < w.panels ? wanted : w.panels);
  plan->chunks = ceil_div(w.panels, plan->chunk);
  // Outputs that the second cache does not hold come from memory.
  plan->fetches = w.out_channels * call.shape.out_plane > size_t{1} << 18;
  plan->shared = plan->gathers() && plan->chunks > 1 && w.k <= widest_shared / plan->tile;
}

void fill_zeros(float* from, const float* end) {
  for (; from != end; ++from) *from = 0.0f;
}

// Every `step`th float of a row, and zeros up to `pitch`.
void pick(const float* from, size_t step, size_t count, size_t pitch, float* to) {
  if (step == 2) {
    for (size_t i = 0; i < count; ++i) to[i] = from[2 * i];
  } else {
    for (size_t i = 0; i < count; ++i) to[i] = from[i * step];
  }
  for (size_t i = count; i < pitch; ++i) to[i] = 0.0f;
}

// Zeros between the rows and above and below the image, as many as the taps reach out of it.
void space(const Call& call, Plan* plan) {
  const Shape& s = call.shape;
  const PackedConv& w = *call.w;
  int64_t pitch = static_cast<int64_t>(s.out_w), above = 0, rows = 0;
  bool left = false;
  for (size_t b = 0; b < w.kernel_w; ++b) {
    const int64_t shift = plan->columns[b].shift, present = static_cast<int64_t>(plan->columns[b].present);
    left = left || shift < 0;
    const int64_t needed = shift < 0 ? present - shift : shift + static_cast<int64_t>(s.out_w);
    if (needed > pitch) pitch = needed;
    if (present > pitch) pitch = present;
  }
  for (size_t a = 0; a < w.kernel_h; ++a) {
    const int64_t shift = plan->rows[a].shift, present = static_cast<int64_t>(plan->rows[a].present);
    if (-shift > above) above = -shift;
    if (shift + static_cast<int64_t>(s.out_h) > rows) rows = shift + static_cast<int64_t>(s.out_h);
    if (present > rows) rows = present;
  }
  plan->pitch = static_cast<size_t>(pitch);
  plan->top = static_cast<size_t>(above) + (left ? 1 : 0);
  plan->rearranged = true;
  plan->plane = padded_plane((plan->top + static_cast<size_t>(rows)) * plan->pitch);
}

}  // namespace

bool make_plan(const Call& call, const Kernels& kernels, AxisTap* taps, Plan* out) {
  const Shape& s = call.shape;
  const PackedConv& w = *call.w;
  Plan plan{};
  plan.rows = taps;
  plan.columns = taps + w.kernel_h;
  plan.row_phases = read_axis(w.kernel_h, s.dilation_h, s.stride_h, s.pad_top, s.in_h, s.out_h, taps);
  plan.column_phases = read_axis(w.kernel_w, s.dilation_w, s.stride_w, s.pad_left, s.in_w, s.out_w, taps + w.kernel_h);

  const AxisTap &row = plan.rows[0], &column = plan.columns[0];
  const bool inside = w.taps() == 1 && row.shift == 0 && column.shift == 0 && row.end == s.out_h && column.end == s.out_w;
  plan.spaced = kernels.compact && w.block > 1 && !inside;
  if (plan.spaced) {
    space(call, &plan);
  } else {
    plan.pitch = ceil_div(s.in_w, s.stride_w);
    if (plan.pitch < s.out_w) plan.pitch = s.out_w;
    plan.rearranged = s.stride_h != 1 || s.stride_w != 1 || plan.pitch != s.in_w;
    plan.plane = plan.rearranged ? padded_plane(ceil_div(s.in_h, s.stride_h) * plan.pitch) : s.in_plane;
  }
  plan.narrow = plan.pitch != s.out_w && s.out_h > 1;
  plan.positions = (s.out_h - 1) * plan.pitch + s.out_w;
  plan.channel_floats = (plan.rearranged ? plan.row_phases * plan.column_phases : 1) * plan.plane;
  const AxisTap &last_row = plan.rows[w.kernel_h - 1], &last_column = plan.columns[w.kernel_w - 1];
  const int64_t reach =
      (last_row.shift + static_cast<int64_t>(plan.top)) * static_cast<int64_t>(plan.pitch) + last_column.shift;
  plan.reach = static_cast<size_t>(reach > 0 ? reach : 0);

  plan.direct = inside && round_up(plan.positions, kernels.unit) <= plan.plane && !collide(plan.plane);
  plan.masked = !plan.direct && !plan.spaced && kernels.masked && w.block > 1;
  cut_tiles(w, kernels, &plan);

  cut_tasks(call, &plan);
  *out = plan;

  constexpr size_t limit = size_t{1} << 30;
  return plan.channel_floats < limit / (w.in_channels + 1) && w.kernel_h * s.dilation_h + s.pad_top < limit / plan.pitch &&
         w.kernel_w * s.dilation_w + s.pad_left < limit;
}

void fill_sources(const Call& call, const Plan& plan, Source* sources) {
  const PackedConv& w = *call.w;
  uint32_t tap = 0;
  for (size_t a = 0; a < w.kernel_h; ++a) {
    for (size_t b = 0; b < w.kernel_w; ++b, ++tap) {
      const AxisTap &row = plan.rows[a], &column = plan.columns[b];
      int64_t offset =
          (row.shift + static_cast<int64_t>(plan.top)) * static_cast<int64_t>(plan.pitch) + column.shift;
      if (plan.rearranged) offset += static_cast<int64_t>((row.number * plan.column_phases + column.number) * plan.plane);
      sources[tap] = {static_cast<int32_t>(offset), tap};
    }
  }
  const int32_t channel = static_cast<int32_t>(plan.channel_floats);
  for (size_t k = w.taps(); k < w.k; ++k) sources[k] = {sources[k - tap].offset + channel, sources[k - tap].tap};
}

uint64_t valid_positions(const Call& call, const Plan& plan, size_t p) {
  uint64_t valid = 0;
  const size_t last = p + max_tile < plan.positions ? p + max_tile : plan.positions;
  for (size_t oh = p / plan.pitch; oh * plan.pitch < last; ++oh) {
    const int64_t start = static_cast<int64_t>(oh * plan.pitch) - static_cast<int64_t>(p);
    valid |= bits(start, start + static_cast<int64_t>(call.shape.out_w));
  }
  return valid;
}

void fill_masks(const Call& call, const Plan& plan, size_t p, uint64_t* masks) {
  const PackedConv& w = *call.w;
  const size_t last = p + max_tile < plan.positions ? p + max_tile : plan.positions;
  const size_t row_first = p / plan.pitch, row_end = ceil_div(last, plan.pitch);
  for (size_t tap = 0; tap < w.taps(); ++tap) masks[tap] = 0;
  for (size_t b = 0; b < w.kernel_w; ++b) {
    const AxisTap& column = plan.columns[b];
    int64_t start = static_cast<int64_t>(row_first * plan.pitch) - static_cast<int64_t>(p);
    for (size_t oh = row_first; oh < row_end; ++oh, start += static_cast<int64_t>(plan.pitch)) {
      const uint64_t inside = bits(start + static_cast<int64_t>(column.first), start + static_cast<int64_t>(column.end));
      for (size_t a = 0; a < w.kernel_h; ++a) {
        if (oh >= plan.rows[a].first && oh < plan.rows[a].end) masks[a * w.kernel_w + b] |= inside;
      }
    }
  }
}

void rearrange(const Call& call, const Kernels& kernels, const Plan& plan, size_t h, size_t h_end, const float* from,
               float* to) {
  const Shape& s = call.shape;
  if (s.stride_h == 1 && s.stride_w == 1) {
    float* const image = to + plan.top * plan.pitch;
    if (h == 0) fill_zeros(to, image);
    kernels.space(from + h * s.in_w, h_end - h, s.in_w, plan.pitch, image + h * plan.pitch);
    if (h_end == s.in_h) fill_zeros(image + s.in_h * plan.pitch, to + plan.plane);
    return;
  }
  for (size_t a = 0, next_row = 0; next_row < plan.row_phases; ++a) {
    if (plan.rows[a].number != next_row) continue;
    ++next_row;
    for (size_t b = 0, next_column = 0; next_column < plan.column_phases; ++b) {
      if (plan.columns[b].number != next_column) continue;
      ++next_column;
      float* const end = to + plan.plane;
      float* const image = to + plan.top * plan.pitch;
      fill_zeros(to, image);
      to = image;
      const AxisTap& column = plan.columns[b];
      for (size_t row = plan.rows[a].phase; row < s.in_h; row += s.stride_h, to += plan.pitch)
        pick(from + row * s.in_w + column.phase, s.stride_w, column.present, plan.pitch, to);
      fill_zeros(to, end);
      to = end;
    }
  }
}

}  // namespace graphopt::sparse_conv
