// Damages packed weights, for builds with sanitizers: whatever the kernels accept must run on every instruction set
// without a bad access, and agree with the reference. One file per operator defines `accepts_and_runs`.
//
// Every array ends where a page begins that nobody may touch, so that reads and writes beyond it are seen without
// sanitizers too.
//
// Built alone it is a program, fuzz SEED ROUNDS FILE..., that damages the files at random; the files themselves must be
// accepted. With GRAPHOPT_LIBFUZZER it is a target of libFuzzer, which is guided by coverage.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

extern "C" const char* graphopt_isa_report();

namespace fuzz {

using Bytes = std::vector<unsigned char>;

template <class T>
struct Fenced {
  using value_type = T;
  Fenced() = default;
  template <class U>
  Fenced(const Fenced<U>&) {}

  static size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
  static size_t pages(size_t count) { return (count * sizeof(T) + page() - 1) / page() * page(); }

  T* allocate(size_t count) {
    const size_t size = pages(count);
    void* const start = mmap(nullptr, size + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(static_cast<char*>(start) + size, page(), PROT_NONE) != 0) std::abort();
    return reinterpret_cast<T*>(static_cast<char*>(start) + size - count * sizeof(T));
  }
  void deallocate(T* at, size_t count) {
    const size_t size = pages(count);
    munmap(reinterpret_cast<char*>(at) + count * sizeof(T) - size, size + page());
  }
  template <class U>
  bool operator==(const Fenced<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const Fenced<U>&) const {
    return false;
  }
};
using Floats = std::vector<float, Fenced<float>>;
using FencedBytes = std::vector<unsigned char, Fenced<unsigned char>>;

class Random {
 public:
  explicit Random(uint64_t seed) : bits_(seed) {}
  uint64_t next() { return bits_(); }
  size_t below(size_t limit) { return limit == 0 ? 0 : bits_() % limit; }
  // About -1 .. 1.
  float number() { return static_cast<float>(below(2001)) / 1000 - 1; }
  Floats numbers(size_t count) {
    Floats made(count);
    for (float& each : made) each = number();
    return made;
  }

