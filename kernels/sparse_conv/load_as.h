// What vector types and the algorithm over them have alike. Included inside an anonymous namespace, before both.

#define GRAPHOPT_UNROLL _Pragma("GCC unroll 16")
#define GRAPHOPT_INLINE inline __attribute__((always_inline))

template <class T>
GRAPHOPT_INLINE T load_as(const unsigned char* at) {
  T value;
  __builtin_memcpy(&value, at, sizeof value);
  return value;
}
