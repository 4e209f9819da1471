// The algorithm of all instruction sets, written once over vector types. Each implementation includes base/lane_*.h and
// base/activation_lane.h, defines `Lane` in an anonymous namespace and includes this file inside it, so that every
// function here is private to that file.
//
// Lane: lanes; flip, what bytes of x are xored with to suit the dot product (0 or 0x80); most[2], the most vectors of x
// that go together for units of 1 and of 4; Int with set1, load, store; Bytes (4 bytes of x for each lane) with
// bytes(at), Weight with weight(at), and dot(sum, bytes, weight), which adds four products to each lane;
// to_float(Int); to_int(Vec), nearest, ties to even; at_least(v, low), low where v is NaN;
// turn(from, stride, to, pitch): lanes x lanes words of four bytes, the columns of `from` to the rows of `to`;
// put_bytes(at, Int, count): the low bytes of the first lanes; quantize(x, count, q, out); range(x, count, low, high).
//
// x is transposed to p[k / 4][width][4], so that one four of weights meets a four of `width` rows of x in one
// instruction per vector. A K-block of p stays in L1 while the units of a panel pass over it.

// How x goes to bytes. Products with the inverse stand in for the quotients wherever both round to the same integer,
// which is certain unless the product lies within 2^-13 of the middle between two: for |x / scale| up to 255 it differs
// from the rounded quotient by less than 3 * 2^-24 * 256.
struct Rounding {
  float scale, inverse, low, high;
  float sure;  // products at least this far from an integer are divided instead
  int32_t zero_point;

  explicit Rounding(const Grid& grid)
      : scale(grid.scale),
        inverse(1.0f / grid.scale),
        low(static_cast<float>(-grid.zero_point)),
        high(static_cast<float>(255 - grid.zero_point)),
        sure(grid.scale > 1e-30f && grid.scale < 1e30f ? 0.5f - 1.0f / 8192.0f : -1.0f),
        zero_point(grid.zero_point) {}
};

// NB vectors of x against U units of R outputs; unit u of step s has its index at s * group + u. sums[u] and starts[u]
// are those of the first output of the unit.
template <unsigned NB, unsigned U, unsigned R>
inline void units_together(const unsigned char* p, const unsigned char* indices, const unsigned char* values,
                           size_t steps, const int32_t* const (&starts)[U], bool first, int32_t* const (&sums)[U]) {
  constexpr unsigned lanes = Lane::lanes, width = NB * lanes, group = 4 / R;
  typename Lane::Int s[U * R][NB];
  GRAPHOPT_UNROLL
  for (unsigned u = 0; u < U; ++u) {
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < R; ++r) {
      if (first) {
        const typename Lane::Int start = Lane::set1(starts[u][r]);
        GRAPHOPT_UNROLL
        for (unsigned i = 0; i < NB; ++i) s[u * R + r][i] = start;
      } else {
        GRAPHOPT_UNROLL
        for (unsigned i = 0; i < NB; ++i) s[u * R + r][i] = Lane::load(sums[u] + r * width + i * lanes);
      }
    }
  }
  for (const unsigned char* const end = values + steps * step_bytes; values != end;
       values += step_bytes, indices += 2 * group) {
    GRAPHOPT_UNROLL
    for (unsigned u = 0; u < U; ++u) {
      const unsigned char* x = p + size_t{load_as<uint16_t>(indices + 2 * u)} * (4 * width);
      typename Lane::Bytes bytes[NB];
      GRAPHOPT_UNROLL
      for (unsigned i = 0; i < NB; ++i) bytes[i] = Lane::bytes(x + i * 4 * lanes);
      GRAPHOPT_UNROLL
      for (unsigned r = 0; r < R; ++r) {
        const typename Lane::Weight w = Lane::weight(values + (u * R + r) * 4);
        GRAPHOPT_UNROLL
        for (unsigned i = 0; i < NB; ++i) s[u * R + r][i] = Lane::dot(s[u * R + r][i], bytes[i], w);
      }
    }
  }
  GRAPHOPT_UNROLL
  for (unsigned u = 0; u < U; ++u) {
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < R; ++r) {
      GRAPHOPT_UNROLL
      for (unsigned i = 0; i < NB; ++i) Lane::store(sums[u] + r * width + i * lanes, s[u * R + r][i]);
    }
  }
}

