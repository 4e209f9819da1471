// The algorithm of all instruction sets, written once over a vector type. Each implementation defines `Lane` in an
// anonymous namespace, after a lane_*.h and activation_lane.h, and includes this file inside it, so that every function
// here is private to that file.
//
// Lane: a FloatLane, and
//   Bytes, Ints: vectors of 4 * lanes bytes and of `lanes` int32; load_bytes, store_bytes, load_floats, set_ints,
//     store_ints, add_ints, mul_ints, to_float, as_ints; widen(uint8*): lanes bytes as Ints; byte<i>(Ints): byte i of
//     each lane as an unsigned number
//   moved_field<bits, from, to>(Bytes): the bit field from bit `from` of each byte, moved to bit `to`, all else zero;
//     either(a, b): a | b; lookup(Bytes book, Bytes): sixteen bytes, repeated; broadcast<rows>(int8*): four bytes,
//     repeated, in what dot takes
//   Part: what is summed within a chunk; dot<wide>(part, sum, codes, x): codes up to 15, or up to 255 if wide;
//     fold(part, sum): adds the part; bias<wide>: what dot takes off wide codes
//   magnitude(Ints sum, float*): bitwise maximum of |x|; round(Vec): Ints, half to even; highest(Ints), total(Ints): over
//     the lanes; store_low(int8*, Ints)
//   raises: levels may be up to 240; shift_down<by>(Ints): arithmetic
//   max_rows; vectors(rows): how many vectors of outputs are summed at once, a divisor of 64 / lanes; prefetch(at)
//
// A few rows meet the codes as they are taken out of the stream (panel_of); more rows meet levels that were taken out of a
// strip of the stream once for all of them (tile_rows.h).

#define GRAPHOPT_UNROLL _Pragma("GCC unroll 32")
// Arrays of sums stay in registers only where no function takes their address.
#define GRAPHOPT_INLINE inline __attribute__((always_inline))

constexpr unsigned row_bytes = 4 * panel_columns;
constexpr unsigned panel_vectors = panel_columns / Lane::lanes;
constexpr unsigned vector_bytes = 4 * Lane::lanes;
// Streams of few bits are fetched ahead; the processor follows denser ones better by itself (measured on Zen 4).
constexpr size_t prefetch_ahead = 4096;

using Vec = FloatLane::Vec;

template <class T>
inline T load_as(const unsigned char* at) {
  T value;
  __builtin_memcpy(&value, at, sizeof value);
  return value;
}

// How codes lie in a chunk of so many inputs, and what becomes of them.
template <unsigned bits_, unsigned chunk_, bool book_>
struct Codes {
  static constexpr unsigned bits = bits_, chunk = chunk_;
  static constexpr bool book = book_;
  static constexpr bool wide = bits == 8 || book;
  static constexpr unsigned groups = chunk / 4;
  static constexpr unsigned chunk_bytes = chunk * panel_columns * bits / 8;
};

// The levels of group g of a chunk for the vector of outputs whose codes start at `at`. Raised levels stay one field
// higher than the group before, so that both take one shift: they are `raise` bits too high.
template <class C>
constexpr unsigned raise = C::book || C::bits == 8 || C::bits == 3 ? 0 : C::bits;

template <class C, unsigned g, bool raised = false>
GRAPHOPT_INLINE Lane::Bytes group_levels(const unsigned char* at, Lane::Bytes book) {
  Lane::Bytes codes;
  if constexpr (C::bits == 3) {
    const Lane::Bytes low = Lane::load_bytes(at + g / 4 * row_bytes);
    codes = Lane::either(Lane::template moved_field<2, 2 * (g % 4), 0>(low),
                         Lane::template moved_field<1, g, 2>(Lane::load_bytes(at + 2 * row_bytes)));
  } else {
    constexpr unsigned per_byte = 8 / C::bits;
    const Lane::Bytes row = Lane::load_bytes(at + g / per_byte * row_bytes);
    constexpr unsigned to = (C::bits == 1 ? 1 : 0) + (raised ? raise<C> : 0);
    if constexpr (C::bits == 8) {
      codes = row;
    } else {
      codes = Lane::template moved_field<C::bits, C::bits * (g % per_byte), to>(row);
    }
  }
  if constexpr (C::book) codes = Lane::lookup(book, codes);
  return codes;
}

