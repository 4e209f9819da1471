// Lines of memory that will be stored to when sums are ready, asked for little by little while these are computed:
// outputs are mostly larger than the caches, and all of their lines at once would hold up the loads that sums need.
// Included inside an anonymous namespace.

class Ahead {
 public:
  // Nothing.
  Ahead() = default;
  // `rows` rows of `bytes` bytes each, `stride` bytes apart, to be asked for in `steps` steps.
  Ahead(const void* first, size_t rows, size_t bytes, size_t stride, size_t steps)
      : row_(reinterpret_cast<uintptr_t>(first)),
        at_(row_ & ~(line - 1)),
        bytes_(bytes),
        stride_(stride),
        rows_(bytes == 0 ? 0 : rows),
        per_step_(steps == 0 ? 0 : (rows * ((bytes - 1) / line + 2) + steps - 1) / steps) {}

  void step() {
    for (size_t i = per_step_; i > 0 && rows_ > 0; --i) {
      // To L2: L1 is what sums are computed from.
      __builtin_prefetch(reinterpret_cast<const void*>(at_), 1, 2);
      at_ += line;
      if (at_ < row_ + bytes_) continue;  // the last line too, of which a row may have a part only
      --rows_;
      row_ += stride_;
      at_ = row_ & ~(line - 1);
    }
  }

 private:
  static constexpr uintptr_t line = 64;
  uintptr_t row_ = 0, at_ = 0;
  size_t bytes_ = 0, stride_ = 0, rows_ = 0, per_step_ = 0;
};
