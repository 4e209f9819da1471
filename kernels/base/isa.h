// The instruction sets the kernels are written for, and the one choice made at load.
#pragma once

namespace graphopt {

// In rising order: every set includes those before it.
enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

constexpr int isa_count = 3;

// Name as GRAPHOPT_ISA spells it.
const char* isa_name(Isa isa);

// False if no set has this name.
bool isa_from_name(const char* name, Isa* isa);

// True if this library has code for the set and the CPU and the operating system run it.
bool isa_supported(Isa isa);

// The choice of this process: GRAPHOPT_ISA if it is set, else the highest supported set. Made once.
struct IsaChoice {
  Isa isa;
  bool forced;
  const char* error;  // nullptr, or why GRAPHOPT_ISA cannot be followed; `isa` is then the scalar one
};
const IsaChoice& isa_choice();

}  // namespace graphopt