// One row has few sums, each of which would wait for the product before: its odd groups have sums of their own.
template <class C, unsigned rows, unsigned vectors, unsigned g>
GRAPHOPT_INLINE void add_groups(const unsigned char* codes, const signed char* x, Lane::Bytes book,
                                Lane::Part (&part)[rows][vectors], Lane::Ints (&sum)[rows][vectors],
                                Lane::Ints (&odd)[rows][vectors]) {
  if constexpr (g < C::groups) {
    Lane::Bytes levels[vectors];
    GRAPHOPT_UNROLL
    for (unsigned v = 0; v < vectors; ++v)
      levels[v] = group_levels<C, g, rows == 1 && Lane::raises && g % 2 == 1>(codes + v * vector_bytes, book);
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < rows; ++r) {
      const auto four = Lane::template broadcast<rows>(x + (g * rows + r) * 4);
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < vectors; ++v)
        Lane::template dot<C::wide>(part[r][v], rows == 1 && g % 2 ? odd[r][v] : sum[r][v], levels[v], four);
    }
    add_groups<C, rows, vectors, g + 1>(codes, x, book, part, sum, odd);
  }
}

// A block of a tile.
struct Record {
  const float* scales;
  const int* sums;
  const signed char* q;

  Record(const unsigned char* at, size_t rows)
      : scales(reinterpret_cast<const float*>(at)),
        sums(reinterpret_cast<const int*>(at + rows * 4)),
        q(reinterpret_cast<const signed char*>(at + rows * 8)) {}
};

// What the sum of a block's q is multiplied with when x is rounded.
inline int sum_factor(const PackedMatrix& w) {
  const bool wide = w.bits == 8 || w.levels != Levels::codes;
  const int bias = wide ? Lane::bias<true> : Lane::bias<false>;
  return w.zeros == Zeros::constant ? bias - w.zero : 1;
}

// Where the integer sums of a block start: what the zeros, and the bias of the codes, add to them.
template <bool wide, unsigned rows, unsigned vectors>
GRAPHOPT_INLINE void first_sums(const PackedMatrix& w, const unsigned char* zeros, const int* x_sums,
                       Lane::Ints (&sum)[rows][vectors]) {
  constexpr int bias = Lane::bias<wide>;
  if (w.zeros == Zeros::bytes) {
    GRAPHOPT_UNROLL
    for (unsigned v = 0; v < vectors; ++v) {
      const Lane::Ints zero = Lane::add_ints(Lane::widen(zeros + v * Lane::lanes), Lane::set_ints(-bias));
      GRAPHOPT_UNROLL
      for (unsigned r = 0; r < rows; ++r) sum[r][v] = Lane::mul_ints(zero, Lane::set_ints(-x_sums[r]));
    }
    return;
  }
  const int factor = w.zeros == Zeros::constant ? 1 : bias;
  GRAPHOPT_UNROLL
  for (unsigned r = 0; r < rows; ++r) {
    const Lane::Ints start = bias == 0 && factor == 0 ? Lane::set_ints(0) : Lane::set_ints(x_sums[r] * factor);
    GRAPHOPT_UNROLL
    for (unsigned v = 0; v < vectors; ++v) sum[r][v] = start;
  }
}

// sums[rows][64] += scale * x_scale * sum, for vectors of outputs from `scales` and `sums` on.
template <unsigned rows, unsigned vectors>
GRAPHOPT_INLINE void add_scaled(const unsigned char* scales, const float* x_scales, const Lane::Ints (&sum)[rows][vectors],
                       float* sums) {
  GRAPHOPT_UNROLL
  for (unsigned v = 0; v < vectors; ++v) {
    const Vec scale = Lane::load_floats(scales + v * vector_bytes);
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < rows; ++r) {
      float* at = sums + r * panel_columns + v * Lane::lanes;
      const Vec factor = FloatLane::mul(scale, FloatLane::set1(x_scales[r]));
      FloatLane::store(at, FloatLane::fma(Lane::to_float(sum[r][v]), factor, FloatLane::load(at)));
    }
  }
}

// One block of `rows` rows against `vectors` vectors of outputs from `first` on.
template <class C, unsigned rows, unsigned vectors>
GRAPHOPT_INLINE void block_part(const PackedMatrix& w, const unsigned char* block, unsigned first, const Record& x,
                       Lane::Bytes book, float* sums) {
  const unsigned char* zeros = block + panel_columns * sizeof(float);
  const unsigned char* codes = zeros + zeros_bytes(w.zeros) + first * vector_bytes;
  Lane::Ints sum[rows][vectors], odd[rows][vectors];
  first_sums<C::wide>(w, zeros + first * Lane::lanes, x.sums, sum);
  GRAPHOPT_UNROLL
  for (unsigned v = 0; v < vectors; ++v) odd[0][v] = Lane::set_ints(0);
  const signed char* q = x.q;
  const unsigned char* const codes_end = codes + w.block / C::chunk * C::chunk_bytes;
  for (; codes != codes_end; codes += C::chunk_bytes, q += C::chunk * rows) {
    if constexpr (C::bits <= 3) {
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < vectors * C::chunk_bytes / row_bytes; v += 64 / vector_bytes)
        Lane::prefetch(codes + v / vectors * row_bytes + v % vectors * vector_bytes + prefetch_ahead);
    }
    Lane::Part part[rows][vectors] = {};
    add_groups<C, rows, vectors, 0>(codes, q, book, part, sum, odd);
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < rows; ++r) {
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < vectors; ++v) Lane::fold(part[r][v], sum[r][v]);
    }
  }
  if constexpr (rows == 1) {
    GRAPHOPT_UNROLL
    for (unsigned v = 0; v < vectors; ++v)
      sum[0][v] = Lane::add_ints(sum[0][v], Lane::template shift_down<Lane::raises ? raise<C> : 0>(odd[0][v]));
  }
  add_scaled(block + first * vector_bytes, x.scales, sum, sums + first * Lane::lanes);
}

// sums[n] += offset[n] * x_scale * x_sum
inline void add_offsets(const unsigned char* block, unsigned rows, const float* x_scales, const int* x_sums,
                        float* sums) {
  const unsigned char* offsets = block + panel_columns * sizeof(float);
  for (unsigned r = 0; r < rows; ++r) {
    const Vec total = FloatLane::set1(x_scales[r] * static_cast<float>(x_sums[r]));
    for (unsigned n = 0; n < panel_columns; n += Lane::lanes) {
      float* at = sums + r * panel_columns + n;
      FloatLane::store(at, FloatLane::fma(Lane::load_floats(offsets + n * sizeof(float)), total, FloatLane::load(at)));
    }
  }
}

// sums[rows][64] -> y
inline void finish(const Call& call, size_t m0, unsigned rows, size_t panel, const float* sums) {
  const size_t n = call.w->n, n0 = panel * panel_columns;
  const size_t columns = n - n0 < panel_columns ? n - n0 : panel_columns;
  for (unsigned r = 0; r < rows; ++r) {
    const size_t at = (m0 + r) * n + n0;
    for (size_t i = 0; i < columns; i += Lane::lanes) {
      Vec v = FloatLane::load(sums + r * panel_columns + i);
      if (i + Lane::lanes <= columns) {
        if (call.bias) v = FloatLane::add(v, FloatLane::load(call.bias + n0 + i));
        if (call.residual) v = FloatLane::add(v, FloatLane::load(call.residual + at + i));
        FloatLane::store(call.y + at + i, activate<FloatLane>(v, call.epilogue));
        continue;
      }
      float last[Lane::lanes], added[Lane::lanes] = {}, more[Lane::lanes] = {};
      for (size_t j = 0; j < columns - i; ++j) {
        if (call.bias) added[j] = call.bias[n0 + i + j];
        if (call.residual) more[j] = call.residual[at + i + j];
      }
      v = FloatLane::add(FloatLane::add(v, FloatLane::load(added)), FloatLane::load(more));
      FloatLane::store(last, activate<FloatLane>(v, call.epilogue));
      for (size_t j = 0; j < columns - i; ++j) call.y[at + i + j] = last[j];
    }
  }
}

inline Lane::Bytes book_of(const PackedMatrix& w) {
  alignas(16) unsigned char levels[book_size] = {};
  if (w.levels == Levels::bytes) {
    for (unsigned i = 0; i < book_size; ++i) levels[i] = static_cast<unsigned char>(w.book[i]);
  }
  return Lane::repeat(levels);
}

template <class C, unsigned rows>
inline void panel_of(const Call& call, const Rounded& rounded, size_t tile, size_t panel) {
  constexpr unsigned vectors = Lane::vectors(rows);
  const PackedMatrix& w = *call.w;
  const unsigned char* record = rounded.tiles + tile * rounded.stride;
  const Lane::Bytes book = book_of(w);
  alignas(64) float sums[rows * panel_columns] = {};
  const size_t stride = block_bytes(w);
  const unsigned char* block = w.streams + panel * w.blocks * stride;
  for (size_t b = 0; b < w.blocks; ++b, block += stride, record += record_bytes(w, rows)) {
    const Record x(record, rows);
    for (unsigned first = 0; first < panel_vectors; first += vectors)
      block_part<C, rows, vectors>(w, block, first, x, book, sums);
    if (w.zeros == Zeros::offsets) add_offsets(block, rows, x.scales, x.sums, sums);
  }
  finish(call, rounded.m0 + rounded.start(tile), rows, panel, sums);
}

template <class C, unsigned most>
inline void panel_of_rows(const Call& call, const Rounded& x, size_t tile, size_t panel) {
  if constexpr (most > 1) {
    if (x.size(tile) < most) return panel_of_rows<C, most - 1>(call, x, tile, panel);
  }
  panel_of<C, most>(call, x, tile, panel);
}

#include "low_bit_matmul/tile_rows.h"

template <class C>
inline void panel_of_codes(const Call& call, const Rounded& x, size_t first, size_t end, size_t panel) {
  if (takes_out_once(*call.w, x.start(end) - x.start(first))) return panel_of_tiles<C>(call, x, first, end, panel);
  for (; first < end; ++first) panel_of_rows<C, Lane::max_rows>(call, x, first, panel);
}

inline void one_panel(const Call& call, const Rounded& x, size_t first, size_t end, size_t panel) {
  const PackedMatrix& w = *call.w;
  if (w.levels == Levels::codes && w.block != 16) {
    switch (w.bits) {
      case 1: return panel_of_codes<Codes<1, 32, false>>(call, x, first, end, panel);
      case 2: return panel_of_codes<Codes<2, 32, false>>(call, x, first, end, panel);
      case 3: return panel_of_codes<Codes<3, 32, false>>(call, x, first, end, panel);
      case 4: return panel_of_codes<Codes<4, 32, false>>(call, x, first, end, panel);
      default: return panel_of_codes<Codes<8, 32, false>>(call, x, first, end, panel);
    }
  }
  if (w.levels == Levels::codes) {
    switch (w.bits) {
      case 2: return panel_of_codes<Codes<2, 16, false>>(call, x, first, end, panel);
      case 4: return panel_of_codes<Codes<4, 16, false>>(call, x, first, end, panel);
      default: return panel_of_codes<Codes<8, 16, false>>(call, x, first, end, panel);
    }
  }
  switch (w.bits) {
    case 2: return panel_of_codes<Codes<2, 32, true>>(call, x, first, end, panel);
    case 3: return panel_of_codes<Codes<3, 32, true>>(call, x, first, end, panel);
    default: return panel_of_codes<Codes<4, 32, true>>(call, x, first, end, panel);
  }
}

inline void panels(const Call& call, const Rounded& x, size_t first, size_t end, size_t panel, size_t panel_end) {
  for (; panel < panel_end; ++panel) one_panel(call, x, first, end, panel);
}

// One block of one row: q[block] and its sum, or the scale NaN where a number is not finite.
inline void round_block(const float* x, size_t block, signed char* q, float* scale, int* sum) {
  Lane::Ints largest = Lane::set_ints(0);
  for (size_t i = 0; i < block; i += Lane::lanes) largest = Lane::magnitude(largest, x + i);
  const int bits = Lane::highest(largest);

  constexpr int infinity = 0x7f800000, tiny = (127 - 100) << 23;
  float a, factor = 0.0f;
  __builtin_memcpy(&a, &bits, sizeof a);
  *scale = bits >= infinity ? __builtin_nanf("") : bits < tiny ? 0.0f : a / 127.0f;
  if (bits >= tiny && bits < infinity) factor = 127.0f / a;
  if (factor == 0.0f) {
    __builtin_memset(q, 0, block);
    *sum = 0;
    return;
  }
  Lane::Ints total = Lane::set_ints(0);
  for (size_t i = 0; i < block; i += Lane::lanes) {
    const Lane::Ints rounded = Lane::round(FloatLane::mul(FloatLane::load(x + i), FloatLane::set1(factor)));
    total = Lane::add_ints(total, rounded);
    Lane::store_low(q + i, rounded);
  }
  *sum = Lane::total(total);
}

inline void round(const Call& call, const Rounded& rounded, size_t tile) {
  const PackedMatrix& w = *call.w;
  const size_t m0 = rounded.m0 + rounded.start(tile), rows = rounded.size(tile);
  unsigned char* record = rounded.tiles + tile * rounded.stride;
  const int factor = sum_factor(w);
  float padded[max_block];
  signed char apart[max_block];
  for (size_t b = 0; b < w.blocks; ++b, record += record_bytes(w, rows)) {
    float* scales = reinterpret_cast<float*>(record);
    int* sums = reinterpret_cast<int*>(record + rows * 4);
    signed char* q = reinterpret_cast<signed char*>(record + rows * 8);
    const size_t left = w.k - b * w.block;
    for (size_t r = 0; r < rows; ++r) {
      const float* x = call.x + (m0 + r) * w.k + b * w.block;
      if (left < w.block) {
        __builtin_memcpy(padded, x, left * sizeof(float));
        __builtin_memset(padded + left, 0, (w.block - left) * sizeof(float));
        x = padded;
      }
      round_block(x, w.block, rows == 1 ? q : apart, scales + r, sums + r);
      sums[r] *= factor;
      if (rows == 1) continue;
      for (size_t i = 0; i < w.block; i += 4) __builtin_memcpy(q + i * rows + r * 4, apart + i, 4);
    }
  }
}

#include "low_bit_matmul/tile_float.h"
