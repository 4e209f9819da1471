#include "base/activation_reference.h"

#include <cmath>

namespace graphopt {
namespace {

double clipped(double v, double low, double high) {
  const double raised = v < low ? low : v;  // NaN passes
  return raised > high ? high : raised;
}

}  // namespace

double activation_reference(double v, const Epilogue& epilogue) {
  switch (epilogue.activation) {
    case Activation::none: return v;
    case Activation::relu: return v < 0 ? 0 : v;
    case Activation::relu6: return clipped(v, 0, 6);
    case Activation::clip: return clipped(v, epilogue.low, epilogue.high);
    case Activation::silu: return v / (1 + std::exp(-v));
    case Activation::gelu: return v * 0.5 * std::erfc(-v * std::sqrt(0.5));
    case Activation::gelu_tanh: {
      const double pi = 3.14159265358979323846;
      return v * 0.5 * (1 + std::tanh(std::sqrt(2 / pi) * (v + 0.044715 * v * v * v)));
    }
  }
  return v;
}

}  // namespace graphopt
