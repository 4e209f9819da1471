// The algorithm of all instruction sets, written once over a vector type. Each implementation defines `Lane` and `Half`
// in an anonymous namespace and includes this file inside it, so that every function here is private to that file.
//
// Lane: a FloatLane with load_some(at, count) and store_some(at, v, count), of which lanes at and behind `count` are
// zero and are not written, and load_masked(at, bits), of which lanes without a bit are zero. None of them touches
// memory of lanes that it leaves out. set_each<R>(at, v): set1 of each of the R floats at unaligned bytes. Where it is `compact`: compress(bits, v), the lanes with a bit one behind the other,
// and spread(bits, v), the reverse. Half: the same for vectors of half the width, and of(Lane::Vec), the lower half;
// an instruction set without has_halves has Half = Lane.
//
// An entry of w meets a tile of up to 64 positions at once: NB vectors, and with H one of half the width behind them.

template <unsigned NB, bool H>
struct Strip {
  static constexpr unsigned lanes = Lane::lanes;
  static constexpr size_t width = NB * lanes + (H ? Half::lanes : 0);
};

// The sums of one output channel before the entries of a part.
template <unsigned NB, bool H>
GRAPHOPT_INLINE void begin(const Sweep& c, size_t channel, Lane::Vec (&s)[NB + 1], Half::Vec& t) {
  if (c.first) {
    const float bias = c.bias != nullptr && channel < c.channels ? c.bias[channel] : 0.0f;
    GRAPHOPT_UNROLL
    for (unsigned i = 0; i < NB; ++i) s[i] = Lane::set1(bias);
    if constexpr (H) t = Half::set1(bias);
  } else {
    const float* sums = c.sums + channel * Strip<NB, H>::width;
    GRAPHOPT_UNROLL
    for (unsigned i = 0; i < NB; ++i) s[i] = Lane::load(sums + i * Lane::lanes);
    if constexpr (H) t = Half::load(sums + NB * Lane::lanes);
  }
}

template <class L>
GRAPHOPT_INLINE typename L::Vec bounded(typename L::Vec v, const Sweep& c) {
  return L::at_most(L::at_least(v, L::set1(c.low)), L::set1(c.high));
}

// Stores the sums whose positions the output has, one behind the other.
template <class L>
GRAPHOPT_INLINE void store_compact(const Sweep& c, unsigned bits, typename L::Vec v, const float*& r, float*& y) {
  const unsigned count = static_cast<unsigned>(__builtin_popcount(bits));
  if (c.residual != nullptr) v = L::add(v, L::spread(bits, L::load_some(r, count)));
  L::store_some(y, L::compress(bits, bounded<L>(v, c)), count);
  r += count;
  y += count;
}

// What lies behind the positions of a plane.
GRAPHOPT_INLINE void store_zeros(const Sweep& c, float* y) {
  for (size_t i = 0; i < c.zeros; i += Lane::lanes)
    Lane::store_some(y + i, Lane::zero(), c.zeros - i < Lane::lanes ? c.zeros - i : Lane::lanes);
}

template <unsigned NB, bool H>
GRAPHOPT_INLINE void end_compact(const Sweep& c, float* y, const float* r, Lane::Vec (&s)[NB + 1], Half::Vec& t) {
  constexpr unsigned vector = (1u << Lane::lanes) - 1, half = (1u << Half::lanes) - 1;
  GRAPHOPT_UNROLL
  for (unsigned i = 0; i < NB; ++i)
    store_compact<Lane>(c, static_cast<unsigned>(c.valid >> (i * Lane::lanes)) & vector, s[i], r, y);
  if constexpr (H) store_compact<Half>(c, static_cast<unsigned>(c.valid >> (NB * Lane::lanes)) & half, t, r, y);
  if (c.zeros != 0) store_zeros(c, y);
}

