// The algorithm of the unstructured form for all instruction sets, written once over a vector type. Included inside an
// anonymous namespace after store.h, so that every function here is private to the file that includes it.
//
// Lane: as store.h has it, with sums_at_once, the sums that hide the latency of FMA, and class Columns(x, count), a
// K-block of one row of x, with dot(indices, values, end, group, sums): sums[r] over the entries at r, r + group, ...
//
// x is transposed to p[k][width] so that one entry of w meets `width` rows of x at once. A K-block of p stays in L1
// while the rows of a panel pass over it; the sums of a panel stay in L2. Rows of a run have equally many entries, so
// several go together with one loop count, which hides the latency of FMA and keeps the branch predictor right.

// Blocks of NB vectors of x against R rows of w, entry j of row r at offset j * stride + r.
template <unsigned NB, unsigned R>
inline void rows_together(const float* p, const unsigned char* indices, const unsigned char* values, size_t stride,
                          size_t end, float* const (&sums)[R]) {
  constexpr size_t width = NB * Lane::lanes;
  typename Lane::Vec s[R][NB];
  GRAPHOPT_UNROLL
  for (unsigned r = 0; r < R; ++r) {
    GRAPHOPT_UNROLL
    for (unsigned i = 0; i < NB; ++i) s[r][i] = Lane::load(sums[r] + i * Lane::lanes);
  }
  for (size_t at = 0; at < end; at += stride) {
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < R; ++r) {
      const float* column = p + size_t{indices[at + r]} * width;
      const typename Lane::Vec value = Lane::set1(load_as<float>(values + (at + r) * sizeof(float)));
      GRAPHOPT_UNROLL
      for (unsigned i = 0; i < NB; ++i) s[r][i] = Lane::fma(value, Lane::load(column + i * Lane::lanes), s[r][i]);
    }
  }
  GRAPHOPT_UNROLL
  for (unsigned r = 0; r < R; ++r) {
    GRAPHOPT_UNROLL
    for (unsigned i = 0; i < NB; ++i) Lane::store(sums[r] + i * Lane::lanes, s[r][i]);
  }
}

// The entries that come after those at hand.
inline void ask_for(const unsigned char* indices, const unsigned char* values, size_t count) {
  for (size_t at = 0; at < count; at += 16) __builtin_prefetch(values + at * sizeof(float) + prefetch_bytes);
  for (size_t at = 0; at < count; at += 64) __builtin_prefetch(indices + at + prefetch_bytes / sizeof(float));
}

template <unsigned NB, unsigned R>
inline void group_part(const float* p, const unsigned char* indices, const unsigned char* values, size_t stride,
                       size_t end, const unsigned char* rows, float* panel_sums) {
  constexpr size_t width = NB * Lane::lanes;
  float* sums[R];
  GRAPHOPT_UNROLL
  for (unsigned r = 0; r < R; ++r) sums[r] = panel_sums + load_as<uint16_t>(rows + r * row_bytes) * width;
  rows_together<NB, R>(p, indices, values, stride, end, sums);
}

template <unsigned NB>
inline void block(const PackedMatrix& w, size_t block, const float* p, float* panel_sums) {
  constexpr unsigned rows_at_once = Lane::sums_at_once / NB;
  constexpr unsigned together = rows_at_once >= 8 ? 8 : rows_at_once >= 4 ? 4 : 2;
  const unsigned char* here = w.blocks + block * block_bytes;
  const size_t first = load_as<uint64_t>(here);
  const unsigned char* indices = w.indices + first;
  const unsigned char* values = w.values + first * sizeof(float);
  const unsigned char* run = w.runs + size_t{load_as<uint32_t>(here + 8)} * run_bytes;
  const unsigned char* run_end = w.runs + size_t{load_as<uint32_t>(here + block_bytes + 8)} * run_bytes;
  const unsigned char* rows = w.rows + size_t{load_as<uint32_t>(here + 12)} * row_bytes;

  for (; run != run_end; run += run_bytes) {
    const size_t per_row = load_as<uint16_t>(run);
    for (size_t left = load_as<uint16_t>(run + 2); left > 0;) {
      const size_t group = group_of(left);
      const size_t end = per_row * group;
      ask_for(indices, values, end);
      size_t r = 0;
      if constexpr (together >= 8) {
        for (; r + 8 <= group; r += 8)
          group_part<NB, 8>(p, indices + r, values + r * sizeof(float), group, end, rows + r * row_bytes, panel_sums);
      }
      if constexpr (together >= 4) {
        for (; r + 4 <= group; r += 4)
          group_part<NB, 4>(p, indices + r, values + r * sizeof(float), group, end, rows + r * row_bytes, panel_sums);
      }
      if constexpr (together >= 2) {
        for (; r + 2 <= group; r += 2)
          group_part<NB, 2>(p, indices + r, values + r * sizeof(float), group, end, rows + r * row_bytes, panel_sums);
      }
      for (; r < group; ++r)
        group_part<NB, 1>(p, indices + r, values + r * sizeof(float), group, end, rows + r * row_bytes, panel_sums);
      indices += end;
      values += end * sizeof(float);
      rows += group * row_bytes;
      left -= group;
    }
  }
}

