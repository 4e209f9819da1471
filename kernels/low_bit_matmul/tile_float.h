// The part of tile.h for activations as floats: a chunk of the panel is restored to floats, then multiplied.

constexpr unsigned float_rows = 4;  // rows that are summed at once

// restored[k][64] of one group of four inputs.
template <class C, unsigned g>
inline void restore_groups(const PackedMatrix& w, const unsigned char* block, const unsigned char* codes, float* restored) {
  if constexpr (g < C::groups) {
    const unsigned char* zeros = block + panel_columns * sizeof(float);
    for (unsigned v = 0; v < panel_vectors; ++v) {
      const Lane::Ints four = Lane::as_ints(group_levels<C, g>(codes + v * vector_bytes, Lane::Bytes{}));
      const Vec scale = Lane::load_floats(block + v * vector_bytes);
      Vec zero = FloatLane::set1(-static_cast<float>(w.zero));
      if (w.zeros == Zeros::bytes) zero = FloatLane::mul(Lane::to_float(Lane::widen(zeros + v * Lane::lanes)), FloatLane::set1(-1.0f));
      const auto store = [&](unsigned i, Lane::Ints code) {
        Vec level;
        if (w.levels == Levels::codes) {
          level = Lane::to_float(code);
        } else {
          int places[Lane::lanes];
          float found[Lane::lanes];
          Lane::store_ints(places, code);
          for (unsigned lane = 0; lane < Lane::lanes; ++lane) found[lane] = w.book[places[lane] & (book_size - 1)];
          level = FloatLane::load(found);
        }
        float* at = restored + (g * 4 + i) * panel_columns + v * Lane::lanes;
        if (w.zeros == Zeros::offsets) {
          const Vec offset = Lane::load_floats(zeros + v * vector_bytes);
          FloatLane::store(at, FloatLane::fma(level, scale, offset));
        } else {
          FloatLane::store(at, FloatLane::mul(FloatLane::add(level, zero), scale));
        }
      };
      store(0, Lane::template byte<0>(four));
      store(1, Lane::template byte<1>(four));
      store(2, Lane::template byte<2>(four));
      store(3, Lane::template byte<3>(four));
    }
    restore_groups<C, g + 1>(w, block, codes, restored);
  }
}

template <unsigned rows>
inline void add_products(const float* x, size_t ld_x, size_t count, const float* restored, float* sums) {
  constexpr unsigned vectors = Lane::lanes >= 8 ? 32 / Lane::lanes : 4;
  for (unsigned first = 0; first < panel_vectors; first += vectors) {
    Vec sum[rows][vectors];
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < rows; ++r) {
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < vectors; ++v) sum[r][v] = FloatLane::load(sums + r * panel_columns + (first + v) * Lane::lanes);
    }
    for (size_t k = 0; k < count; ++k) {
      GRAPHOPT_UNROLL
      for (unsigned r = 0; r < rows; ++r) {
        const Vec value = FloatLane::set1(x[r * ld_x + k]);
        GRAPHOPT_UNROLL
        for (unsigned v = 0; v < vectors; ++v)
          sum[r][v] = FloatLane::fma(value, FloatLane::load(restored + k * panel_columns + (first + v) * Lane::lanes), sum[r][v]);
      }
    }
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < rows; ++r) {
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < vectors; ++v) FloatLane::store(sums + r * panel_columns + (first + v) * Lane::lanes, sum[r][v]);
    }
  }
}

template <class C>
inline void panel_float_of(const Call& call, size_t m0, unsigned rows, size_t panel) {
  const PackedMatrix& w = *call.w;
  alignas(64) float sums[Lane::max_float_rows * panel_columns] = {};
  alignas(64) float restored[C::chunk * panel_columns];
  const size_t stride = block_bytes(w);
  const unsigned char* block = w.streams + panel * w.blocks * stride;
  for (size_t b = 0; b < w.blocks; ++b, block += stride) {
    const unsigned char* codes = block + panel_columns * sizeof(float) + zeros_bytes(w.zeros);
    for (size_t k = b * w.block; k < (b + 1) * w.block && k < w.k; k += C::chunk, codes += C::chunk_bytes) {
      for (unsigned at = 0; at < C::chunk_bytes; at += 64) Lane::prefetch(codes + at + prefetch_ahead);
      restore_groups<C, 0>(w, block, codes, restored);
      const size_t count = w.k - k < C::chunk ? w.k - k : C::chunk;
      const float* x = call.x + m0 * w.k + k;
      unsigned r = 0;
      for (; r + float_rows <= rows; r += float_rows)
        add_products<float_rows>(x + r * w.k, w.k, count, restored, sums + r * panel_columns);
      for (; r < rows; ++r) add_products<1>(x + r * w.k, w.k, count, restored, sums + r * panel_columns);
    }
  }
  finish(call, m0, rows, panel, sums);
}

inline void panel_float(const Call& call, size_t m0, unsigned rows, size_t panel) {
  const PackedMatrix& w = *call.w;
  const bool small = w.block == 16;
  switch (w.bits) {
    case 1: return panel_float_of<Codes<1, 32, false>>(call, m0, rows, panel);
    case 2:
      if (small) return panel_float_of<Codes<2, 16, false>>(call, m0, rows, panel);
      return panel_float_of<Codes<2, 32, false>>(call, m0, rows, panel);
    case 3: return panel_float_of<Codes<3, 32, false>>(call, m0, rows, panel);
    case 4:
      if (small) return panel_float_of<Codes<4, 16, false>>(call, m0, rows, panel);
      return panel_float_of<Codes<4, 32, false>>(call, m0, rows, panel);
    default:
      if (small) return panel_float_of<Codes<8, 16, false>>(call, m0, rows, panel);
      return panel_float_of<Codes<8, 32, false>>(call, m0, rows, panel);
  }
}
