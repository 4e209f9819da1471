// The algorithm of all instruction sets, written once over a vector type. Each implementation defines `Lane` in an
// anonymous namespace, after a lane_*.h and activation_lane.h, and includes this file inside it, so that every function
// here is private to that file.
//
// Lane: a FloatLane, and
//   Bytes, Ints: vectors of 4 * lanes bytes and of `lanes` int32; load_bytes, load_floats, set_ints, store_ints,
//     add_ints, mul_ints, to_float, as_ints; widen(uint8*): lanes bytes as Ints; byte<i>(Ints): byte i of each lane as an unsigned number
//   field<bits, shift>(Bytes): that bit field of each byte; high_bit<g>(Bytes): bit g of each byte at the place of bit 2;
//     either(a, b): a | b; lookup(Bytes book, Bytes): sixteen bytes, repeated; broadcast(int8*): four bytes, repeated
//   Part: what is summed within a chunk; dot<wide>(part, sum, codes, x): codes up to 15, or up to 255 if wide;
//     fold(part, sum): adds the part; bias<wide>: what dot takes off wide codes
//   magnitude(Ints sum, float*): bitwise maximum of |x|; round(x, factor): Ints, half to even; store_low(int8*, Ints)
//   max_rows; vectors(rows): how many vectors of outputs are summed at once, a divisor of 64 / lanes; prefetch(at)

#define GRAPHOPT_UNROLL _Pragma("GCC unroll 32")

constexpr unsigned row_bytes = 4 * panel_columns;
constexpr unsigned panel_vectors = panel_columns / Lane::lanes;
constexpr unsigned vector_bytes = 4 * Lane::lanes;
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

// The levels of group g of a chunk for the vector of outputs whose codes start at `at`.
template <class C, unsigned g>
inline Lane::Bytes group_levels(const unsigned char* at, Lane::Bytes book) {
  Lane::Bytes codes;
  if constexpr (C::bits == 3) {
    const Lane::Bytes low = Lane::load_bytes(at + g / 4 * row_bytes);
    codes = Lane::either(Lane::template field<2, 2 * (g % 4)>(low),
                         Lane::template high_bit<g>(Lane::load_bytes(at + 2 * row_bytes)));
  } else {
    constexpr unsigned per_byte = 8 / C::bits;
    const Lane::Bytes row = Lane::load_bytes(at + g / per_byte * row_bytes);
    if constexpr (C::bits == 8) {
      codes = row;
    } else if constexpr (C::bits == 1) {
      codes = Lane::template doubled_bit<g>(row);
    } else {
      codes = Lane::template field<C::bits, C::bits * (g % per_byte)>(row);
    }
  }
  if constexpr (C::book) codes = Lane::lookup(book, codes);
  return codes;
}

template <class C, unsigned rows, unsigned vectors, unsigned g>
inline void add_groups(const unsigned char* codes, const signed char* x, Lane::Bytes book,
                       Lane::Part (&part)[rows][vectors], Lane::Ints (&sum)[rows][vectors]) {
  if constexpr (g < C::groups) {
    Lane::Bytes levels[vectors];
    GRAPHOPT_UNROLL
    for (unsigned v = 0; v < vectors; ++v) levels[v] = group_levels<C, g>(codes + v * vector_bytes, book);
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < rows; ++r) {
      const Lane::Bytes four = Lane::broadcast(x + (g * rows + r) * 4);
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < vectors; ++v) Lane::template dot<C::wide>(part[r][v], sum[r][v], levels[v], four);
    }
    add_groups<C, rows, vectors, g + 1>(codes, x, book, part, sum);
  }
}

// Where the integer sums of a block start: what the zeros take off them.
template <bool wide>
inline Lane::Ints first_sum(const PackedMatrix& w, const unsigned char* zeros, int sum_of_q) {
  constexpr int bias = Lane::template bias<wide>;
  if (w.zeros != Zeros::bytes) return Lane::set_ints((bias - w.zero) * sum_of_q);
  const Lane::Ints start = Lane::mul_ints(Lane::widen(zeros), Lane::set_ints(-sum_of_q));
  return bias == 0 ? start : Lane::add_ints(start, Lane::set_ints(bias * sum_of_q));
}

