// From sums to y: what the algorithms of tile.h and strips.h have alike. Included inside an anonymous namespace after
// `Lane` is defined.
//
// Lane: a FloatLane (base/activation_lane.h) with transpose(src, ld_src, rows, sink): lanes x lanes, missing rows read
// as zero; sink(i, vector) gets column i of src. transpose_stored: the same for the first `stored_rows` columns.

// How far ahead of its use a value is asked for: they come from memory, one after the other, faster than the processor
// would ask by itself.
constexpr size_t prefetch_bytes = 2048;

// Every activation that only bounds its argument is done in registers before y is stored.
struct Bounds {
  float low, high;
};
inline bool is_curve(Activation a) { return a == Activation::silu || a == Activation::gelu || a == Activation::gelu_tanh; }
inline Bounds bounds_of(const Epilogue& e) {
  constexpr float infinity = __builtin_inff();
  switch (e.activation) {
    case Activation::relu: return {0.0f, infinity};
    case Activation::relu6: return {0.0f, 6.0f};
    case Activation::clip: return {e.low, e.high};
    default: return {-infinity, infinity};
  }
}

template <class L>
struct Within {
  typename L::Vec low, high;
  explicit Within(Bounds b) : low(L::set1(b.low)), high(L::set1(b.high)) {}
  typename L::Vec operator()(typename L::Vec v) const { return L::at_most(L::at_least(v, low), high); }
};
inline float within(float v, Bounds b) {
  v = v < b.low ? b.low : v;
  return v > b.high ? b.high : v;
}

// y[m][n .. n + count] = within(sums + residual), for edges.
inline void store_few(const Call& call, size_t m, size_t n, size_t count, const float* sums, Bounds b) {
  const size_t at = m * call.w->n + n;
  for (size_t i = 0; i < count; ++i) {
    call.y[at + i] = within(call.residual ? sums[i] + call.residual[at + i] : sums[i], b);
  }
}

// What will be stored to y[m0 .. m0 + rows][n0 .. n0 + columns], and the residual there.
class AheadOfStore {
 public:
  AheadOfStore() = default;
  AheadOfStore(const Call& call, size_t m0, size_t rows, size_t n0, size_t columns, size_t steps) {
    const size_t n = call.w->n, at = m0 * n + n0, size = sizeof(float);
    y_ = Ahead(call.y + at, rows, columns * size, n * size, steps);
    if (call.residual) residual_ = Ahead(call.residual + at, rows, columns * size, n * size, steps);
  }
  void step() {
    y_.step();
    residual_.step();
  }

 private:
  Ahead y_, residual_;
};

// sums[n][width] -> y[m0 .. m0 + rows][n0 .. n0 + columns], with the residual and the bounds. Few rows of y at a time, and
// whole lines of memory: where rows are a multiple of 4 KiB apart, no more than eight lines of them fit L1.
template <bool residual>
inline void store_transposed(const Call& call, size_t m0, unsigned rows, size_t width, size_t n0, size_t columns,
                             const float* sums) {
  constexpr unsigned lanes = Lane::lanes, down = Lane::stored_rows;
  const Bounds bounds = bounds_of(call.epilogue);
  const Within<Lane> inside(bounds);
  const size_t stride = call.w->n;
  for (unsigned i = 0; i < rows; i += down) {
    const size_t present = smaller(rows - i, down);
    for (size_t n = 0; n < columns; n += lanes) {
      const size_t wide = smaller(columns - n, lanes);
      if (present == down && wide == lanes) {
        const size_t at = (m0 + i) * stride + n0 + n;
        float* y = call.y + at;
        const float* more = residual ? call.residual + at : nullptr;
        const auto put = [&](size_t r, typename Lane::Vec v) __attribute__((always_inline)) {
          if constexpr (residual) v = Lane::add(v, Lane::load(more + r * stride));
          Lane::store(y + r * stride, inside(v));
        };
        Lane::transpose_stored(sums + n * width + i, width, lanes, put);
        continue;
      }
      alignas(64) float corner[down * lanes];
      Lane::transpose_stored(sums + n * width + i, width, static_cast<unsigned>(wide),
                             [&](size_t r, typename Lane::Vec v) { Lane::store(corner + r * lanes, v); });
      for (size_t r = 0; r < present; ++r) store_few(call, m0 + i + r, n0 + n, wide, corner + r * lanes, bounds);
    }
  }
}

inline void store_transposed(const Call& call, size_t m0, unsigned rows, size_t width, size_t n0, size_t columns,
                             const float* sums) {
  if (call.residual) {
    store_transposed<true>(call, m0, rows, width, n0, columns, sums);
  } else {
    store_transposed<false>(call, m0, rows, width, n0, columns, sums);
  }
}

// The activations that bend, once y holds their arguments and is still in the cache.
inline void bend(const Call& call, size_t m0, size_t rows, size_t n0, size_t columns) {
  if (!is_curve(call.epilogue.activation)) return;
  constexpr unsigned lanes = Lane::lanes;
  for (size_t r = 0; r < rows; ++r) {
    float* y = call.y + (m0 + r) * call.w->n + n0;
    size_t c = 0;
    for (; c + lanes <= columns; c += lanes) Lane::store(y + c, activate<Lane>(Lane::load(y + c), call.epilogue));
    if (c == columns) continue;
    alignas(64) float part[lanes] = {};
    for (size_t i = c; i < columns; ++i) part[i - c] = y[i];
    Lane::store(part, activate<Lane>(Lane::load(part), call.epilogue));
    for (size_t i = c; i < columns; ++i) y[i] = part[i - c];
  }
}

// x[m0 .. m0 + rows, :] -> p[k][width].
inline void pack(const Call& call, size_t m0, unsigned rows, float* p) {
  constexpr unsigned lanes = Lane::lanes;
  const size_t k = call.w->k;
  const size_t width = round_up(rows, lanes);
  const size_t whole = k / lanes * lanes;
  for (unsigned i = 0; i < rows; i += lanes) {
    const float* x = call.x + (m0 + i) * k;
    const unsigned present = static_cast<unsigned>(smaller(rows - i, lanes));
    for (size_t j = 0; j < whole; j += lanes) {
      float* column = p + j * width + i;
      Lane::transpose(x + j, k, present, [&](size_t c, typename Lane::Vec v) { Lane::store(column + c * width, v); });
    }
    for (size_t j = whole; j < k; ++j) {
      for (unsigned r = 0; r < lanes; ++r) p[j * width + i + r] = r < present ? x[r * k + j] : 0.0f;
    }
  }
}