 private:
  std::mt19937_64 bits_;
};

template <class T>
T load(const unsigned char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// The instruction sets that run here.
inline std::vector<std::string> instruction_sets() {
  std::vector<std::string> made;
  std::string text = std::strrchr(graphopt_isa_report(), ' ') + 1;
  for (size_t comma; (comma = text.find(',')) != std::string::npos; text.erase(0, comma + 1))
    made.push_back(text.substr(0, comma));
  made.push_back(text);
  return made;
}

[[noreturn]] inline void fail(const char* isa, const char* what) {
  std::printf("%s: %s\n", isa, what);
  std::fflush(stdout);
  std::abort();
}

// Infinite where one of them is no number.
inline float largest_of(const unsigned char* floats, size_t count) {
  float largest = 0;
  for (size_t i = 0; i < count; ++i) {
    const float size = std::fabs(load<float>(floats + 4 * i));
    largest = size == size ? std::fmax(largest, size) : INFINITY;
  }
  return largest;
}

// Compares sums of so many fp32 products of weights up to `largest` and inputs up to 1. A damaged weight may be huge or
// no number: then there is nothing to compare.
inline void compare(const char* isa, const Floats& found, const Floats& wanted, float largest, size_t terms) {
  if (!(largest < 1e6f)) return;
  const float count = static_cast<float>(terms) + 2, rounding = count * count * largest * 1e-6f;
  for (size_t i = 0; i < found.size(); ++i) {
    if (std::fabs(found[i] - wanted[i]) <= 1e-3f * (1 + std::fabs(wanted[i])) + rounding) continue;
    std::printf("[%zu] %g, wanted %g\n", i, static_cast<double>(found[i]), static_cast<double>(wanted[i]));
    fail(isa, "differs from the reference");
  }
}

// Of each operator: false if the bytes are refused, else runs them.
bool accepts_and_runs(const unsigned char* packed, size_t size, Random& random);

// The bytes with a fence behind them. `slack` bytes before the fence let them lie at every address, also one that is a
// multiple of four.
inline bool run(const Bytes& bytes, size_t slack, Random& random) {
  FencedBytes room(bytes.size() + slack, 0xee);
  if (!bytes.empty()) std::memcpy(room.data(), bytes.data(), bytes.size());
  return accepts_and_runs(room.data(), bytes.size(), random);
}

inline size_t header_of(const Bytes& b) {
  const size_t stated = b.size() < 16 ? 0 : load<uint32_t>(&b[12]);
  return stated >= 64 && stated <= 1024 && stated <= b.size() ? stated : 0;
}

// Makes the header's hash right again.
inline void rehash(Bytes& b) {
  const size_t header = header_of(b);
  if (header == 0) return;
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < header - 8; ++i) hash = (hash ^ b[i]) * 0x100000001b3u;
  std::memcpy(&b[header - 8], &hash, 8);
}

inline void damage(Bytes& b, Random& random) {
  const size_t changes = 1 + random.below(4), header = header_of(b);
  for (size_t i = 0; i < changes && !b.empty(); ++i) {
    const size_t at = random.below(3) == 0 ? random.below(b.size() < header ? b.size() : header) : random.below(b.size());
    const uint64_t odd[] = {0, 1, 0xff, 0xffff, 0xffffffffu, 1ull << 31, 1ull << 63, ~0ull};
    switch (random.below(7)) {
      case 0: b[at] ^= static_cast<unsigned char>(1u << random.below(8)); break;
      case 1: b[at] = static_cast<unsigned char>(random.next()); break;
      case 2: b[at] = 0xff; break;
      case 3: b[at] = static_cast<unsigned char>(b[at] + (random.below(2) ? 1 : 255)); break;
      case 4: {
        const size_t width = size_t{1} << random.below(4), to = at / width * width;
        if (to + width <= b.size()) std::memcpy(&b[to], &odd[random.below(8)], width);
        break;
      }
      case 5: b.resize(at); break;
      default: b.insert(b.begin() + static_cast<std::ptrdiff_t>(at), 1 + random.below(70), 0); break;
    }
  }
  if (b.size() >= 24 && random.below(2)) {
    const uint64_t size = b.size();
    std::memcpy(&b[16], &size, 8);
  }
  if (random.below(4)) rehash(b);
}

}  // namespace fuzz

#if defined(GRAPHOPT_LIBFUZZER)

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t limit);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Random random(size);
  fuzz::run(fuzz::Bytes(data, data + size), random.below(4), random);
  return 0;
}

// Damage that keeps the hash right mostly, else libFuzzer would stand before it for ever.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t limit, unsigned seed) {
  fuzz::Random random(seed);
  if (random.below(2)) size = LLVMFuzzerMutate(data, size, limit);
  fuzz::Bytes bytes(data, data + size);
  fuzz::damage(bytes, random);
  if (bytes.size() > limit) bytes.resize(limit);
  if (!bytes.empty()) std::memcpy(data, bytes.data(), bytes.size());
  return bytes.size();
}

#else

int main(int argc, char** argv) {
  fuzz::Random random(std::strtoull(argv[1], nullptr, 10));
  const long rounds = std::atol(argv[2]);
  long accepted = 0;
  std::vector<fuzz::Bytes> seeds;
  for (int i = 3; i < argc; ++i) {
    std::FILE* file = std::fopen(argv[i], "rb");
    fuzz::Bytes bytes(1 << 20);
    bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file));
    std::fclose(file);
    for (size_t slack = 0; slack < 4; ++slack) {
      if (!fuzz::run(bytes, slack, random)) fuzz::fail(argv[i], "sound, and refused");
    }
    seeds.push_back(bytes);
  }
  for (long i = 0; i < rounds; ++i) {
    fuzz::Bytes bytes = seeds[random.below(seeds.size())];
    fuzz::damage(bytes, random);
    accepted += fuzz::run(bytes, random.below(4), random);
  }
  std::printf("%ld of %ld accepted\n", accepted, rounds);
  return 0;
}

#endif
