// From sums to outputs, written once over vector types. Included after tile.h.

// The three ways an output is made: floats, bytes of floats, bytes straight from sums.
enum class Form { floats, bytes, direct };

inline bool is_direct(const Output& y) {
  return y.bytes && !y.bias && !y.residual && y.epilogue.activation <= Activation::clip;
}

// Sums that follow each other and what goes with them: outputs of one row, or positions of one output.
struct Line {
  const int32_t* sums;
  const float* factors;   // of each, or one of all
  const float* bias;      // of each, or one of all; or nullptr
  const float* residual;  // of each, or nullptr
  float* floats;          // one of the two
  unsigned char* bytes;
  size_t count;
};

template <Form form, Activation activation>
class Finish {
 public:
  using Vec = typename FloatLane::Vec;
  using Int = typename Lane::Int;

  explicit Finish(const Output& y) : epilogue_(y.epilogue) {
    const float least = static_cast<float>(-y.grid.zero_point), most = static_cast<float>(255 - y.grid.zero_point);
    const bool direct = form == Form::direct;
    low_ = FloatLane::set1(direct ? clamped(y.epilogue.low / y.grid.scale, least, most) : least);
    high_ = FloatLane::set1(direct ? clamped(y.epilogue.high / y.grid.scale, least, most) : most);
    step_ = FloatLane::set1(y.grid.scale);
    zero_point_ = Lane::set1(y.grid.zero_point);
  }

  // `alike`: all sums share one factor and one bias.
  template <bool alike>
  void line(const Line& l) const {
    constexpr unsigned lanes = Lane::lanes;
    size_t i = 0;
    if constexpr (form == Form::floats) {
      for (; i + lanes <= l.count; i += lanes) FloatLane::store(l.floats + i, value<alike>(l, i));
    } else {
      for (; i + 4 * lanes <= l.count; i += 4 * lanes)
        Lane::put_four(l.bytes + i, to_bytes(value<alike>(l, i)), to_bytes(value<alike>(l, i + lanes)),
                       to_bytes(value<alike>(l, i + 2 * lanes)), to_bytes(value<alike>(l, i + 3 * lanes)));
      for (; i + lanes <= l.count; i += lanes) Lane::put_bytes(l.bytes + i, to_bytes(value<alike>(l, i)), lanes);
    }
    if (i < l.count) rest<alike>(l, i);
  }

 private:
  static float clamped(float v, float least, float most) { return v < least ? least : v > most ? most : v; }

  template <bool alike>
  Vec value(const Line& l, size_t i) const {
    const Vec factor = alike ? FloatLane::set1(*l.factors) : FloatLane::load(l.factors + i);
    Vec v = FloatLane::mul(Lane::to_float(Lane::load(l.sums + i)), factor);
    if constexpr (form != Form::direct) {
      if (l.bias) v = FloatLane::add(v, alike ? FloatLane::set1(*l.bias) : FloatLane::load(l.bias + i));
      if (l.residual) v = FloatLane::add(v, FloatLane::load(l.residual + i));
      v = activated<FloatLane, activation>(v, epilogue_);
    }
    return v;
  }

  Int to_bytes(Vec v) const {
    if constexpr (form == Form::bytes) v = FloatLane::div(v, step_);
    return Lane::add(Lane::to_int(FloatLane::at_most(Lane::at_least(v, low_), high_)), zero_point_);
  }

  // Fewer than a vector: the same on a copy.
  template <bool alike>
  void rest(const Line& l, size_t i) const {
    constexpr unsigned lanes = Lane::lanes;
    alignas(64) int32_t sums[lanes] = {};
    alignas(64) float factors[lanes] = {}, bias[lanes] = {}, residual[lanes] = {}, floats[lanes];
    const size_t count = l.count - i, bytes = count * sizeof(float);
    __builtin_memcpy(sums, l.sums + i, bytes);
    if (!alike) __builtin_memcpy(factors, l.factors + i, bytes);
    if (!alike && l.bias) __builtin_memcpy(bias, l.bias + i, bytes);
    if (l.residual) __builtin_memcpy(residual, l.residual + i, bytes);
    const Line few{sums,    alike ? l.factors : factors,   l.bias && !alike ? bias : l.bias, l.residual ? residual : nullptr,
                   nullptr, nullptr, lanes};
    const Vec v = value<alike>(few, 0);
    if constexpr (form == Form::floats) {
      FloatLane::store(floats, v);
      __builtin_memcpy(l.floats + i, floats, bytes);
    } else {
      Lane::put_bytes(l.bytes + i, to_bytes(v), static_cast<unsigned>(count));
    }
  }

