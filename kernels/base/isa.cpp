#include "base/isa.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace graphopt {
namespace {

constexpr const char* names[isa_count] = {"scalar", "avx2", "avx512"};

Isa best_supported() {
  for (int i = isa_count - 1; i > 0; --i) {
    if (isa_supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
  }
  return Isa::scalar;
}

IsaChoice choose() {
  static char error[320];
  const char* wanted = std::getenv("GRAPHOPT_ISA");
  if (wanted == nullptr || wanted[0] == '\0') return {best_supported(), false, nullptr};

  Isa isa = Isa::scalar;
  if (!isa_from_name(wanted, &isa)) {
    std::snprintf(error, sizeof error,
                  "GRAPHOPT_ISA is '%.64s', which names no instruction set of these kernels. It must be one of scalar, "
                  "avx2, avx512. Correct it or unset it.",
                  wanted);
    return {Isa::scalar, true, error};
  }
  if (!isa_supported(isa)) {
    std::snprintf(error, sizeof error,
                  "GRAPHOPT_ISA is '%s', which this CPU does not run. The highest set it runs is '%s'. Name that one or "
                  "unset GRAPHOPT_ISA.",
                  isa_name(isa), isa_name(best_supported()));
    return {Isa::scalar, true, error};
  }
  return {isa, true, nullptr};
}

}  // namespace

const char* isa_name(Isa isa) { return names[static_cast<int>(isa)]; }

bool isa_from_name(const char* name, Isa* isa) {
  for (int i = 0; i < isa_count; ++i) {
    if (std::strcmp(name, names[i]) == 0) {
      *isa = static_cast<Isa>(i);
      return true;
    }
  }
  return false;
}

bool isa_supported(Isa isa) {
#if defined(GRAPHOPT_X86)
  switch (isa) {
    case Isa::scalar: return true;
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return isa_supported(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return isa == Isa::scalar;
#endif
}

const IsaChoice& isa_choice() {
  static const IsaChoice choice = choose();
  return choice;
}

}  // namespace graphopt
