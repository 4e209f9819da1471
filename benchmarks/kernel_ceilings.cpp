// What this processor can do at most, one thread: multiply-adds in float32 and in 8-bit integers, and reads from each
// level of memory. Prints one JSON object.
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

#if defined(__AVX512F__)
typedef __m512 Floats;
typedef __m512i Ints;
static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static Floats broadcast(float x) { return _mm512_set1_ps(x); }
static Floats load(const float* p) { return _mm512_load_ps(p); }
static Ints ones() { return _mm512_set1_epi8(1); }
#else
typedef __m256 Floats;
typedef __m256i Ints;
static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
static Floats broadcast(float x) { return _mm256_set1_ps(x); }
static Floats load(const float* p) { return _mm256_load_ps(p); }
static Ints ones() { return _mm256_set1_epi8(1); }
#endif
#if defined(__AVX512VNNI__)
static Ints dot(Ints s, Ints a, Ints b) { return _mm512_dpbusd_epi32(s, a, b); }
#elif defined(__AVX512F__)
static Ints dot(Ints s, Ints a, Ints b) { return _mm512_add_epi32(s, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), b)); }
#elif defined(__AVXVNNI__)
static Ints dot(Ints s, Ints a, Ints b) { return _mm256_dpbusd_avx_epi32(s, a, b); }
#else
static Ints dot(Ints s, Ints a, Ints b) { return _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), b)); }
#endif

enum { chains = 12, lanes = sizeof(Floats) / sizeof(float), tries = 9 };

template <class Body>
static double fastest(Body body) {
  double best = 1e30;
  for (int i = 0; i < tries; ++i) {
    const double start = now();
    body();
    const double took = now() - start;
    best = took < best ? took : best;
  }
  return best;
}

// The chains are locals of a function of their own and end in memory, so that they stay in registers and are not removed.
template <class Vec, class Step>
static double chains_seconds(Vec first, long rounds, Step step) {
  return fastest([&] {
    Vec s0 = first, s1 = first, s2 = first, s3 = first, s4 = first, s5 = first;
    Vec s6 = first, s7 = first, s8 = first, s9 = first, s10 = first, s11 = first;
    for (long r = 0; r < rounds; ++r) {
      s0 = step(s0), s1 = step(s1), s2 = step(s2), s3 = step(s3), s4 = step(s4), s5 = step(s5);
      s6 = step(s6), s7 = step(s7), s8 = step(s8), s9 = step(s9), s10 = step(s10), s11 = step(s11);
      asm volatile("" : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5));
      asm volatile("" : "+v"(s6), "+v"(s7), "+v"(s8), "+v"(s9), "+v"(s10), "+v"(s11));
    }
  });
}

static double fma_gflops() {
  const long rounds = 4000000;
  const Floats a = broadcast(0.999f), b = broadcast(0.001f);
  const double seconds = chains_seconds(b, rounds, [&](Floats s) { return fma(s, a, b); });
  return 2.0 * lanes * chains * rounds / seconds / 1e9;
}

static double dot_gops() {
  const long rounds = 4000000;
  const Ints a = ones();
  const double seconds = chains_seconds(a, rounds, [&](Ints s) { return dot(s, a, a); });
  return 2.0 * 4 * lanes * chains * rounds / seconds / 1e9;
}

static double read_gbytes(const float* data, size_t bytes) {
  const size_t step = 8 * lanes, count = bytes / sizeof(float) / step * step;
  const long rounds = static_cast<long>((1u << 29) / bytes) + 1;
  const double seconds = fastest([&] {
    for (long r = 0; r < rounds; ++r)
      for (size_t i = 0; i < count; i += step) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
          Floats v = load(data + i + j * lanes);
          asm volatile("" : : "v"(v));
        }
      }
  });
  return 1.0 * rounds * count * sizeof(float) / seconds / 1e9;
}

int main() {
  const size_t most = 1u << 29;
  float* data = static_cast<float*>(aligned_alloc(4096, most));
  if (!data) return 1;
  memset(data, 0, most);
  printf("{\"fma_gflops\": %.1f, \"dot_gops\": %.1f, ", fma_gflops(), dot_gops());
  printf("\"l1_gbytes\": %.1f, \"l2_gbytes\": %.1f, ", read_gbytes(data, 16u << 10), read_gbytes(data, 512u << 10));
  printf("\"l3_gbytes\": %.1f, \"dram_gbytes\": %.1f}\n", read_gbytes(data, 12u << 20), read_gbytes(data, most));
  free(data);
  return 0;
}
