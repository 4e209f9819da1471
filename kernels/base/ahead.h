// Lines of memory that will be stored to when sums are ready, asked for little by little while these are computed:
// outputs are mostly larger than the caches, and all of their lines at once would hold up the loads that sums need.
// Included inside an anonymous namespace.

class Ahead {
 public:
  // Nothing.
  Ahead() = default;
  // `rows` rows of `bytes` bytes each, `stride` bytes apart, to be asked for in `steps` steps.
  Ahead(const void* first, size_t rows, size_t bytes, size_t stride, size_t steps)
      : row_(static_cast<const char*>(first)),
        bytes_(bytes),
        stride_(stride),
        rows_(bytes == 0 ? 0 : rows),
        per_step_(steps == 0 ? 0 : (rows * ((bytes + line - 1) / line) + steps - 1) / steps) {}

  void step() {
    for (size_t i = per_step_; i > 0 && rows_ > 0; --i) {
      __builtin_prefetch(row_ + at_, 1, 2);  // to L2: L1 is what sums are computed from
      at_ += line;
      if (at_ < bytes_) continue;
      at_ = 0;
      if (--rows_ > 0) row_ += stride_;
    }
  }

 private:
  static constexpr size_t line = 64;
  const char* row_ = nullptr;
  size_t bytes_ = 0, stride_ = 0, rows_ = 0, per_step_ = 0, at_ = 0;
};
