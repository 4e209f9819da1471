// What algorithms over vectors use everywhere. Included inside an anonymous namespace.

#define GRAPHOPT_UNROLL _Pragma("GCC unroll 16")

// A number at an address that need not be aligned.
template <class T>
inline T load_as(const unsigned char* at) {
  T value;
  __builtin_memcpy(&value, at, sizeof value);
  return value;
}

inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
constexpr size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }
