// The part of avx512vnni.cpp for few rows and codes of one bit: sums are looked up instead of multiplied.
//
// Sixteen codes of an output over sixteen inputs, the same for all outputs, are a number of 16 bits: of five, five and six.
// What the q chosen by each of the three sum up to stands in a table of 32, 32 and 64 words, a vector or two, in which
// vpermw looks up 32 outputs at once. So 1024 weights take 20 instructions, where taking out the codes and multiplying
// takes 40. The tables are made when a row is rounded, a tile of its own, and follow its records.
//
// A chunk has 32 bits of an output. Its halves are the low and the high 16: in the low one bit 8 i + g is input 4 g + i,
// in the high one 4 g + i + 2. A vector of halves holds outputs n in its even words and n + 16 in the odd ones.
//
// Four panels share each load of a table: the tables of a row are larger than L1, and their way from L2 would take as long
// as the looking up. Their four streams are fetched into L2 only, since lines that are on their way to L1 hold up those
// of the tables.

constexpr unsigned table_words = 32;
constexpr unsigned half_words = 4 * table_words;
constexpr unsigned chunk_words = 2 * half_words;
constexpr unsigned summed_chunks = 8;  // 8 * 32 * 127 < 2^15
constexpr size_t lookup_ahead = 3072;

static_assert(chunk_words * sizeof(short) == 32 * lookup_bytes);

// The sums of those of five q that the bits of a word's place in the vector choose.
inline __m512i sums_of_five(const short* q) {
  __m512i sums = _mm512_maskz_set1_epi16(0xaaaaaaaa, q[0]);
  sums = _mm512_mask_add_epi16(sums, 0xcccccccc, sums, _mm512_set1_epi16(q[1]));
  sums = _mm512_mask_add_epi16(sums, 0xf0f0f0f0, sums, _mm512_set1_epi16(q[2]));
  sums = _mm512_mask_add_epi16(sums, 0xff00ff00, sums, _mm512_set1_epi16(q[3]));
  return _mm512_mask_add_epi16(sums, 0xffff0000, sums, _mm512_set1_epi16(q[4]));
}

// From the records of a tile of one row.
inline void make_tables(const PackedMatrix& w, unsigned char* tile) {
  const unsigned char* record = tile;
  short* tables = reinterpret_cast<short*>(tile + records_bytes(w, 1));
  for (size_t b = 0; b < w.blocks; ++b, record += record_bytes(w, 1)) {
    const signed char* q = Record(record, 1).q;
    for (size_t k = 0; k < w.block; k += 32, q += 32) {
      for (unsigned half = 0; half < 2; ++half, tables += half_words) {
        short ordered[16];
        for (unsigned bit = 0; bit < 16; ++bit) ordered[bit] = q[4 * (bit % 8) + bit / 8 + 2 * half];
        const __m512i last = sums_of_five(ordered + 10);
        _mm512_store_si512(tables, sums_of_five(ordered));
        _mm512_store_si512(tables + table_words, sums_of_five(ordered + 5));
        _mm512_store_si512(tables + 2 * table_words, last);
        _mm512_store_si512(tables + 3 * table_words, _mm512_add_epi16(last, _mm512_set1_epi16(ordered[15])));
      }
    }
  }
}

// Loaded once: GCC would make a load part of each instruction that takes the vector, and those are more than the processor
// loads in the same time.
inline __m512i held(const void* at) {
  __m512i a = _mm512_loadu_si512(at);
  __asm__("" : "+v"(a));
  return a;
}

struct Tables {
  __m512i first, second, third, fourth;

  explicit Tables(const short* at)
      : first(held(at)),
        second(held(at + table_words)),
        third(held(at + 2 * table_words)),
        fourth(held(at + 3 * table_words)) {}

  __m512i sums(__m512i halves) const {
    const __m512i low = _mm512_permutexvar_epi16(halves, first);
    const __m512i middle = _mm512_permutexvar_epi16(_mm512_srli_epi16(halves, 5), second);
    const __m512i high = _mm512_permutex2var_epi16(third, _mm512_srli_epi16(halves, 10), fourth);
    return _mm512_add_epi16(_mm512_add_epi16(low, middle), high);
  }
};

inline void fetch(const unsigned char* at) { __asm__ volatile("prefetcht1 (%0)" : : "r"(at)); }

// words[p] += what a chunk of x adds to the outputs of panel p, whose codes start p * stride bytes behind `codes`.
template <unsigned panels>
GRAPHOPT_INLINE void add_chunk(const unsigned char* codes, size_t stride, const short* tables,
                               __m512i (&words)[panels][2]) {
  constexpr __mmask32 odd = 0xaaaaaaaa;
  const Tables low(tables), high(tables + half_words);
  GRAPHOPT_UNROLL
  for (unsigned p = 0; p < panels; ++p) {
    GRAPHOPT_UNROLL
    for (unsigned v = 0; v < 2; ++v) {
      const unsigned char* at = codes + p * stride + v * 128;
      fetch(at + lookup_ahead);
      fetch(at + lookup_ahead + 64);
      const __m512i a = held(at), b = held(at + 64);
      const __m512i low_halves = _mm512_mask_blend_epi16(odd, a, _mm512_slli_epi32(b, 16));
      const __m512i high_halves = _mm512_mask_blend_epi16(odd, _mm512_srli_epi32(a, 16), b);
      words[p][v] = _mm512_add_epi16(words[p][v], low.sums(low_halves));
      words[p][v] = _mm512_add_epi16(words[p][v], high.sums(high_halves));
    }
  }
}

