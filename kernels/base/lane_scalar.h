// Eight floats for the baseline of the platform: no vector types, the compiler vectorizes what it may.
// Included inside an anonymous namespace, like every lane_*.h; see activation_lane.h for what the functions mean.

struct FloatLane {
  static constexpr unsigned lanes = 8;
  struct Vec {
    float v[lanes];
  };

  template <class Function>
  static Vec each(Function function) {
    Vec r;
    for (unsigned i = 0; i < lanes; ++i) r.v[i] = function(i);
    return r;
  }

  static Vec zero() { return set1(0.0f); }
  static Vec set1(float a) {
    return each([&](unsigned) { return a; });
  }
  static Vec load(const float* at) {
    return each([&](unsigned i) { return at[i]; });
  }
  static void store(float* at, const Vec& a) {
    for (unsigned i = 0; i < lanes; ++i) at[i] = a.v[i];
  }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](unsigned i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static Vec add(const Vec& a, const Vec& b) {
    return each([&](unsigned i) { return a.v[i] + b.v[i]; });
  }
  static Vec mul(const Vec& a, const Vec& b) {
    return each([&](unsigned i) { return a.v[i] * b.v[i]; });
  }
  static Vec div(const Vec& a, const Vec& b) {
    return each([&](unsigned i) { return a.v[i] / b.v[i]; });
  }
  static Vec at_least(const Vec& a, const Vec& low) {
    return each([&](unsigned i) { return a.v[i] < low.v[i] ? low.v[i] : a.v[i]; });
  }
  static Vec at_most(const Vec& a, const Vec& high) {
    return each([&](unsigned i) { return a.v[i] > high.v[i] ? high.v[i] : a.v[i]; });
  }
  static Vec abs(const Vec& a) {
    return each([&](unsigned i) { return __builtin_fabsf(a.v[i]); });
  }
  static Vec round(const Vec& a) {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, ties to even, for |a| below 2^22.
    return each([&](unsigned i) {
      const float shifted = a.v[i] + 12582912.0f;
      return shifted - 12582912.0f;
    });
  }
  static Vec exp2(const Vec& n) {
    return each([&](unsigned i) {
      const unsigned bits = static_cast<unsigned>((n.v[i] == n.v[i] ? static_cast<int>(n.v[i]) : 0) + 127) << 23;
      float power;
      __builtin_memcpy(&power, &bits, sizeof power);
      return power;
    });
  }
  static Vec where_greater(const Vec& a, const Vec& bound, const Vec& value) {
    return each([&](unsigned i) { return a.v[i] > bound.v[i] ? value.v[i] : 0.0f; });
  }
  static Vec where_negative(const Vec& a, const Vec& negative, const Vec& other) {
    return each([&](unsigned i) { return a.v[i] < 0.0f ? negative.v[i] : other.v[i]; });
  }
};
