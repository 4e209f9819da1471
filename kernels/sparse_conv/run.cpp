#include "sparse_conv/run.h"

#include <atomic>
#include <cstring>

#include "base/scratch.h"

namespace graphopt::sparse_conv {
namespace {

thread_local Scratch shared_memory;  // of the calls that this thread makes
thread_local Scratch task_memory;    // of the tasks that this thread runs

// The tile that this thread gathered last, all of K, where the tasks of a call share tiles.
struct Held {
  Scratch memory;
  uint64_t call = 0;  // Job::number
  size_t tile = 0;    // counted over the call
};
thread_local Held held;

constexpr size_t task_floats = 8192;  // copied by one task, about: less would not be worth its start

size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
size_t ceil_div(size_t value, size_t by) { return (value + by - 1) / by; }

// Hands out parts of one piece of memory, each at a multiple of 64 bytes.
class Parts {
 public:
  template <class T>
  size_t add(size_t count) {
    const size_t at = size_;
    size_ += (count * sizeof(T) + 63) / 64 * 64;
    return at;
  }
  size_t size() const { return size_; }

 private:
  size_t size_ = 0;
};

// Bounds that a vector can apply at once; the other activations follow in a sweep of their own.
void bounds(const Epilogue& e, float* low, float* high) {
  *low = -__builtin_inff();
  *high = __builtin_inff();
  if (e.activation == Activation::relu || e.activation == Activation::relu6) *low = 0.0f;
  if (e.activation == Activation::relu6) *high = 6.0f;
  if (e.activation == Activation::clip) {
    *low = e.low;
    *high = e.high;
  }
}

bool is_curve(Activation a) {
  return a == Activation::silu || a == Activation::gelu || a == Activation::gelu_tanh;
}

// A task: some tiles of one image and group against a range of panels.
class Task {
 public:
  Task(const Job& job, size_t task) : call_(job.call()), plan_(job.plan()), kernels_(job.kernels()), job_(job) {
    const PackedConv& w = *call_.w;
    const size_t chunk = task % plan_.chunks, rest = task / plan_.chunks;
    tile_first_ = rest % plan_.runs * plan_.run;
    tile_end_ = smaller(tile_first_ + plan_.run, plan_.tiles);
    group_ = rest / plan_.runs % w.groups;
    image_ = rest / plan_.runs / w.groups;
    panel_first_ = chunk * plan_.chunk;
    panel_end_ = smaller(panel_first_ + plan_.chunk, w.panels);
    take(tile_first_);
  }

  bool run() {
    const PackedConv& w = *call_.w;
    const bool gathers = plan_.gathers() && !plan_.shared;
    const size_t channels = (panel_end_ - panel_first_) * w.panel_rows * w.block;
    Parts parts;
    const size_t masks = parts.add<uint64_t>(w.taps());
    const size_t tile = parts.add<float>(gathers ? smaller(w.k_block, w.k) * width_ : 0);
    const size_t sums = parts.add<float>(w.k_blocks > 1 ? channels * width_ : 0);
    const size_t gaps = copies_rows() ? w.panel_rows * w.block * width_ : 0;
    const size_t y = parts.add<float>(gaps);
    const size_t residual = parts.add<float>(call_.residual ? gaps : 0);
    unsigned char* memory = static_cast<unsigned char*>(task_memory.reserve(parts.size()));
    if (memory == nullptr) return false;
    masks_ = reinterpret_cast<uint64_t*>(memory + masks);
    tile_ = reinterpret_cast<float*>(memory + tile);
    sums_ = reinterpret_cast<float*>(memory + sums);
    y_ = reinterpret_cast<float*>(memory + y);
    residual_ = reinterpret_cast<float*>(memory + residual);

    for (size_t tile_number = tile_first_; tile_number < tile_end_; ++tile_number) {
      take(tile_number);
      if (plan_.shared && !hold(tile_number)) return false;
      convolve(gathers);
    }
    return true;
  }

 private:
  // The positions of a tile.
  void take(size_t tile) {
    p_ = plan_.first_of(tile);
    count_ = smaller(plan_.first_of(tile + 1), plan_.positions) - p_;
    units_ = ceil_div(count_, kernels_.unit);
    width_ = units_ * kernels_.unit;
    const float* base = plan_.rearranged ? job_.planes() : call_.x;
    x_ = base + (image_ * call_.w->groups + group_) * call_.w->in_channels * plan_.channel_floats + p_;
  }

  // All of K of a tile, unless this thread has it from the task before. False if there was no memory.
  bool hold(size_t tile) {
    const PackedConv& w = *call_.w;
    const size_t number = (image_ * w.groups + group_) * plan_.tiles + tile;
    tile_ = static_cast<float*>(held.memory.reserve(w.k * plan_.tile * sizeof(float)));
    if (tile_ == nullptr) return false;
    if (held.call == job_.number() && held.tile == number) return true;
    fill_masks(call_, plan_, p_, masks_);
    kernels_.gather({x_, job_.sources(), masks_, 0, w.k, static_cast<unsigned>(units_), tile_});
    held.call = job_.number();
    held.tile = number;
    return true;
  }

