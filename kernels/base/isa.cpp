#include "base/isa.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(GRAPHOPT_X86)
#include <cpuid.h>
#elif defined(GRAPHOPT_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(GRAPHOPT_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace graphopt {
namespace {

constexpr const char* names[isa_count] = {"scalar",     "avx2", "avxvnni",     "avx512",
                                          "avx512vnni", "neon", "neon-dotprod"};

// The library has code for it, whatever the CPU.
bool of_this_platform(Isa isa) {
#if defined(GRAPHOPT_X86)
  return isa == Isa::scalar || isa_includes(isa, Isa::avx2);
#elif defined(GRAPHOPT_ARM64)
  return isa == Isa::scalar || isa_includes(isa, Isa::neon);
#else
  return isa == Isa::scalar;
#endif
}

// What `isa` needs beyond the set below it. The builtin also asks the operating system whether it keeps the registers.
bool has_own_instructions(Isa isa) {
  switch (isa) {
    case Isa::scalar: return true;
#if defined(GRAPHOPT_X86)
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(GRAPHOPT_AVXVNNI_AS_AVX512)
    case Isa::avxvnni: return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    case Isa::avxvnni: {
      // Older compilers do not know the name. Its registers are those of AVX2.
      unsigned a = 0, b = 0, c = 0, d = 0;
      return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1u);
    }
#endif
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::avx512vnni: return __builtin_cpu_supports("avx512vnni");
#elif defined(GRAPHOPT_ARM64)
    case Isa::neon: return true;
    case Isa::neon_dotprod: {
#if defined(__linux__)
      constexpr unsigned long dot_products = 1ul << 20;  // HWCAP_ASIMDDP
      return (getauxval(AT_HWCAP) & dot_products) != 0;
#elif defined(__APPLE__)
      int has = 0;
      size_t size = sizeof has;
      return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
      return false;
#endif
    }
#endif
    default: return false;
  }
}

Isa best_supported() {
  for (int i = isa_count - 1; i > 0; --i) {
    if (isa_supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
  }
  return Isa::scalar;
}

IsaChoice choose() {
  static char error[400];
  const char* wanted = std::getenv("GRAPHOPT_ISA");
  if (wanted == nullptr || wanted[0] == '\0') return {best_supported(), false, nullptr};

  Isa isa = Isa::scalar;
  if (!isa_from_name(wanted, &isa)) {
    char valid[128] = "scalar";
    for (int i = 1; i < isa_count; ++i) {
      if (!of_this_platform(static_cast<Isa>(i))) continue;
      std::strcat(valid, ", ");
      std::strcat(valid, names[i]);
    }
    std::snprintf(error, sizeof error,
                  "GRAPHOPT_ISA is '%.64s', which names no instruction set of these kernels. It must be one of %s. "
                  "Correct it or unset it.",
                  wanted, valid);
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
    if (std::strcmp(name, names[i]) != 0 || !of_this_platform(static_cast<Isa>(i))) continue;
    *isa = static_cast<Isa>(i);
    return true;
  }
  return false;
}

bool isa_supported(Isa isa) {
  if (!of_this_platform(isa) || !has_own_instructions(isa)) return false;
  return isa == Isa::scalar || isa_supported(isa_below(isa));
}

const IsaChoice& isa_choice() {
  static const IsaChoice choice = choose();
  return choice;
}

}  // namespace graphopt