// The groups of one block; U units of a group go together.
template <unsigned NB, unsigned U, unsigned R>
inline void block(const PackedWeights& w, size_t block, const unsigned char* p, const int32_t* starts, int32_t* sums,
                  const Region& y) {
  constexpr unsigned width = NB * Lane::lanes, group = 4 / R;
  const unsigned char* here = w.blocks + block * block_bytes;
  const size_t step = load_as<uint64_t>(here);
  const unsigned char* indices = w.indices + step * group * 2;
  const unsigned char* values = w.values + step * step_bytes;
  const unsigned char* at = w.groups + load_as<uint64_t>(here + 8) * group_bytes(group);
  const unsigned char* end = w.groups + load_as<uint64_t>(here + block_bytes + 8) * group_bytes(group);
  const bool first = block % w.k_blocks == 0;
  Ahead ahead(y.first, y.rows, y.bytes, y.stride, static_cast<size_t>(end - at) / group_bytes(group));
  for (; at != end; at += group_bytes(group)) {
    const size_t steps = load_as<uint16_t>(at);
    ahead.step();
    for (unsigned u = 0; u < group; u += U) {
      const int32_t* unit_starts[U];
      int32_t* unit_sums[U];
      GRAPHOPT_UNROLL
      for (unsigned i = 0; i < U; ++i) {
        const size_t output = size_t{load_as<uint16_t>(at + 2 + 2 * (u + i))} * R;
        unit_starts[i] = starts + output;
        unit_sums[i] = sums + output * width;
      }
      units_together<NB, U, R>(p, indices + 2 * u, values + u * (step_bytes / group), steps, unit_starts, first,
                               unit_sums);
    }
    indices += steps * group * 2;
    values += steps * step_bytes;
  }
}

template <unsigned NB>
inline void panel_of_width(const PackedWeights& w, size_t panel, const unsigned char* p, const Region& y,
                           const int32_t* starts, int32_t* sums) {
  constexpr unsigned together = NB >= 3 ? 1 : NB == 2 ? 2 : 4;
  for (size_t kb = 0; kb < w.k_blocks; ++kb) {
    const unsigned char* tile = p + kb * w.k_block * (NB * Lane::lanes);
    const Region asked = kb + 1 == w.k_blocks ? y : Region{};
    if (w.unit == 1) {
      block<NB, together, 1>(w, panel * w.k_blocks + kb, tile, starts, sums, asked);
    } else {
      if constexpr (NB <= Lane::most[1]) block<NB, 1, 4>(w, panel * w.k_blocks + kb, tile, starts, sums, asked);
    }
  }
}

inline void panel(const PackedWeights& w, size_t panel, int32_t zero_point, const unsigned char* p, unsigned width,
                  const Region& y, int32_t* starts, int32_t* sums) {
  const size_t n0 = panel * w.panel, outputs = smaller(w.panel, w.padded_n - n0);
  const uint32_t offset = static_cast<uint32_t>(Lane::flip) - static_cast<uint32_t>(zero_point);
  for (size_t n = 0; n < outputs; ++n) {
    starts[n] = static_cast<int32_t>(load_as<uint32_t>(w.fixes + (n0 + n) * 4) +
                                     offset * load_as<uint32_t>(w.totals + (n0 + n) * 4));
  }
  for (size_t n = outputs; n < w.panel + 4; ++n) starts[n] = 0;
  switch (width / Lane::lanes) {
    case 1: return panel_of_width<1>(w, panel, p, y, starts, sums);
    case 2: return panel_of_width<2>(w, panel, p, y, starts, sums);
    case 3: return panel_of_width<3>(w, panel, p, y, starts, sums);
    default: return panel_of_width<4>(w, panel, p, y, starts, sums);
  }
}

inline void pack_rows(const MatMul& call, size_t m0, unsigned rows, unsigned width, unsigned char* p) {
  constexpr unsigned lanes = Lane::lanes, wide = 4 * lanes;
  const size_t k = call.w->k;
  const Rounding rounding(call.grid);
  alignas(64) unsigned char square[lanes * wide];
  for (unsigned i = 0; i < width; i += lanes) {
    const unsigned present = i < rows ? static_cast<unsigned>(smaller(rows - i, lanes)) : 0;
    for (size_t j = 0; j < k; j += wide) {
      const size_t columns = smaller(k - j, wide);
      unsigned char* to = p + j * width + i * 4;
      const unsigned char* from = square;
      size_t stride = wide;
      if (present < lanes || columns < wide) __builtin_memset(square, 0, sizeof square);
      if (call.floats) {
        for (unsigned r = 0; r < present; ++r)
          Lane::quantize(call.floats + (m0 + i + r) * k + j, columns, rounding, square + r * wide);
      } else if (present == lanes && columns == wide && Lane::flip == 0) {
        from = call.bytes + (m0 + i) * k + j;
        stride = k;
      } else {
        for (unsigned r = 0; r < present; ++r) {
          const unsigned char* x = call.bytes + (m0 + i + r) * k + j;
          for (size_t c = 0; c < columns; ++c) square[r * wide + c] = static_cast<unsigned char>(x[c] ^ Lane::flip);
        }
      }
      if (columns == wide) {
        Lane::turn(from, stride, to, width * 4);
        continue;
      }
      alignas(64) unsigned char corner[lanes * wide];
      Lane::turn(from, stride, corner, lanes * 4);
      for (size_t c = 0; c < (columns + 3) / 4; ++c)
        __builtin_memcpy(to + c * width * 4, corner + c * lanes * 4, lanes * 4);
    }
  }
}