// sum += what 32 outputs' words count: a code of 1 is the level 2.
GRAPHOPT_INLINE void add_words(const __m512i (&words)[2], Lane::Ints (&sum)[1][panel_vectors]) {
  const __m512i even = _mm512_set1_epi32(2), odd = _mm512_set1_epi32(2 << 16);
  GRAPHOPT_UNROLL
  for (unsigned v = 0; v < 2; ++v) {
    sum[0][2 * v] = _mm512_dpwssd_epi32(sum[0][2 * v], words[v], even);
    sum[0][2 * v + 1] = _mm512_dpwssd_epi32(sum[0][2 * v + 1], words[v], odd);
  }
}

// One block of one row against neighbouring panels: sums[panels][64] += ...
template <unsigned panels, bool large>
GRAPHOPT_INLINE void block_by_lookup(const PackedMatrix& w, const unsigned char* block, size_t stride, const Record& x,
                                     const short* tables, float* sums) {
  const unsigned char* zeros = block + panel_columns * sizeof(float);
  const unsigned char* codes = zeros + zeros_bytes(w.zeros);
  for (unsigned p = 0; p < panels; ++p) {
    for (const unsigned char* at = block; at < codes; at += 64) fetch(at + p * stride + lookup_ahead);
  }
  Lane::Ints before[panels][1][panel_vectors] = {};  // of the words that were counted already
  for (size_t chunks = w.block / 32;;) {
    const size_t count = !large || chunks < summed_chunks ? chunks : summed_chunks;
    __m512i words[panels][2] = {};
    for (size_t i = 0; i < count; ++i, codes += 256, tables += chunk_words)
      add_chunk<panels>(codes, stride, tables, words);
    chunks -= count;
    if (large && chunks > 0) {
      for (unsigned p = 0; p < panels; ++p) add_words(words[p], before[p]);
      continue;
    }
    GRAPHOPT_UNROLL
    for (unsigned p = 0; p < panels; ++p) {
      Lane::Ints sum[1][panel_vectors];
      first_sums<false>(w, zeros + p * stride, x.sums, sum);
      add_words(words[p], sum);
      if constexpr (large) {
        for (unsigned v = 0; v < panel_vectors; ++v) sum[0][v] = Lane::add_ints(sum[0][v], before[p][0][v]);
      }
      add_scaled(block + p * stride, x.scales, sum, sums + p * panel_columns);
      if (w.zeros == Zeros::offsets) add_offsets(block + p * stride, 1, x.scales, x.sums, sums + p * panel_columns);
    }
    return;
  }
}

// `panels` neighbouring panels from `panel` on.
template <unsigned panels>
inline void panels_by_lookup(const Call& call, const Rounded& rounded, size_t tile, size_t panel) {
  const PackedMatrix& w = *call.w;
  const size_t stride = block_bytes(w), panel_stride = w.blocks * stride;
  const unsigned char* record = rounded.tiles + tile * rounded.stride;
  const short* tables = reinterpret_cast<const short*>(record + records_bytes(w, 1));
  const unsigned char* block = w.streams + panel * panel_stride;
  alignas(64) float sums[panels * panel_columns] = {};
  for (size_t b = 0; b < w.blocks; ++b, block += stride) {
    const Record x(record, 1);
    if (w.block > 32 * summed_chunks) {
      block_by_lookup<panels, true>(w, block, panel_stride, x, tables, sums);
    } else {
      block_by_lookup<panels, false>(w, block, panel_stride, x, tables, sums);
    }
    record += record_bytes(w, 1);
    tables += w.block / 32 * chunk_words;
  }
  for (unsigned p = 0; p < panels; ++p)
    finish(call, rounded.m0 + rounded.start(tile), 1, panel + p, sums + p * panel_columns);
}

// As Kernels::panels, for calls that look up. The rows after the first find the codes in L2.
inline void look_up(const Call& call, const Rounded& x, size_t first, size_t end, size_t panel, size_t panel_end) {
  for (; panel < panel_end; panel += lookup_panels) {
    const size_t next = panel_end - panel < lookup_panels ? panel_end : panel + lookup_panels;
    for (size_t tile = first; tile < end; ++tile) {
      if (next - panel == lookup_panels) {
        panels_by_lookup<lookup_panels>(call, x, tile, panel);
      } else {
        for (size_t p = panel; p < next; ++p) panels_by_lookup<1>(call, x, tile, p);
      }
    }
  }
}