// One block of `rows` rows against `vectors` vectors of outputs; sums[rows][64] are floats.
template <class C, unsigned rows, unsigned vectors>
inline void block_part(const PackedMatrix& w, const unsigned char* block, unsigned first, const signed char* x,
                       const float* x_scales, const int* x_sums, Lane::Bytes book, float* sums) {
  const unsigned char* zeros = block + panel_columns * sizeof(float);
  const unsigned char* codes = zeros + zeros_bytes(w.zeros) + first * vector_bytes;
  Lane::Ints sum[rows][vectors];
  GRAPHOPT_UNROLL
  for (unsigned r = 0; r < rows; ++r) {
    GRAPHOPT_UNROLL
    for (unsigned v = 0; v < vectors; ++v)
      sum[r][v] = first_sum<C::wide>(w, zeros + (first + v) * Lane::lanes, x_sums[r]);
  }
  const unsigned char* const codes_end = codes + w.block / C::chunk * C::chunk_bytes;
  for (; codes != codes_end; codes += C::chunk_bytes, x += C::chunk * rows) {
    GRAPHOPT_UNROLL
    for (unsigned row = 0; row < C::chunk_bytes / row_bytes; ++row) {
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < vectors; v += 64 / vector_bytes)
        Lane::prefetch(codes + row * row_bytes + v * vector_bytes + prefetch_ahead);
    }
    Lane::Part part[rows][vectors] = {};
    add_groups<C, rows, vectors, 0>(codes, x, book, part, sum);
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < rows; ++r) {
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < vectors; ++v) Lane::fold(part[r][v], sum[r][v]);
    }
  }
  GRAPHOPT_UNROLL
  for (unsigned v = 0; v < vectors; ++v) {
    const Vec scale = Lane::load_floats(block + (first + v) * vector_bytes);
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < rows; ++r) {
      float* at = sums + r * panel_columns + (first + v) * Lane::lanes;
      const Vec factor = FloatLane::mul(scale, FloatLane::set1(x_scales[r]));
      FloatLane::store(at, FloatLane::fma(Lane::to_float(sum[r][v]), factor, FloatLane::load(at)));
    }
  }
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

template <class C, unsigned rows>
inline void panel_of(const Call& call, size_t m0, size_t panel, const unsigned char* tile) {
  constexpr unsigned vectors = Lane::vectors(rows);
  const PackedMatrix& w = *call.w;
  const float* x_scales = reinterpret_cast<const float*>(tile);
  const int* x_sums = reinterpret_cast<const int*>(x_scales + w.blocks * rows);
  const signed char* x = reinterpret_cast<const signed char*>(tile) + (w.blocks * rows * 8 + 63) / 64 * 64;
  alignas(16) unsigned char levels[book_size];
  for (unsigned i = 0; i < book_size; ++i) levels[i] = C::book ? static_cast<unsigned char>(w.book[i]) : 0;
  const Lane::Bytes book = Lane::repeat(levels);

  alignas(64) float sums[rows * panel_columns] = {};
  const size_t stride = block_bytes(w);
  const unsigned char* block = w.streams + panel * w.blocks * stride;
  for (size_t b = 0; b < w.blocks; ++b, block += stride) {
    for (unsigned first = 0; first < panel_vectors; first += vectors)
      block_part<C, rows, vectors>(w, block, first, x, x_scales, x_sums, book, sums);
    if (w.zeros == Zeros::offsets) add_offsets(block, rows, x_scales, x_sums, sums);
    x += w.block * rows;
    x_scales += rows;
    x_sums += rows;
  }
  finish(call, m0, rows, panel, sums);
}

