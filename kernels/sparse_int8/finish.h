// From sums to outputs, written once over vector types. Included after tile.h.

// The three ways an output is made: floats, bytes of floats, bytes straight from sums.
enum class Form { floats, bytes, direct };

inline bool is_direct(const Output& y) {
  return y.bytes && !y.bias && !y.residual && y.epilogue.activation <= Activation::clip;
}

template <Form form, Activation activation>
struct Finish {
  using Vec = typename FloatLane::Vec;
  const Output& y;
  Vec low, high, step;
  typename Lane::Int zero_point;

  explicit Finish(const Output& output) : y(output) {
    const float least = static_cast<float>(-y.grid.zero_point), most = static_cast<float>(255 - y.grid.zero_point);
    float bottom = least, top = most;
    if (form == Form::direct) {
      bottom = clamped(y.epilogue.low / y.grid.scale, least, most);
      top = clamped(y.epilogue.high / y.grid.scale, least, most);
    }
    low = FloatLane::set1(bottom);
    high = FloatLane::set1(top);
    step = FloatLane::set1(y.grid.scale);
    zero_point = Lane::set1(y.grid.zero_point);
  }

  static float clamped(float v, float least, float most) { return v < least ? least : v > most ? most : v; }

  typename Lane::Int to_bytes(Vec v) const {
    if constexpr (form == Form::bytes) v = FloatLane::div(v, step);
    return Lane::add(Lane::to_int(FloatLane::at_most(Lane::at_least(v, low), high)), zero_point);
  }
};

// s * scale[n] of the outputs of a panel, or s * scale[n] / t; zeros up to a whole vector.
inline void prepare_factors(const PackedWeights& w, size_t n0, size_t outputs, const Grid& x, const Output& y,
                            float* factors) {
  const float t = y.grid.scale;
  const bool direct = is_direct(y);
  for (size_t n = 0; n < outputs; ++n) {
    const float real = x.scale * load_as<float>(w.scales + (n0 + n) * 4);
    factors[n] = direct ? real / t : real;
  }
  for (size_t n = outputs; n < outputs + 16; ++n) factors[n] = 0.0f;
}

template <Form form, Activation activation>
inline void finish_square(const MatMul& call, const Finish<form, activation>& finish, size_t m, unsigned rows, size_t n,
                          unsigned outputs, typename FloatLane::Vec factor, typename FloatLane::Vec bias,
                          typename Lane::Int (&square)[Lane::lanes]) {
  constexpr unsigned lanes = Lane::lanes;
  using Vec = typename FloatLane::Vec;
  const Output& y = call.y;
  const bool whole = outputs == lanes;
  const auto one = [&](unsigned r, typename Lane::Int sum) __attribute__((always_inline)) {
    const size_t at = (m + r) * call.w->n + n;
    alignas(64) float edge[lanes];
    Vec v = FloatLane::mul(Lane::to_float(sum), factor);
    if constexpr (form != Form::direct) {
      if (y.bias) v = FloatLane::add(v, bias);
      if (y.residual) {
        if (whole) {
          v = FloatLane::add(v, FloatLane::load(y.residual + at));
        } else {
          for (unsigned c = 0; c < lanes; ++c) edge[c] = c < outputs ? y.residual[at + c] : 0.0f;
          v = FloatLane::add(v, FloatLane::load(edge));
        }
      }
      v = activated<FloatLane, activation>(v, y.epilogue);
    }
    if constexpr (form != Form::floats) {
      Lane::put_bytes(y.bytes + at, finish.to_bytes(v), outputs);
    } else if (whole) {
      FloatLane::store(y.floats + at, v);
    } else {
      FloatLane::store(edge, v);
      for (unsigned c = 0; c < outputs; ++c) y.floats[at + c] = edge[c];
    }
  };
  constexpr bool is_short = activation <= Activation::clip;
  if (is_short && whole && rows == lanes) {
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < lanes; ++r) one(r, square[r]);
    return;
  }
  alignas(64) int32_t turned[lanes * lanes];
  GRAPHOPT_UNROLL
  for (unsigned r = 0; r < lanes; ++r) Lane::store(turned + r * lanes, square[r]);
  for (unsigned r = 0; r < rows; ++r) one(r, Lane::load(turned + r * lanes));
}

template <Form form, Activation activation>
inline void finish_rows_as(const MatMul& call, size_t m0, unsigned rows, unsigned width, size_t n0, size_t outputs,
                           const int32_t* sums, const float* factors) {
  constexpr unsigned lanes = Lane::lanes;
  const Output& y = call.y;
  const Finish<form, activation> finish(y);
  for (size_t n = 0; n < outputs; n += lanes) {
    const unsigned wide = static_cast<unsigned>(smaller(outputs - n, lanes));
    alignas(64) float edge[lanes] = {};
    if (y.bias) __builtin_memcpy(edge, y.bias + n0 + n, wide * sizeof(float));
    const typename FloatLane::Vec bias = FloatLane::load(edge), factor = FloatLane::load(factors + n);
    for (unsigned i = 0; i < rows; i += lanes) {
      typename Lane::Int square[lanes];
      GRAPHOPT_UNROLL
      for (unsigned c = 0; c < lanes; ++c) square[c] = Lane::load(sums + (n + c) * width + i);
      Lane::transpose(square);
      finish_square<form, activation>(call, finish, m0 + i, static_cast<unsigned>(smaller(rows - i, lanes)), n0 + n, wide,
                                      factor, bias, square);
    }
  }
}

struct FinishRows {
  template <Form form, Activation activation, class... Args>
  static void run(const Args&... args) {
    finish_rows_as<form, activation>(args...);
  }
};

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

inline void finish_rows(const MatMul& call, size_t m0, unsigned rows, unsigned width, size_t panel, const int32_t* sums,
                        float* factors) {
  const size_t n0 = panel * call.w->panel, outputs = smaller(call.w->panel, call.w->n - n0);
  prepare_factors(*call.w, n0, outputs, call.grid, call.y, factors);
  finish<FinishRows>(call, m0, rows, width, n0, outputs, sums, factors);
}