  const Epilogue epilogue_;
  Vec low_, high_, step_;
  Int zero_point_;
};

// s * scale[n] of the outputs of a panel, or s * scale[n] / t.
inline void prepare_factors(const PackedWeights& w, size_t n0, size_t outputs, const Grid& x, const Output& y,
                            float* factors) {
  const float t = is_direct(y) ? y.grid.scale : 1.0f;
  for (size_t n = 0; n < outputs; ++n) factors[n] = x.scale * load_as<float>(w.scales + (n0 + n) * 4) / t;
}

template <class Visitor, Form form, class Call, class... Args>
inline void finish_in(const Call& call, const Args&... args) {
  switch (call.y.epilogue.activation) {
    case Activation::none: return Visitor::template run<form, Activation::none>(call, args...);
    case Activation::relu: return Visitor::template run<form, Activation::relu>(call, args...);
    case Activation::relu6: return Visitor::template run<form, Activation::relu6>(call, args...);
    case Activation::clip: return Visitor::template run<form, Activation::clip>(call, args...);
    case Activation::silu: return Visitor::template run<form, Activation::silu>(call, args...);
    case Activation::gelu: return Visitor::template run<form, Activation::gelu>(call, args...);
    case Activation::gelu_tanh: return Visitor::template run<form, Activation::gelu_tanh>(call, args...);
  }
}

// Visitor::run<form, activation>(call, args...) for the form and activation of a call.
template <class Visitor, class Call, class... Args>
inline void finish(const Call& call, const Args&... args) {
  if (is_direct(call.y)) return Visitor::template run<Form::direct, Activation::none>(call, args...);
  if (call.y.bytes) return finish_in<Visitor, Form::bytes>(call, args...);
  finish_in<Visitor, Form::floats>(call, args...);
}

// Sums lie output by output, y row by row. A few rows are turned at once, then written one after the other: y is larger
// than the caches, and rows lie far apart.
struct FinishRows {
  template <Form form, Activation activation>
  static void run(const MatMul& call, size_t m0, unsigned rows, unsigned width, size_t n0, size_t outputs,
                  const int32_t* sums, const float* factors, int32_t* lines) {
    constexpr unsigned lanes = Lane::lanes;
    const Output& y = call.y;
    const Finish<form, activation> finish(y);
    const size_t pitch = (outputs + lanes - 1) / lanes * lanes;
    for (unsigned i = 0; i < rows; i += lanes) {
      for (size_t n = 0; n < outputs; n += lanes) {
        Lane::turn(reinterpret_cast<const unsigned char*>(sums + n * width + i), width * sizeof *sums,
                   reinterpret_cast<unsigned char*>(lines + n), pitch * sizeof *lines);
      }
      for (unsigned r = 0; r < lanes && i + r < rows; ++r) {
        const size_t at = (m0 + i + r) * call.w->n + n0;
        finish.template line<false>({lines + r * pitch, factors, y.bias ? y.bias + n0 : nullptr,
                                     y.residual ? y.residual + at : nullptr, y.floats ? y.floats + at : nullptr,
                                     y.bytes ? y.bytes + at : nullptr, outputs});
      }
    }
  }
};

inline void finish_rows(const MatMul& call, size_t m0, unsigned rows, unsigned width, size_t panel, const int32_t* sums,
                        float* factors, int32_t* lines) {
  const size_t n0 = panel * call.w->panel, outputs = smaller(call.w->panel, call.w->n - n0);
  prepare_factors(*call.w, n0, outputs, call.grid, call.y, factors);
  finish<FinishRows>(call, m0, rows, width, n0, outputs, sums, factors, lines);
}
