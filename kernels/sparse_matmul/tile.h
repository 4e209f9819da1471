// The algorithm of the unstructured form for all instruction sets, written once over a vector type. Included inside an
// anonymous namespace after store.h, so that every function here is private to the file that includes it.
//
// Lane: as store.h has it, with sums_at_once, the sums that hide the latency of FMA, and class Columns(x, count), a
// K-block of one row of x, with dot(indices, values, end, group, sums): sums[r] over the entries at r, r + group, ...
//
// x is transposed to p[k][width] so that one entry of w meets `width` rows of x at once. A K-block of p stays in L1
// while the rows of a panel pass over it; the sums of a panel stay in L2. Rows of a run have equally many entries, so
// several go together with one loop count, which hides the latency of FMA and keeps the branch predictor right.

// Blocks of NB vectors of x against R rows of w, entry j of row r at offset j * stride + r. The `first` block begins with
// `starts`, the others where sums stand.
template <unsigned NB, unsigned R, bool first>
inline void rows_together(const float* p, const unsigned char* indices, const unsigned char* values, size_t stride,
                          size_t end, const float (&starts)[R], float* const (&sums)[R]) {
  constexpr size_t width = NB * Lane::lanes;
  typename Lane::Vec s[R][NB];
  GRAPHOPT_UNROLL
  for (unsigned r = 0; r < R; ++r) {
    GRAPHOPT_UNROLL
    for (unsigned i = 0; i < NB; ++i)
      s[r][i] = first ? Lane::set1(starts[r]) : Lane::load(sums[r] + i * Lane::lanes);
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

// Rows of w with equally many entries, interleaved.
struct Group {
  const unsigned char *indices, *values;
  const unsigned char* rows;
  size_t count, end;  // rows; entries of all
};

// The rows of a group from r on, R at a time and what is left fewer at a time.
template <unsigned NB, unsigned R, bool first>
inline void rows_of(const Group& group, size_t r, const float* p, const float* bias, float* panel_sums) {
  constexpr size_t width = NB * Lane::lanes;
  for (; r + R <= group.count; r += R) {
    float* sums[R];
    float starts[R];
    GRAPHOPT_UNROLL
    for (unsigned i = 0; i < R; ++i) {
      const size_t row = load_as<uint16_t>(group.rows + (r + i) * row_bytes);
      sums[i] = panel_sums + row * width;
      starts[i] = first && bias ? bias[row] : 0.0f;
    }
    rows_together<NB, R, first>(p, group.indices + r, group.values + r * sizeof(float), group.count, group.end, starts, sums);
  }
  if constexpr (R > 1) {
    if (r < group.count) rows_of<NB, R / 2, first>(group, r, p, bias, panel_sums);
  }
}

template <unsigned NB, bool first>
inline void block(const PackedMatrix& w, size_t block, const float* p, const float* bias, float* panel_sums,
                  AheadOfStore& ahead) {
  constexpr unsigned rows_at_once = Lane::sums_at_once / NB;
  constexpr unsigned together = rows_at_once >= 8 ? 8 : rows_at_once >= 4 ? 4 : 2;
  const unsigned char* here = w.blocks + block * block_bytes;
  const size_t entry = load_as<uint64_t>(here);
  Group group{w.indices + entry, w.values + entry * sizeof(float),
              w.rows + size_t{load_as<uint32_t>(here + 12)} * row_bytes, 0, 0};
  const unsigned char* run = w.runs + size_t{load_as<uint32_t>(here + 8)} * run_bytes;
  const unsigned char* run_end = w.runs + size_t{load_as<uint32_t>(here + block_bytes + 8)} * run_bytes;

  for (; run != run_end; run += run_bytes) {
    const size_t per_row = load_as<uint16_t>(run);
    for (size_t left = load_as<uint16_t>(run + 2); left > 0; left -= group.count) {
      group.count = group_of(left);
      group.end = per_row * group.count;
      ask_for(group.indices, group.values, group.end);
      ahead.step();
      rows_of<NB, together, first>(group, 0, p, bias, panel_sums);
      group.indices += group.end;
      group.values += group.end * sizeof(float);
      group.rows += group.count * row_bytes;
    }
  }
}

// The sums of those columns of y that have no entry in the first block of a panel: no run begins them.
template <unsigned NB>
inline void begin_others(const PackedMatrix& w, size_t block, size_t columns, const float* bias, float* sums) {
  const unsigned char* here = w.blocks + block * block_bytes;
  const size_t begin = load_as<uint32_t>(here + 12), end = load_as<uint32_t>(here + block_bytes + 12);
  if (end - begin == columns) return;
  unsigned char listed[max_panel_rows];
  __builtin_memset(listed, 0, columns);
  for (size_t i = begin; i < end; ++i) listed[load_as<uint16_t>(w.rows + i * row_bytes)] = 1;
  for (size_t n = 0; n < columns; ++n) {
    if (listed[n]) continue;
    const typename Lane::Vec start = bias ? Lane::set1(bias[n]) : Lane::zero();
    GRAPHOPT_UNROLL
    for (unsigned i = 0; i < NB; ++i) Lane::store(sums + (n * NB + i) * Lane::lanes, start);
  }
}

template <unsigned NB>
inline void panel_of_width(const Call& call, size_t m0, unsigned rows, size_t panel, const float* p, float* sums) {
  constexpr size_t width = NB * Lane::lanes;
  constexpr size_t asking = 3;  // blocks before the end: what is asked for earlier is gone again if there are many
  const PackedMatrix& w = *call.w;
  const size_t n0 = panel * w.panel_rows;
  const size_t columns = smaller(w.panel_rows, w.n - n0);
  const size_t from = w.k_blocks - smaller(w.k_blocks, asking);
  const float* bias = call.bias ? call.bias + n0 : nullptr;
  AheadOfStore none, ahead(call, m0, rows, n0, columns, (w.k_blocks - from) * (columns / group_rows + 1));
  begin_others<NB>(w, panel * w.k_blocks, columns, bias, sums);
  block<NB, true>(w, panel * w.k_blocks, p, bias, sums, from == 0 ? ahead : none);
  for (size_t kb = 1; kb < w.k_blocks; ++kb)
    block<NB, false>(w, panel * w.k_blocks + kb, p + kb * w.k_block * width, bias, sums, kb < from ? none : ahead);
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
