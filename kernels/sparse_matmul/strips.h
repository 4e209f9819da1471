// The algorithms for strips of R rows of w^T, written once over vector types. Included inside an anonymous namespace after
// store.h.
//
// An entry brings R values of w to as many rows of x as there are accumulators, so that R * rows products cost one index
// and few loads: there is no need to keep x in L1, and a strip passes over all of K with its sums in registers. In
// `columns` a vector holds columns of y, a value of x is broadcast and y is stored as it comes; in `rows` a vector holds
// rows of x, a value of w is broadcast and y is transposed. The first wants R to be a multiple of the lanes.

struct Strips {
  const PackedMatrix& w;
  size_t first, last;  // of the panel

  Strips(const PackedMatrix& matrix, size_t panel) : w(matrix) {
    const size_t per_panel = w.panel_rows / w.block_rows;
    first = panel * per_panel;
    last = smaller(first + per_panel, w.strips);
  }
  size_t start(size_t strip, size_t k_block) const {
    return static_cast<size_t>(load_as<uint64_t>(w.blocks + (strip * w.k_blocks + k_block) * strip_bytes));
  }
};

inline size_t strip_index(const unsigned char* indices, size_t entry) {
  return load_as<uint16_t>(indices + entry * strip_index_bytes);
}

// MR rows of x as they lie, and as a transposed tile has them, with zeros where it has more rows than x.
template <unsigned MR>
struct Untouched {
  const float* row[MR];
  float at(unsigned m, size_t k) const { return row[m][k]; }
};
template <unsigned MR>
struct Transposed {
  const float* p;
  float at(unsigned m, size_t k) const { return p[k * round_up(MR, Lane::lanes) + m]; }
};

// The sums of one strip of V vectors for MR rows of x, U entries at a time where one row alone would wait for its own sum.
template <class L, unsigned V, unsigned MR, unsigned U, class X>
inline void strip_sums(const Strips& strips, size_t strip, const X& x, typename L::Vec (&sums)[MR][V]) {
  constexpr unsigned height = L::lanes * V;
  const PackedMatrix& w = strips.w;
  typename L::Vec part[U][MR][V];
  GRAPHOPT_UNROLL
  for (unsigned u = 0; u < U; ++u) {
    GRAPHOPT_UNROLL
    for (unsigned m = 0; m < MR; ++m) {
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < V; ++v) part[u][m][v] = u == 0 ? sums[m][v] : L::zero();
    }
  }
  for (size_t kb = 0; kb < w.k_blocks; ++kb) {
    const size_t k0 = kb * w.k_block;
    size_t entry = strips.start(strip, kb);
    const size_t end = strips.start(strip, kb + 1);
    const auto take = [&](size_t j, typename L::Vec (&into)[MR][V]) __attribute__((always_inline)) {
      const size_t k = k0 + strip_index(w.indices, j);
      const float* values = reinterpret_cast<const float*>(w.values + j * height * sizeof(float));
      __builtin_prefetch(w.values + j * height * sizeof(float) + prefetch_bytes);
      typename L::Vec weights[V];
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < V; ++v) weights[v] = L::load(values + v * L::lanes);
      GRAPHOPT_UNROLL
      for (unsigned m = 0; m < MR; ++m) {
        const typename L::Vec value = L::set1(x.at(m, k));
        GRAPHOPT_UNROLL
        for (unsigned v = 0; v < V; ++v) into[m][v] = L::fma(weights[v], value, into[m][v]);
      }
    };
    for (; entry + U <= end; entry += U) {
      GRAPHOPT_UNROLL
      for (unsigned u = 0; u < U; ++u) take(entry + u, part[u]);
    }
    if constexpr (U > 1) {
      for (; entry < end; ++entry) take(entry, part[0]);
    }
  }
  GRAPHOPT_UNROLL
  for (unsigned m = 0; m < MR; ++m) {
    GRAPHOPT_UNROLL
    for (unsigned v = 0; v < V; ++v) {
      sums[m][v] = part[0][m][v];
      GRAPHOPT_UNROLL
      for (unsigned u = 1; u < U; ++u) sums[m][v] = L::add(sums[m][v], part[u][m][v]);
    }
  }
}

