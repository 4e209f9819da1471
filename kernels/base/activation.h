// What is done to a sum before it is stored. Plain C types only: files for wide instruction sets include this.
#pragma once

namespace graphopt {

//   relu       max(v, 0)                              relu6   min(max(v, 0), 6)
//   clip       min(max(v, low), high)                 silu    v / (1 + e^-v)
//   gelu       v (1 + erf(v / sqrt 2)) / 2            gelu_tanh  v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) / 2
//
// NaN passes through all of them. silu and gelu of -infinity are NaN, as they are where standard operators compute them.
enum class Activation : int { none = 0, relu, relu6, clip, silu, gelu, gelu_tanh };

constexpr int activation_count = 7;

struct Epilogue {
  Activation activation;
  float low, high;  // of clip; relu6 has 0 and 6, relu 0 and infinity
};

}  // namespace graphopt