  // Rows of the tile are copied to the output without the gaps between them; else the sweep leaves those out itself.
  bool copies_rows() const { return plan_.narrow && !kernels_.compact; }

  // Fetches what the next tile of this task reads that this one does not.
  void fetch_ahead() const {
    const size_t next = p_ + count_;
    if (next >= plan_.positions) return;
    const size_t end = smaller(next + plan_.tile + plan_.reach, plan_.plane);
    for (size_t c = 0; c < call_.w->in_channels * plan_.channel_floats; c += plan_.plane) {
      const float* plane = x_ - p_ + c;
      for (size_t at = next + plan_.reach; at < end; at += 16) __builtin_prefetch(plane + at, 0, 2);
    }
  }

  void convolve(bool gathers) {
    const PackedConv& w = *call_.w;
    if (gathers || plan_.masked) fill_masks(call_, plan_, p_, masks_);
    fetch_ahead();
    for (size_t kb = 0; kb < w.k_blocks; ++kb) {
      const size_t k_first = kb * w.k_block, k_end = smaller(k_first + w.k_block, w.k);
      if (gathers) kernels_.gather({x_, job_.sources(), masks_, k_first, k_end, static_cast<unsigned>(units_), tile_});
      for (size_t panel = panel_first_; panel < panel_end_; ++panel) sweep(kb, panel);
    }
  }

  void sweep(size_t kb, size_t panel) {
    const PackedConv& w = *call_.w;
    const size_t in_group = panel * w.panel_rows * w.block;
    const size_t channel = group_ * w.group_out() + in_group;
    const size_t out = (image_ * w.out_channels + channel) * call_.shape.out_plane;
    Sweep s{};
    s.w = &w;
    s.part = (group_ * w.panels + panel) * w.k_blocks + kb;
    s.units = static_cast<unsigned>(units_);
    s.count = static_cast<unsigned>(count_);
    s.first = kb == 0;
    s.last = kb + 1 == w.k_blocks;
    s.channels = smaller(w.panel_rows * w.block, w.group_out() - in_group);
    s.bias = call_.bias == nullptr ? nullptr : call_.bias + channel;
    s.sums = sums_ + (panel - panel_first_) * w.panel_rows * w.block * width_;
    bounds(call_.epilogue, &s.low, &s.high);
    if (plan_.direct) {
      s.x = x_ + kb * w.k_block * plan_.channel_floats;
      s.stride = plan_.channel_floats;
    } else if (plan_.masked || plan_.spaced) {
      s.x = x_;
      s.sources = job_.sources() + kb * w.k_block;
      s.masks = plan_.masked ? masks_ : nullptr;
    } else {
      s.x = plan_.shared ? tile_ + kb * w.k_block * width_ : tile_;
      s.stride = width_;
    }
    const size_t at = plan_.narrow ? output_of(p_) : p_;
    s.y = call_.y + out + at;
    s.residual = call_.residual == nullptr ? nullptr : call_.residual + out + at;
    s.y_plane = call_.shape.out_plane;
    s.valid = plan_.narrow ? valid_positions(call_, plan_, p_) : 0;
    if (p_ + count_ == plan_.positions) s.zeros = call_.shape.out_plane - call_.shape.out_h * call_.shape.out_w;
    if (copies_rows()) {
      s.zeros = 0;
      s.y = y_;
      s.y_plane = width_;
      if (s.residual != nullptr && s.last) {
        for (size_t c = 0; c < s.channels; ++c) widen(call_.residual + out + c * call_.shape.out_plane, residual_ + c * width_);
        s.residual = residual_;
      }
    }
    s.fetches = plan_.fetches && s.last;
    kernels_.sweep(s);
    if (s.last) finish(s, out);
  }

  void finish(const Sweep& s, size_t out) const {
    if (is_curve(call_.epilogue.activation)) {
      const size_t made = copies_rows() || !plan_.narrow ? s.count : output_of(p_ + count_) - output_of(p_);
      for (size_t c = 0; c < s.channels; ++c) kernels_.activate(s.y + c * s.y_plane, made, call_.epilogue);
    }
    if (!copies_rows()) return;
    const size_t plane = call_.shape.out_plane, image = call_.shape.out_h * call_.shape.out_w;
    for (size_t c = 0; c < s.channels; ++c) {
      float* y = call_.y + out + c * plane;
      narrow(y_ + c * width_, y);
      if (p_ + count_ == plan_.positions) {
        for (size_t i = image; i < plane; ++i) y[i] = 0.0f;
      }
    }
  }

  // How many positions of an output plane lie before a flat position.
  size_t output_of(size_t p) const {
    return p / plan_.pitch * call_.shape.out_w + smaller(p % plan_.pitch, call_.shape.out_w);
  }

  // Calls visit(position in the tile, position in an output plane, count) for the rows of the tile without the gaps.
  template <class Visit>
  void for_each_row(Visit visit) const {
    for (size_t at = p_; at < p_ + count_;) {
      const size_t row = at / plan_.pitch, column = at % plan_.pitch, next = smaller((row + 1) * plan_.pitch, p_ + count_);
      if (column < call_.shape.out_w) {
        const size_t end = smaller(row * plan_.pitch + call_.shape.out_w, next);
        visit(at - p_, row * call_.shape.out_w + column, end - at);
      }
      at = next;
    }
  }