// Vectors over columns of y; MR rows of x of which `rows` count.
template <class L, unsigned V, unsigned MR, class X>
inline void strips_by_columns(const Call& call, size_t m0, unsigned rows, size_t panel, const X& x) {
  constexpr unsigned together = MR * V >= 4 ? 1 : 4 / (MR * V);  // fewer than four sums would wait for each other
  constexpr unsigned height = L::lanes * V;
  const Strips strips(*call.w, panel);
  const size_t n_all = call.w->n;
  const Bounds bounds = bounds_of(call.epilogue);
  const Within<L> inside(bounds);
  for (size_t strip = strips.first; strip < strips.last; ++strip) {
    const size_t n = strip * height;
    const size_t columns = smaller(height, n_all - n);
    alignas(64) float edge[MR * height] = {};
    const float* bias = call.bias ? call.bias + n : nullptr;
    if (bias && columns < height) {
      for (size_t i = 0; i < columns; ++i) edge[i] = bias[i];
      bias = edge;
    }
    typename L::Vec sums[MR][V];
    GRAPHOPT_UNROLL
    for (unsigned m = 0; m < MR; ++m) {
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < V; ++v) sums[m][v] = bias ? L::load(bias + v * L::lanes) : L::zero();
    }
    strip_sums<L, V, MR, together>(strips, strip, x, sums);
    if (columns < height) {
      GRAPHOPT_UNROLL
      for (unsigned m = 0; m < MR; ++m) {
        GRAPHOPT_UNROLL
        for (unsigned v = 0; v < V; ++v) L::store(edge + m * height + v * L::lanes, sums[m][v]);
      }
      for (unsigned m = 0; m < rows; ++m) store_few(call, m0 + m, n, columns, edge + m * height, bounds);
      continue;
    }
    GRAPHOPT_UNROLL
    for (unsigned m = 0; m < MR; ++m) {
      if (m >= rows) break;
      const size_t at = (m0 + m) * n_all + n;
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < V; ++v) {
        typename L::Vec sum = sums[m][v];
        if (call.residual) sum = L::add(sum, L::load(call.residual + at + v * L::lanes));
        L::store(call.y + at + v * L::lanes, inside(sum));
      }
    }
  }
  bend(call, m0, rows, strips.first * height, smaller(strips.last * height, n_all) - strips.first * height);
}

template <class L, unsigned V, unsigned MR>
inline void direct_of_rows(const Call& call, size_t m0, size_t panel) {
  Untouched<MR> x;
  GRAPHOPT_UNROLL
  for (unsigned m = 0; m < MR; ++m) x.row[m] = call.x + (m0 + m) * call.w->k;
  strips_by_columns<L, V, MR>(call, m0, MR, panel, x);
}

template <class L, unsigned V>
inline void strips_direct(const Call& call, size_t m0, unsigned rows, size_t panel, const float*, float*) {
  switch (rows) {
    case 1: return direct_of_rows<L, V, 1>(call, m0, panel);
    case 2: return direct_of_rows<L, V, 2>(call, m0, panel);
    case 3: return direct_of_rows<L, V, 3>(call, m0, panel);
    default: return direct_of_rows<L, V, 4>(call, m0, panel);
  }
}

// At most `Most` rows of x: each number up to 8 and the even ones above. The multiples of the lanes are among them, so that
// rows and MR always have one width.
template <class L, unsigned V, unsigned Most>
inline void strips_columns(const Call& call, size_t m0, unsigned rows, size_t panel, const float* p, float*) {
  constexpr unsigned fewer = Most > 8 ? Most - 2 : Most - 1;
  if constexpr (fewer > 0) {
    if (rows <= fewer) return strips_columns<L, V, fewer>(call, m0, rows, panel, p, nullptr);
  }
  strips_by_columns<L, V, Most>(call, m0, rows, panel, Transposed<Most>{p});
}

