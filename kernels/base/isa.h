// The instruction sets the kernels are written for, and the one choice made at load.
//
// A set is there only where a kernel gains by it. On x86-64 each is a generation of processors:
//   avx2        AVX2, FMA                           Haswell, Zen
//   avxvnni     avx2 with AVX-VNNI                  Alder Lake: 8-bit dot products in 256-bit vectors
//   avx512      AVX-512 F, BW, DQ, VL, with FMA     Skylake server
//   avx512vnni  avx512 with VNNI                    Cascade Lake: 8-bit dot products in 512-bit vectors
// GFNI and VBMI have no set of their own: bit fields in one instruction instead of two gained nothing (Zen 4).
// On 64-bit Arm:
//   neon          the baseline of the platform      every processor
//   neon-dotprod  neon with the dot products        Cortex-A75 and newer, Apple M1, Graviton 2
// They are no ladder: a processor of the avx512 family need not have AVX-VNNI. `isa_below` says what each is built on.
#pragma once

namespace graphopt {

// In the order of preference: a processor that runs several takes the last of them.
enum class Isa : int { scalar, avx2, avxvnni, avx512, avx512vnni, neon, neon_dotprod };

constexpr int isa_count = 7;

// The set that `isa` is built on: whatever runs `isa` runs it too. `scalar` is built on itself.
constexpr Isa isa_below(Isa isa) {
  switch (isa) {
    case Isa::avxvnni:
    case Isa::avx512: return Isa::avx2;
    case Isa::avx512vnni: return Isa::avx512;
    case Isa::neon_dotprod: return Isa::neon;
    case Isa::scalar:
    case Isa::avx2:
    case Isa::neon: break;
  }
  return Isa::scalar;
}

// True if whatever runs `isa` runs `part`.
constexpr bool isa_includes(Isa isa, Isa part) {
  while (isa != part && isa != Isa::scalar) isa = isa_below(isa);
  return isa == part;
}

// The implementations of one family of kernels by instruction set; a set without one is left out and takes the
// implementation of the set it is built on. There is always a scalar one.
template <class Kernels>
struct IsaTable {
  const Kernels* of[isa_count] = {};

  constexpr IsaTable& set(Isa isa, const Kernels& kernels) {
    of[static_cast<int>(isa)] = &kernels;
    return *this;
  }
  constexpr const Kernels& best(Isa isa) const {
    while (of[static_cast<int>(isa)] == nullptr) isa = isa_below(isa);
    return *of[static_cast<int>(isa)];
  }
};

// Name as GRAPHOPT_ISA spells it.
const char* isa_name(Isa isa);

// False if no set of this platform has this name.
bool isa_from_name(const char* name, Isa* isa);

// True if it is a set of this platform and the CPU and the operating system run it.
bool isa_supported(Isa isa);

// The choice of this process: GRAPHOPT_ISA if it is set, else the last supported set. Made once.
struct IsaChoice {
  Isa isa;
  bool forced;
  const char* error;  // nullptr, or why GRAPHOPT_ISA cannot be followed; `isa` is then the scalar one
};
const IsaChoice& isa_choice();

}  // namespace graphopt