  void widen(const float* plane, float* tile) const {
    for (size_t i = 0; i < width_; ++i) tile[i] = 0.0f;
    for_each_row([&](size_t at, size_t from, size_t count) { std::memcpy(tile + at, plane + from, count * sizeof(float)); });
  }

  void narrow(const float* tile, float* plane) const {
    for_each_row([&](size_t at, size_t to, size_t count) { std::memcpy(plane + to, tile + at, count * sizeof(float)); });
  }

  const Call& call_;
  const Plan& plan_;
  const Kernels& kernels_;
  const Job& job_;
  size_t group_, image_, panel_first_, panel_end_, tile_first_, tile_end_;
  size_t p_ = 0, count_ = 0, units_ = 0, width_ = 0;
  const float* x_ = nullptr;
  uint64_t* masks_ = nullptr;
  float *tile_ = nullptr, *sums_ = nullptr, *y_ = nullptr, *residual_ = nullptr;
};

}  // namespace

const Kernels& kernels_for(Isa isa) {
#if defined(GRAPHOPT_X86)
  if (isa_includes(isa, Isa::avx512)) return avx512_kernels();
  if (isa_includes(isa, Isa::avx2)) return avx2_kernels();
#endif
#if defined(GRAPHOPT_ARM64)
  if (isa_includes(isa, Isa::neon)) return neon_kernels();
#endif
  (void)isa;
  return scalar_kernels();
}

Job::Problem Job::prepare(const Call& call, const Kernels& kernels) {
  static std::atomic<uint64_t> calls{0};
  call_ = call;
  kernels_ = &kernels;
  number_ = calls.fetch_add(1, std::memory_order_relaxed) + 1;
  const PackedConv& w = *call.w;
  // The plan needs its taps, and the rest of the memory the plan.
  Parts parts;
  parts.add<AxisTap>(w.kernel_h + w.kernel_w);
  const size_t sources = parts.add<Source>(w.k);
  unsigned char* memory = static_cast<unsigned char*>(shared_memory.reserve(parts.size()));
  if (memory == nullptr) return Problem::memory;
  if (!make_plan(call_, kernels, reinterpret_cast<AxisTap*>(memory), &plan_)) return Problem::size;

  if (plan_.rearranged) {
    const size_t planes = parts.size();
    // The vectors of the last tile may end behind the last plane.
    parts.add<float>(call.shape.images * w.groups * w.in_channels * plan_.channel_floats + max_tile);
    memory = static_cast<unsigned char*>(shared_memory.reserve(parts.size()));
    if (memory == nullptr) return Problem::memory;
    make_plan(call_, kernels, reinterpret_cast<AxisTap*>(memory), &plan_);  // what was there may have moved
    planes_ = reinterpret_cast<float*>(memory + planes);
  }
  Source* filled = reinterpret_cast<Source*>(memory + sources);
  if (!plan_.direct) fill_sources(call_, plan_, filled);
  sources_ = filled;
  return Problem::none;
}

Rearrange::Rearrange(const Job& job) : job_(job) {
  const Call& call = job.call();
  const Plan& plan = job.plan();
  if (!plan.rearranged) return;
  const Shape& s = call.shape;
  channels_ = call.w->groups * call.w->in_channels;
  if (s.stride_h == 1 && s.stride_w == 1) {
    // All channels of some rows, so that the thread which reads them mostly wrote them: what another core wrote comes
    // from its cache, at two threads slower than the whole convolution at one.
    rows_ = ceil_div(task_floats, channels_ * plan.pitch);
    together_ = channels_;
  } else {
    rows_ = s.in_h == 0 ? 1 : s.in_h;
    together_ = ceil_div(task_floats, plan.channel_floats);
  }
  const size_t ranges = s.in_h == 0 ? 1 : ceil_div(s.in_h, rows_);  // without rows there are still zeros
  parts_ = ranges * ceil_div(channels_, together_);
}

size_t Rearrange::tasks() const { return job_.call().shape.images * parts_; }

bool Rearrange::run(size_t task) const {
  const Call& call = job_.call();
  const size_t image = task / parts_, groups = ceil_div(channels_, together_);
  const size_t row = task % parts_ / groups * rows_, first = task % parts_ % groups * together_;
  const size_t end = smaller(row + rows_, call.shape.in_h), last = smaller(first + together_, channels_);
  for (size_t c = image * channels_ + first; c < image * channels_ + last; ++c)
    rearrange(call, job_.kernels(), job_.plan(), row, end, call.x + c * call.shape.in_plane,
              job_.planes() + c * job_.plan().channel_floats);
  return true;
}

size_t Convolve::tasks() const {
  const Plan& plan = job_.plan();
  return job_.call().shape.images * job_.call().w->groups * plan.runs * plan.chunks;
}

bool Convolve::run(size_t task) const { return Task(job_, task).run(); }

}  // namespace graphopt::sparse_conv