// The sums of one output channel after the entries of a part.
template <unsigned NB, bool H>
GRAPHOPT_INLINE void end(const Sweep& c, size_t channel, Lane::Vec (&s)[NB + 1], Half::Vec& t) {
  if (!c.last) {
    float* sums = c.sums + channel * Strip<NB, H>::width;
    GRAPHOPT_UNROLL
    for (unsigned i = 0; i < NB; ++i) Lane::store(sums + i * Lane::lanes, s[i]);
    if constexpr (H) Half::store(sums + NB * Lane::lanes, t);
    return;
  }
  if (channel >= c.channels) return;
  float* y = c.y + channel * c.y_plane;
  if constexpr (Lane::compact) {
    if (c.valid != 0)
      return end_compact<NB, H>(c, y, c.residual != nullptr ? c.residual + channel * c.y_plane : y, s, t);
  }
  constexpr unsigned whole = H ? NB : NB - 1;  // vectors of which every position exists
  const unsigned rest = c.count - whole * Lane::lanes;
  if (c.residual != nullptr) {
    const float* r = c.residual + channel * c.y_plane;
    GRAPHOPT_UNROLL
    for (unsigned i = 0; i < whole; ++i) s[i] = Lane::add(s[i], Lane::load(r + i * Lane::lanes));
    if constexpr (H) {
      t = Half::add(t, Half::load_some(r + NB * Lane::lanes, rest));
    } else {
      s[whole] = Lane::add(s[whole], Lane::load_some(r + whole * Lane::lanes, rest));
    }
  }
  GRAPHOPT_UNROLL
  for (unsigned i = 0; i < whole; ++i) Lane::store(y + i * Lane::lanes, bounded<Lane>(s[i], c));
  if constexpr (H) {
    Half::store_some(y + NB * Lane::lanes, bounded<Half>(t, c), rest);
  } else {
    Lane::store_some(y + whole * Lane::lanes, bounded<Lane>(s[whole], c), rest);
  }
  if (c.zeros != 0) store_zeros(c, y + c.count);
}

// R rows of one channel each, entry j of row r at j * stride + r.
template <unsigned NB, bool H, unsigned R>
GRAPHOPT_INLINE void rows_together(const Sweep& c, const unsigned char* indices, const unsigned char* values, size_t stride,
                          size_t end_, const unsigned char* listed) {
  Lane::Vec s[R][NB + 1];
  Half::Vec t[R];
  GRAPHOPT_UNROLL
  for (unsigned r = 0; r < R; ++r) begin<NB, H>(c, load_as<uint16_t>(listed + 2 * r), s[r], t[r]);
  const float* const x = c.x;
  const size_t x_stride = c.stride;
  for (size_t at = 0; at < end_; at += stride) {
    Lane::Vec value[R];
    Lane::template set_each<R>(values + at * 4, value);
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < R; ++r) {
      const float* column = x + size_t{load_as<uint16_t>(indices + (at + r) * 2)} * x_stride;
      GRAPHOPT_UNROLL
      for (unsigned i = 0; i < NB; ++i) s[r][i] = Lane::fma(value[r], Lane::load(column + i * Lane::lanes), s[r][i]);
      if constexpr (H) t[r] = Half::fma(Half::of(value[r]), Half::load(column + NB * Lane::lanes), t[r]);
    }
  }
  GRAPHOPT_UNROLL
  for (unsigned r = 0; r < R; ++r) end<NB, H>(c, load_as<uint16_t>(listed + 2 * r), s[r], t[r]);
}

enum class Reading { stride, sources, masks };

// One row of B channels.
template <unsigned NB, bool H, unsigned B, Reading reading>
inline void row_of_channels(const Sweep& c, const unsigned char* indices, const unsigned char* values, size_t entries,
                            size_t row) {
  Lane::Vec s[B][NB + 1];
  Half::Vec t[B];
  GRAPHOPT_UNROLL
  for (unsigned b = 0; b < B; ++b) begin<NB, H>(c, row * B + b, s[b], t[b]);
  const float* const x = c.x;
  for (size_t j = 0; j < entries; ++j) {
    const size_t index = load_as<uint16_t>(indices + 2 * j);
    Lane::Vec v[NB + 1];
    Half::Vec h;
    if constexpr (reading == Reading::sources) {
      const float* column = x + c.sources[index].offset;
      GRAPHOPT_UNROLL
      for (unsigned i = 0; i < NB; ++i) v[i] = Lane::load(column + i * Lane::lanes);
      if constexpr (H) h = Half::load(column + NB * Lane::lanes);
    } else if constexpr (reading == Reading::masks) {
      const Source source = c.sources[index];
      const uint64_t mask = c.masks[source.tap];
      const float* column = x + source.offset;
      GRAPHOPT_UNROLL
      for (unsigned i = 0; i < NB; ++i)
        v[i] = Lane::load_masked(column + i * Lane::lanes, static_cast<unsigned>(mask >> (i * Lane::lanes)));
      if constexpr (H)
        h = Half::load_masked(column + NB * Lane::lanes, static_cast<unsigned>(mask >> (NB * Lane::lanes)));
    } else {
      const float* column = x + index * c.stride;
      GRAPHOPT_UNROLL
      for (unsigned i = 0; i < NB; ++i) v[i] = Lane::load(column + i * Lane::lanes);
      if constexpr (H) h = Half::load(column + NB * Lane::lanes);
    }
    GRAPHOPT_UNROLL
    for (unsigned b = 0; b < B; ++b) {
      const Lane::Vec value = Lane::set1(load_as<float>(values + (j * B + b) * 4));
      GRAPHOPT_UNROLL
      for (unsigned i = 0; i < NB; ++i) s[b][i] = Lane::fma(value, v[i], s[b][i]);
      if constexpr (H) t[b] = Half::fma(Half::of(value), h, t[b]);
    }
  }
  GRAPHOPT_UNROLL
  for (unsigned b = 0; b < B; ++b) end<NB, H>(c, row * B + b, s[b], t[b]);
}