template <unsigned NB>
inline void panel_of_width(const Call& call, size_t m0, unsigned rows, size_t panel, const float* p, float* sums) {
  constexpr size_t width = NB * Lane::lanes;
  const PackedMatrix& w = *call.w;
  const size_t n0 = panel * w.panel_rows;
  const size_t columns = smaller(w.panel_rows, w.n - n0);
  for (size_t n = 0; n < columns; ++n) {
    const typename Lane::Vec start = call.bias ? Lane::set1(call.bias[n0 + n]) : Lane::zero();
    GRAPHOPT_UNROLL
    for (unsigned i = 0; i < NB; ++i) Lane::store(sums + n * width + i * Lane::lanes, start);
  }
  for (size_t kb = 0; kb < w.k_blocks; ++kb) block<NB>(w, panel * w.k_blocks + kb, p + kb * w.k_block * width, sums);
  store_transposed(call, m0, rows, width, n0, columns, sums);
  bend(call, m0, rows, n0, columns);
}

// One row of x: the entries of a group lie side by side and are multiplied as they lie.
inline void vector(const Call& call, size_t m0, unsigned, size_t panel, const float*, float*) {
  const PackedMatrix& w = *call.w;
  const size_t n0 = panel * w.panel_rows;
  const size_t columns = smaller(w.panel_rows, w.n - n0);
  float* y = call.y + m0 * w.n + n0;
  for (size_t n = 0; n < columns; ++n) y[n] = call.bias ? call.bias[n0 + n] : 0.0f;

  for (size_t kb = 0; kb < w.k_blocks; ++kb) {
    const unsigned char* here = w.blocks + (panel * w.k_blocks + kb) * block_bytes;
    const size_t first = load_as<uint64_t>(here);
    const unsigned char* indices = w.indices + first;
    const unsigned char* values = w.values + first * sizeof(float);
    const unsigned char* run = w.runs + size_t{load_as<uint32_t>(here + 8)} * run_bytes;
    const unsigned char* run_end = w.runs + size_t{load_as<uint32_t>(here + block_bytes + 8)} * run_bytes;
    const unsigned char* rows = w.rows + size_t{load_as<uint32_t>(here + 12)} * row_bytes;
    const Lane::Columns x(call.x + m0 * w.k + kb * w.k_block, smaller(w.k_block, w.k - kb * w.k_block));
    for (; run != run_end; run += run_bytes) {
      const size_t per_row = load_as<uint16_t>(run);
      for (size_t left = load_as<uint16_t>(run + 2); left > 0;) {
        const size_t group = group_of(left);
        const size_t end = per_row * group;
        ask_for(indices, values, end);
        float sums[group_rows];
        x.dot(indices, values, end, group, sums);
        for (size_t r = 0; r < group; ++r) y[load_as<uint16_t>(rows + r * row_bytes)] += sums[r];
        indices += end;
        values += end * sizeof(float);
        rows += group * row_bytes;
        left -= group;
      }
    }
  }
  if (call.residual || call.epilogue.activation != Activation::none) {
    store_few(call, m0, n0, columns, y, bounds_of(call.epilogue));
  }
  bend(call, m0, 1, n0, columns);
}

inline void panel(const Call& call, size_t m0, unsigned rows, size_t panel, const float* p, float* sums) {
  switch ((rows + Lane::lanes - 1) / Lane::lanes) {
    case 1: return panel_of_width<1>(call, m0, rows, panel, p, sums);
    case 2: return panel_of_width<2>(call, m0, rows, panel, p, sums);
    case 3: return panel_of_width<3>(call, m0, rows, panel, p, sums);
    default: return panel_of_width<4>(call, m0, rows, panel, p, sums);
  }
}

// Rows one by one.
constexpr Method vector_method() { return {"vector", 1, 1, false, Method::Sums::none, vector}; }
constexpr Method tile_method() {
  return {"tile", 4 * Lane::lanes, Lane::lanes, true, Method::Sums::panel, panel};
}