template <class C, unsigned most>
inline void panel_of_rows(const Call& call, size_t m0, unsigned rows, size_t panel, const unsigned char* tile) {
  if constexpr (most > 1) {
    if (rows < most) return panel_of_rows<C, most - 1>(call, m0, rows, panel, tile);
  }
  panel_of<C, most>(call, m0, panel, tile);
}

inline void panel(const Call& call, size_t m0, unsigned rows, size_t panel, const unsigned char* tile) {
  constexpr unsigned most = Lane::max_rows;
  const PackedMatrix& w = *call.w;
  if (w.levels == Levels::codes && w.block != 16) {
    switch (w.bits) {
      case 1: return panel_of_rows<Codes<1, 32, false>, most>(call, m0, rows, panel, tile);
      case 2: return panel_of_rows<Codes<2, 32, false>, most>(call, m0, rows, panel, tile);
      case 3: return panel_of_rows<Codes<3, 32, false>, most>(call, m0, rows, panel, tile);
      case 4: return panel_of_rows<Codes<4, 32, false>, most>(call, m0, rows, panel, tile);
      default: return panel_of_rows<Codes<8, 32, false>, most>(call, m0, rows, panel, tile);
    }
  }
  if (w.levels == Levels::codes) {
    switch (w.bits) {
      case 2: return panel_of_rows<Codes<2, 16, false>, most>(call, m0, rows, panel, tile);
      case 4: return panel_of_rows<Codes<4, 16, false>, most>(call, m0, rows, panel, tile);
      default: return panel_of_rows<Codes<8, 16, false>, most>(call, m0, rows, panel, tile);
    }
  }
  switch (w.bits) {
    case 2: return panel_of_rows<Codes<2, 32, true>, most>(call, m0, rows, panel, tile);
    case 3: return panel_of_rows<Codes<3, 32, true>, most>(call, m0, rows, panel, tile);
    default: return panel_of_rows<Codes<4, 32, true>, most>(call, m0, rows, panel, tile);
  }
}

// One block of one row: q[block] and its sum, or the scale NaN where a number is not finite.
inline void round_block(const float* x, size_t block, signed char* q, float* scale, int* sum) {
  Lane::Ints largest = Lane::set_ints(0);
  for (size_t i = 0; i < block; i += Lane::lanes) largest = Lane::magnitude(largest, x + i);
  int lanes[Lane::lanes], bits = 0;
  Lane::store_ints(lanes, largest);
  for (unsigned i = 0; i < Lane::lanes; ++i) bits = lanes[i] > bits ? lanes[i] : bits;

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
  Lane::store_ints(lanes, total);
  *sum = 0;
  for (unsigned i = 0; i < Lane::lanes; ++i) *sum += lanes[i];
}

inline void round(const Call& call, size_t m0, unsigned rows, unsigned char* tile) {
  const PackedMatrix& w = *call.w;
  float* scales = reinterpret_cast<float*>(tile);
  int* sums = reinterpret_cast<int*>(scales + w.blocks * rows);
  signed char* q = reinterpret_cast<signed char*>(tile) + (w.blocks * rows * 8 + 63) / 64 * 64;
  float padded[max_block];
  signed char rounded[max_block];
  for (unsigned r = 0; r < rows; ++r) {
    for (size_t b = 0; b < w.blocks; ++b) {
      const float* x = call.x + (m0 + r) * w.k + b * w.block;
      const size_t left = w.k - b * w.block;
      if (left < w.block) {
        __builtin_memcpy(padded, x, left * sizeof(float));
        __builtin_memset(padded + left, 0, (w.block - left) * sizeof(float));
        x = padded;
      }
      signed char* at = q + b * w.block * rows;
      if (rows == 1) {
        round_block(x, w.block, at, scales + b, sums + b);
        continue;
      }
      round_block(x, w.block, rounded, scales + b * rows + r, sums + b * rows + r);
      for (size_t i = 0; i < w.block; i += 4) __builtin_memcpy(at + i * rows + r * 4, rounded + i, 4);
    }
  }
}

#include "low_bit_matmul/tile_float.h"