// Vectors over rows of x: NB of them against the R rows of a strip.
template <unsigned NB, unsigned R>
inline void strips_by_rows(const Call& call, size_t m0, unsigned rows, size_t panel, const float* p, float* sums) {
  constexpr size_t width = NB * Lane::lanes;
  constexpr size_t together = sums_in_lanes * Lane::lanes / R;  // strips whose sums are stored at once
  const PackedMatrix& w = *call.w;
  const Strips strips(w, panel);
  for (size_t strip = strips.first; strip < strips.last; strip += together) {
    const size_t count = smaller(together, strips.last - strip), columns = smaller(count * R, w.n - strip * R);
    AheadOfStore ahead(call, m0, rows, strip * R, columns, count);
    for (size_t g = 0; g < count; ++g) {
      const size_t n = (strip + g) * R;
      ahead.step();
      typename Lane::Vec s[R][NB];
      GRAPHOPT_UNROLL
      for (unsigned r = 0; r < R; ++r) {
        const typename Lane::Vec start = call.bias && n + r < w.n ? Lane::set1(call.bias[n + r]) : Lane::zero();
        GRAPHOPT_UNROLL
        for (unsigned i = 0; i < NB; ++i) s[r][i] = start;
      }
      for (size_t kb = 0; kb < w.k_blocks; ++kb) {
        const float* tile = p + kb * w.k_block * width;
        for (size_t entry = strips.start(strip + g, kb), end = strips.start(strip + g, kb + 1); entry < end; ++entry) {
          const float* column = tile + strip_index(w.indices, entry) * width;
          const unsigned char* values = w.values + entry * R * sizeof(float);
          __builtin_prefetch(values + prefetch_bytes);
          typename Lane::Vec x[NB];
          GRAPHOPT_UNROLL
          for (unsigned i = 0; i < NB; ++i) x[i] = Lane::load(column + i * Lane::lanes);
          GRAPHOPT_UNROLL
          for (unsigned r = 0; r < R; ++r) {
            const typename Lane::Vec value = Lane::set1(load_as<float>(values + r * sizeof(float)));
            GRAPHOPT_UNROLL
            for (unsigned i = 0; i < NB; ++i) s[r][i] = Lane::fma(x[i], value, s[r][i]);
          }
        }
      }
      GRAPHOPT_UNROLL
      for (unsigned r = 0; r < R; ++r) {
        GRAPHOPT_UNROLL
        for (unsigned i = 0; i < NB; ++i) Lane::store(sums + (g * R + r) * width + i * Lane::lanes, s[r][i]);
      }
    }
    store_transposed(call, m0, rows, width, strip * R, columns, sums);
  }
  bend(call, m0, rows, strips.first * R, smaller(strips.last * R, w.n) - strips.first * R);
}

template <unsigned most, unsigned R>
inline void strips_rows(const Call& call, size_t m0, unsigned rows, size_t panel, const float* p, float* sums) {
  if (most > 1 && rows > Lane::lanes) return strips_by_rows<most, R>(call, m0, rows, panel, p, sums);
  strips_by_rows<1, R>(call, m0, rows, panel, p, sums);
}

template <class L, unsigned R>
constexpr Method direct_method() {
  return {"direct", 4, 1, false, Method::Sums::none, strips_direct<L, R / L::lanes>};
}
// As many rows as the registers hold sums for: `sums` of them.
template <class L, unsigned R, unsigned sums>
constexpr Method columns_method() {
  constexpr unsigned most = sums * L::lanes / R;
  return {"columns", most, 1, true, Method::Sums::none, strips_columns<L, R / L::lanes, most>};
}
// One or two vectors, as the registers allow.
template <unsigned R, unsigned vectors>
constexpr Method rows_method() {
  return {"rows", vectors * Lane::lanes, Lane::lanes, true, Method::Sums::lanes, strips_rows<vectors, R>};
}