struct Cursor {
  const unsigned char *indices, *values, *run, *run_end, *listed, *listed_end;
};

inline Cursor cursor(const Sweep& c) {
  const unsigned char* here = c.w->parts + c.part * part_bytes;
  const size_t entry = load_as<uint64_t>(here);
  return {c.w->indices + entry * 2, c.w->values + entry * c.w->block * 4,
          c.w->runs + size_t{load_as<uint32_t>(here + 8)} * run_bytes,
          c.w->runs + size_t{load_as<uint32_t>(here + part_bytes + 8)} * run_bytes,
          c.w->listed + size_t{load_as<uint32_t>(here + 12)} * 2,
          c.w->listed + size_t{load_as<uint32_t>(here + part_bytes + 12)} * 2};
}

// Asks for the memory of the outputs that come after the next group. Each is another plane, which no processor foresees.
template <unsigned NB, bool H>
GRAPHOPT_INLINE void fetch_outputs(const Sweep& c, const unsigned char* listed, const unsigned char* end_, size_t rows) {
  for (listed += 2 * group_rows; rows > 0 && listed < end_; --rows, listed += 2) {
    const size_t at = size_t{load_as<uint16_t>(listed)} * c.y_plane;
    for (size_t i = 0; i < Strip<NB, H>::width; i += 16) {
      __builtin_prefetch(c.y + at + i, 1);
      if (c.residual != nullptr && c.residual != c.y) __builtin_prefetch(c.residual + at + i);
    }
  }
}

// Sweeps work on a copy of their argument: what they store cannot be part of it, so its members stay in registers.
template <unsigned NB, bool H>
inline void sweep_rows(const Sweep& argument) {
  const Sweep c = argument;
  constexpr unsigned vectors = NB + H;
  constexpr unsigned together = vectors >= 3 ? 2 : vectors == 2 ? 4 : 8;
  for (Cursor at = cursor(c); at.run != at.run_end; at.run += run_bytes) {
    const size_t per_row = load_as<uint32_t>(at.run);
    for (size_t left = load_as<uint32_t>(at.run + 4); left > 0;) {
      const size_t group = group_of(left), end_ = per_row * group;
      if (c.fetches) fetch_outputs<NB, H>(c, at.listed, at.listed_end, group);
      size_t r = 0;
      if constexpr (together >= 8) {
        for (; r + 8 <= group; r += 8)
          rows_together<NB, H, 8>(c, at.indices + r * 2, at.values + r * 4, group, end_, at.listed + r * 2);
      }
      if constexpr (together >= 4) {
        for (; r + 4 <= group; r += 4)
          rows_together<NB, H, 4>(c, at.indices + r * 2, at.values + r * 4, group, end_, at.listed + r * 2);
      }
      for (; r + 2 <= group; r += 2)
        rows_together<NB, H, 2>(c, at.indices + r * 2, at.values + r * 4, group, end_, at.listed + r * 2);
      for (; r < group; ++r)
        rows_together<NB, H, 1>(c, at.indices + r * 2, at.values + r * 4, group, end_, at.listed + r * 2);
      at.indices += end_ * 2;
      at.values += end_ * 4;
      at.listed += group * 2;
      left -= group;
    }
  }
}

template <unsigned NB, bool H, unsigned B, Reading reading>
inline void sweep_blocks_reading(const Sweep& c) {
  for (Cursor at = cursor(c); at.run != at.run_end; at.run += run_bytes) {
    const size_t per_row = load_as<uint32_t>(at.run);
    for (size_t left = load_as<uint32_t>(at.run + 4); left > 0; --left) {
      row_of_channels<NB, H, B, reading>(c, at.indices, at.values, per_row, load_as<uint16_t>(at.listed));
      at.indices += per_row * 2;
      at.values += per_row * B * 4;
      at.listed += 2;
    }
  }
}

