// The activations of activation.h over vectors. Included inside an anonymous namespace after a lane_*.h, so that every
// function here is private to the file that includes it.
//
// FloatLane: Vec; lanes; zero, set1, load, store; fma(a, b, c) = a b + c; add, mul, div; at_least(a, low) and
// at_most(a, high), through which a NaN in `a` passes; abs; round to the nearest integer; exp2(n) for integers n of
// -126..127; where_greater(a, bound, value): value where a > bound, else 0; where_negative(a, negative, other).

template <class L, unsigned N>
inline typename L::Vec polynomial(typename L::Vec x, const float (&coefficients)[N]) {
  typename L::Vec sum = L::set1(coefficients[N - 1]);
#pragma GCC unroll 16
  for (unsigned i = 2; i <= N; ++i) sum = L::fma(sum, x, L::set1(coefficients[N - i]));
  return sum;
}

// e^x for x at or below 88; below -87.3 the smallest normal power of two and its like, not less. Relative error at most
// 2e-7. The polynomial is a minimax fit of degree 6 on [-ln 2 / 2, ln 2 / 2].
template <class L>
inline typename L::Vec exponential(typename L::Vec x) {
  static constexpr float fit[] = {1.0f, 1.0f, 0.4999999f, 0.1666642f, 0.041668225f, 0.008374816f, 0.0013836846f};
  x = L::at_most(L::at_least(x, L::set1(-87.3f)), L::set1(88.0f));
  const typename L::Vec n = L::round(L::mul(x, L::set1(1.44269504f)));
  typename L::Vec rest = L::fma(n, L::set1(-0.693359375f), x);  // ln 2 in two parts, the first exact in n * part
  rest = L::fma(n, L::set1(2.12194440e-4f), rest);
  return L::mul(polynomial<L>(rest, fit), L::exp2(n));
}

// 1 / (1 + e^-x), 0 from -87.3 down.
template <class L>
inline typename L::Vec sigmoid(typename L::Vec x) {
  const typename L::Vec one = L::set1(1.0f);
  const typename L::Vec value = L::div(one, L::add(one, exponential<L>(L::mul(x, L::set1(-1.0f)))));
  return L::where_greater(x, L::set1(-87.3f), value);
}

// x * (share of the normal distribution below x). Where x is negative the share is erfc(a) / 2, a = |x| / sqrt 2, as
// e^(-a^2) t P(t) with t = 1 / (1 + 0.35 a): P is a minimax fit of degree 9 for a of 0..9.2, relative error 1e-8.
template <class L>
inline typename L::Vec gelu(typename L::Vec x) {
  static constexpr float fit[] = {0.19749148f, 0.19700006f,  0.18897037f, 0.14652416f, 0.15873607f,
                                  0.06462933f, -0.002084029f, 0.16308732f, -0.1514235f, 0.037068736f};
  const typename L::Vec one = L::set1(1.0f);
  const typename L::Vec a = L::mul(L::abs(x), L::set1(0.707106781f));
  const typename L::Vec t = L::div(one, L::fma(a, L::set1(0.35f), one));
  const typename L::Vec down = L::mul(L::mul(x, x), L::set1(-0.5f));
  typename L::Vec tail = L::mul(L::mul(exponential<L>(down), t), polynomial<L>(t, fit));
  tail = L::mul(L::set1(0.5f), L::where_greater(L::set1(9.2f), a, tail));
  const typename L::Vec share = L::where_negative(x, tail, L::fma(tail, L::set1(-1.0f), one));
  return L::mul(x, share);
}

// tanh(u) = 2 sigmoid(2 u) - 1, so that the share is a sigmoid.
template <class L>
inline typename L::Vec gelu_tanh(typename L::Vec x) {
  const typename L::Vec cubic = L::fma(L::mul(L::mul(x, x), x), L::set1(0.0713548163f), L::mul(x, L::set1(1.59576912f)));
  return L::mul(x, sigmoid<L>(cubic));
}

template <class L, Activation activation>
inline typename L::Vec activated(typename L::Vec v, const Epilogue& e) {
  if constexpr (activation == Activation::relu) return L::at_least(v, L::zero());
  if constexpr (activation == Activation::relu6) return L::at_most(L::at_least(v, L::zero()), L::set1(6.0f));
  if constexpr (activation == Activation::clip) return L::at_most(L::at_least(v, L::set1(e.low)), L::set1(e.high));
  if constexpr (activation == Activation::silu) return L::mul(v, sigmoid<L>(v));
  if constexpr (activation == Activation::gelu) return gelu<L>(v);
  if constexpr (activation == Activation::gelu_tanh) return gelu_tanh<L>(v);
  return v;
}

// The same chosen at run time; for loops that are not hot.
template <class L>
inline typename L::Vec activate(typename L::Vec v, const Epilogue& e) {
  switch (e.activation) {
    case Activation::none: return v;
    case Activation::relu: return activated<L, Activation::relu>(v, e);
    case Activation::relu6: return activated<L, Activation::relu6>(v, e);
    case Activation::clip: return activated<L, Activation::clip>(v, e);
    case Activation::silu: return activated<L, Activation::silu>(v, e);
    case Activation::gelu: return activated<L, Activation::gelu>(v, e);
    case Activation::gelu_tanh: return activated<L, Activation::gelu_tanh>(v, e);
  }
  return v;
}
