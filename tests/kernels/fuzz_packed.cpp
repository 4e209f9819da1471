// Damages packed matrices at random, for a build with sanitizers: whatever `check` accepts must run on every
// instruction set without a bad access, and agree with the reference.
//   fuzz_packed SEED ROUNDS FILE...
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

extern "C" int graphopt_sparse_matmul_check(const unsigned char*, size_t, uint64_t*, char*, size_t);
extern "C" int graphopt_sparse_matmul_f32(const unsigned char*, size_t, const char*, const float*, size_t, const float*,
                                          const float*, int, float, float, float*, char*, size_t);
extern "C" const char* graphopt_isa_report();

namespace {

using Bytes = std::vector<unsigned char>;
std::mt19937_64 random_bits;

size_t below(size_t limit) { return limit == 0 ? 0 : random_bits() % limit; }

void rehash(Bytes& b) {
  if (b.size() < 128) return;
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < 120; ++i) hash = (hash ^ b[i]) * 0x100000001b3u;
  std::memcpy(&b[120], &hash, 8);
}

void damage(Bytes& b) {
  const size_t changes = 1 + below(4);
  for (size_t i = 0; i < changes && !b.empty(); ++i) {
    const size_t at = below(3) == 0 ? below(b.size() < 128 ? b.size() : 128) : below(b.size());
    switch (below(5)) {
      case 0: b[at] ^= static_cast<unsigned char>(1u << below(8)); break;
      case 1: b[at] = static_cast<unsigned char>(random_bits()); break;
      case 2: b[at] = 0xff; break;
      case 3: b.resize(at); break;
      default: b.insert(b.begin() + static_cast<std::ptrdiff_t>(at), 1 + below(70), 0); break;
    }
  }
  if (b.size() >= 128 && below(2)) {
    const uint64_t size = b.size();
    std::memcpy(&b[16], &size, 8);
  }
  if (below(4)) rehash(b);
}

// Runs the bytes at an address that is `offset` beyond a multiple of 16, with nothing allocated behind them.
bool run(const Bytes& bytes, size_t offset) {
  std::vector<unsigned char> room(bytes.size() + offset);
  if (!bytes.empty()) std::memcpy(room.data() + offset, bytes.data(), bytes.size());
  const unsigned char* packed = room.data() + offset;
  uint64_t shape[3];
  char message[300];
  if (graphopt_sparse_matmul_check(packed, bytes.size(), shape, message, sizeof message)) return false;
  const uint64_t k = shape[0], n = shape[1];
  if (k * n > (1u << 20)) return true;  // forged sizes that hold together cost only time here

  const size_t sizes[] = {1, 2, 17, 70};
  const size_t m = sizes[below(4)];
  std::vector<float> x(m * k), bias(n), residual(m * n), wanted(m * n), y(m * n);
  for (float& v : x) v = static_cast<float>(below(2001)) / 1000 - 1;
  for (float& v : bias) v = static_cast<float>(below(2001)) / 1000 - 1;
  for (float& v : residual) v = static_cast<float>(below(2001)) / 1000 - 1;
  const float* added = below(2) ? residual.data() : nullptr;
  const int activation = static_cast<int>(below(7));
  if (graphopt_sparse_matmul_f32(packed, bytes.size(), "reference", x.data(), m, bias.data(), added, activation, -1, 1,
                                 wanted.data(), message, sizeof message))
    std::abort();
  for (const char* isa : {"scalar", "avx2", "avx512"}) {
    if (std::strstr(std::strrchr(graphopt_isa_report(), ' '), isa) == nullptr) continue;
    if (graphopt_sparse_matmul_f32(packed, bytes.size(), isa, x.data(), m, bias.data(), added, activation, -1, 1,
                                   y.data(), message, sizeof message))
      std::abort();
    for (size_t i = 0; i < y.size(); ++i) {
      // A damaged value may be huge: only sums that fp32 holds well are compared.
      if (std::fabs(wanted[i]) < 100 && !(std::fabs(y[i] - wanted[i]) < 1e-2f * (1 + std::fabs(wanted[i])))) {
        bool tame = true;
        for (size_t v = bytes.size() - shape[2] * 4; v + 4 <= bytes.size(); v += 4) {
          float value;
          std::memcpy(&value, &bytes[v], 4);
          tame = tame && std::fabs(value) < 1000;
        }
        if (tame) {
          std::printf("%s differs from the reference: %g, %g\n", isa, static_cast<double>(y[i]),
                      static_cast<double>(wanted[i]));
          std::exit(1);
        }
      }
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  random_bits.seed(std::strtoull(argv[1], nullptr, 10));
  const long rounds = std::atol(argv[2]);
  long accepted = 0;
  std::vector<Bytes> seeds;
  for (int i = 3; i < argc; ++i) {
    std::FILE* file = std::fopen(argv[i], "rb");
    Bytes bytes(1 << 20);
    bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file));
    std::fclose(file);
    if (!run(bytes, 0)) return 2;  // undamaged: must be accepted
    seeds.push_back(bytes);
  }
  for (long i = 0; i < rounds; ++i) {
    Bytes bytes = seeds[below(seeds.size())];
    damage(bytes);
    accepted += run(bytes, below(4));
  }
  std::printf("%ld of %ld accepted\n", accepted, rounds);
  return 0;
}