template <unsigned NB, bool H, unsigned B>
inline void sweep_blocks(const Sweep& c) {
  if constexpr (Lane::masked) {
    if (c.masks != nullptr) return sweep_blocks_reading<NB, H, B, Reading::masks>(c);
  }
  if constexpr (Lane::compact) {
    if (c.sources != nullptr) return sweep_blocks_reading<NB, H, B, Reading::sources>(c);
  }
  sweep_blocks_reading<NB, H, B, Reading::stride>(c);
}

template <unsigned NB, bool H>
inline void sweep_of_width(const Sweep& c) {
  switch (c.w->block) {
    case 1: return sweep_rows<NB, H>(c);
    case 4:
      if constexpr (NB + H <= widest_4) sweep_blocks<NB, H, 4>(c);
      return;
    default:
      if constexpr (NB + H <= widest_8) sweep_blocks<NB, H, 8>(c);
      return;
  }
}

template <unsigned NB, bool H>
inline void gather_of_width(const Gather& g) {
  constexpr uint64_t all = Strip<NB, H>::width == 64 ? ~uint64_t{0} : (uint64_t{1} << (Strip<NB, H>::width % 64)) - 1;
  float* to = g.tile;
  for (size_t k = g.k_first; k < g.k_end; ++k, to += Strip<NB, H>::width) {
    const Source source = g.sources[k];
    const uint64_t mask = g.masks[source.tap];
    const float* from = g.x + source.offset;
    if (!Lane::masked && (mask & all) == all) {
      GRAPHOPT_UNROLL
      for (unsigned i = 0; i < NB; ++i) Lane::store(to + i * Lane::lanes, Lane::load(from + i * Lane::lanes));
      if constexpr (H) Half::store(to + NB * Lane::lanes, Half::load(from + NB * Lane::lanes));
      continue;
    }
    GRAPHOPT_UNROLL
    for (unsigned i = 0; i < NB; ++i)
      Lane::store(to + i * Lane::lanes,
                  Lane::load_masked(from + i * Lane::lanes, static_cast<unsigned>(mask >> (i * Lane::lanes))));
    if constexpr (H)
      Half::store(to + NB * Lane::lanes,
                  Half::load_masked(from + NB * Lane::lanes, static_cast<unsigned>(mask >> (NB * Lane::lanes))));
  }
}

template <template <unsigned, bool> class Of, class Argument>
inline void for_width(unsigned units, const Argument& argument) {
  constexpr bool halves = Lane::has_halves;
  switch (halves ? units : units * 2) {
    case 1:
      if constexpr (halves) Of<0, true>::run(argument);
      return;
    case 2: return Of<1, false>::run(argument);
    case 3:
      if constexpr (halves) Of<1, true>::run(argument);
      return;
    case 4: return Of<2, false>::run(argument);
    case 5:
      if constexpr (halves) Of<2, true>::run(argument);
      return;
    case 6: return Of<3, false>::run(argument);
    case 7:
      if constexpr (halves) Of<3, true>::run(argument);
      return;
    default: return Of<4, false>::run(argument);
  }
}

template <unsigned NB, bool H>
struct SweepOf {
  static void run(const Sweep& c) { sweep_of_width<NB, H>(c); }
};

template <unsigned NB, bool H>
struct GatherOf {
  static void run(const Gather& g) { gather_of_width<NB, H>(g); }
};

inline void sweep(const Sweep& c) { for_width<SweepOf>(c.units, c); }
inline void gather(const Gather& g) { for_width<GatherOf>(g.units, g); }

inline void space(const float* rows, size_t count, size_t width, size_t pitch, float* to) {
  for (size_t r = 0; r < count; ++r, rows += width, to += pitch) {
    // The last vector of a row may reach into the next one, which is written afterwards.
    const size_t room = r + 1 < count ? pitch + Lane::lanes : pitch;
    for (size_t i = 0; i < pitch; i += Lane::lanes) {
      const size_t present = i >= width ? 0 : width - i < Lane::lanes ? width - i : Lane::lanes;
      const Lane::Vec v = Lane::load_some(rows + i, present);
      Lane::store_some(to + i, v, room - i < Lane::lanes ? room - i : Lane::lanes);
    }
  }
}

inline void activate_all(float* values, size_t count, const Epilogue& e) {
  size_t i = 0;
  for (; i + Lane::lanes <= count; i += Lane::lanes)
    Lane::store(values + i, activate<Lane>(Lane::load(values + i), e));
  if (i < count) Lane::store_some(values + i, activate<Lane>(Lane::load_some(values + i, count - i), e), count - i);
}
