// The algorithm of all instruction sets, written once over a vector type. Each implementation defines `Lane` in an
// anonymous namespace and includes this file inside it, so that every function here is private to that file.
//
// Lane: a FloatLane (base/activation_lane.h) with
// transpose<relu>(src, ld_src, rows, dst, ld_dst): lanes x lanes, missing rows read as zero; class Columns(x, count), a
// K-block of one row of x, with dot(indices, values, end, group, sums): sums[r] over the entries at r, r + group, ...
//
// x is transposed to p[k][width] so that one entry of w meets `width` rows of x at once. A K-block of p stays in L1
// while the rows of a panel pass over it; the sums of a panel stay in L2. Rows of a run have equally many entries, so
// several go together with one loop count, which hides the latency of FMA and keeps the branch predictor right.

#define GRAPHOPT_UNROLL _Pragma("GCC unroll 16")

template <class T>
inline T load_as(const unsigned char* at) {
  T value;
  __builtin_memcpy(&value, at, sizeof value);
  return value;
}

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
  constexpr unsigned together = NB >= 8 ? 1 : NB >= 3 ? 2 : NB == 2 ? 4 : 8;
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

inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

inline void pack(const Call& call, size_t m0, unsigned rows, float* p) {
  constexpr unsigned lanes = Lane::lanes;
  const size_t k = call.w->k;
  const size_t width = (rows + lanes - 1) / lanes * lanes;
  const size_t whole = k / lanes * lanes;
  for (unsigned i = 0; i < rows; i += lanes) {
    const float* x = call.x + (m0 + i) * k;
    const unsigned present = static_cast<unsigned>(smaller(rows - i, lanes));
    for (size_t j = 0; j < whole; j += lanes) Lane::template transpose<false>(x + j, k, present, p + j * width + i, width);
    for (size_t j = whole; j < k; ++j) {
      for (unsigned r = 0; r < lanes; ++r) p[j * width + i + r] = r < present ? x[r * k + j] : 0.0f;
    }
  }
}

// sums[n][width] -> y[m][n] for one panel.
template <bool relu>
inline void unpack(const Call& call, size_t m0, unsigned rows, size_t width, size_t n0, size_t columns, const float* sums) {
  constexpr unsigned lanes = Lane::lanes;
  alignas(64) float corner[lanes * lanes];
  for (unsigned i = 0; i < rows; i += lanes) {
    const size_t present = smaller(rows - i, lanes);
    for (size_t n = 0; n < columns; n += lanes) {
      const size_t wide = smaller(columns - n, lanes);
      float* y = call.y + (m0 + i) * call.w->n + n0 + n;
      if (present == lanes && wide == lanes) {
        Lane::template transpose<relu>(sums + n * width + i, width, lanes, y, call.w->n);
        continue;
      }
      Lane::template transpose<relu>(sums + n * width + i, width, static_cast<unsigned>(wide), corner, lanes);
      for (size_t r = 0; r < present; ++r) {
        if (wide == lanes) {
          Lane::store(y + r * call.w->n, Lane::load(corner + r * lanes));
        } else {
          for (size_t c = 0; c < wide; ++c) y[r * call.w->n + c] = corner[r * lanes + c];
        }
      }
    }
  }
}

// What is left of the epilogue, while y is still in L1: the residual and every activation that is no Relu.
inline void finish(const Call& call, size_t m0, size_t rows, size_t n0, size_t columns) {
  constexpr unsigned lanes = Lane::lanes;
  for (size_t r = 0; r < rows; ++r) {
    float* y = call.y + (m0 + r) * call.w->n + n0;
    const float* residual = call.residual ? call.residual + (m0 + r) * call.w->n + n0 : nullptr;
    for (size_t c = 0; c < columns; c += lanes) {
      alignas(64) float part[lanes] = {}, added[lanes] = {};
      const size_t wide = smaller(columns - c, lanes);
      float* at = y + c;
      const float* more = residual ? residual + c : added;
      if (wide < lanes) {
        for (size_t i = 0; i < wide; ++i) part[i] = y[c + i];
        for (size_t i = 0; residual && i < wide; ++i) added[i] = residual[c + i];
        at = part;
        more = added;
      }
      const typename Lane::Vec sum = residual ? Lane::add(Lane::load(at), Lane::load(more)) : Lane::load(at);
      Lane::store(at, activate<Lane>(sum, call.epilogue));
      for (size_t i = 0; wide < lanes && i < wide; ++i) y[c + i] = part[i];
    }
  }
}

inline bool relu_alone(const Call& call) {
  return call.epilogue.activation == Activation::relu && call.residual == nullptr;
}
inline bool nothing_left(const Call& call) {
  return relu_alone(call) || (call.epilogue.activation == Activation::none && call.residual == nullptr);
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
  if (relu_alone(call)) {
    unpack<true>(call, m0, rows, width, n0, columns, sums);
  } else {
    unpack<false>(call, m0, rows, width, n0, columns, sums);
  }
  if (!nothing_left(call)) finish(call, m0, rows, n0, columns);
}

// One row of x: the entries of a group lie side by side and are multiplied as they lie.
inline void vector(const Call& call, size_t m0, size_t panel) {
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
  if (call.residual != nullptr || call.epilogue.activation != Activation::none) finish(call, m0, 1, n0, columns);
}

inline void panel(const Call& call, size_t m0, unsigned rows, size_t panel, const float* p, float* sums) {
  switch ((rows + Lane::lanes - 1) / Lane::lanes) {
    case 1: return panel_of_width<1>(call, m0, rows, panel, p, sums);
    case 2: return panel_of_width<2>(call, m0, rows, panel, p, sums);
    case 3: return panel_of_width<3>(call, m0, rows, panel, p, sums);
    default: return panel_of_width<4>(call, m0, rows, panel, p, sums);
  }
}
