// The part of tile.h for many rows: the levels of a strip of the stream are taken out once, then meet one tile after the
// other while they stay in L1, as the sums do.

constexpr unsigned strip_inputs = 128;  // at most, or one block
constexpr unsigned strip_rows = 64;     // at most, but one tile more

// Small blocks keep the units for products busy with scales, so that fewer rows are worth it.
constexpr bool takes_out_once(const PackedMatrix& w, size_t rows) { return rows >= (w.block <= 32 ? 10 : 24); }

template <class C, unsigned g>
GRAPHOPT_INLINE void take_out_groups(const unsigned char* codes, Lane::Bytes book, unsigned char* levels) {
  if constexpr (g < C::groups) {
    GRAPHOPT_UNROLL
    for (unsigned v = 0; v < panel_vectors; ++v)
      Lane::store_bytes(levels + g * row_bytes + v * vector_bytes, group_levels<C, g>(codes + v * vector_bytes, book));
    take_out_groups<C, g + 1>(codes, book, levels);
  }
}

// What is fetched into the caches while sums are made, so many lines with each chunk: a share of the next strip of the
// stream, and the next tile.
struct Ahead {
  const unsigned char* stream;
  size_t stream_lines;
  const unsigned char* tile;
  size_t tile_lines;
};

// Levels of a block against one tile: a row of 256 levels for each group of four inputs.
template <bool wide, unsigned chunk, unsigned rows, unsigned vectors>
GRAPHOPT_INLINE void block_of_levels(const PackedMatrix& w, const unsigned char* block, const unsigned char* levels,
                            unsigned first, const Record& x, Ahead& ahead, float* sums) {
  Lane::Ints sum[rows][vectors];
  first_sums<wide>(w, block + panel_columns * sizeof(float) + first * Lane::lanes, x.sums, sum);
  const signed char* q = x.q;
  levels += first * vector_bytes;
  for (size_t k = 0; k < w.block; k += chunk) {
    for (size_t line = 0; line < ahead.stream_lines; ++line, ahead.stream += 64) Lane::prefetch(ahead.stream);
    for (size_t line = 0; line < ahead.tile_lines; ++line, ahead.tile += 64) Lane::prefetch(ahead.tile);
    Lane::Part part[rows][vectors] = {};
    for (unsigned g = 0; g < chunk / 4; ++g, levels += row_bytes, q += 4 * rows) {
      Lane::Bytes level[vectors];
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < vectors; ++v) level[v] = Lane::load_bytes(levels + v * vector_bytes);
      GRAPHOPT_UNROLL
      for (unsigned r = 0; r < rows; ++r) {
        const auto four = Lane::template broadcast<rows>(q + r * 4);
        GRAPHOPT_UNROLL
        for (unsigned v = 0; v < vectors; ++v) Lane::template dot<wide>(part[r][v], sum[r][v], level[v], four);
      }
    }
    GRAPHOPT_UNROLL
    for (unsigned r = 0; r < rows; ++r) {
      GRAPHOPT_UNROLL
      for (unsigned v = 0; v < vectors; ++v) Lane::fold(part[r][v], sum[r][v]);
    }
  }
  add_scaled(block + first * vector_bytes, x.scales, sum, sums + first * Lane::lanes);
}

// `blocks` blocks against one tile.
template <bool wide, unsigned chunk, unsigned rows>
inline void strip_of_levels(const PackedMatrix& w, const unsigned char* block, const unsigned char* levels,
                            size_t level_stride, size_t blocks, const unsigned char* record, Ahead ahead, float* sums) {
  constexpr unsigned vectors = Lane::vectors(rows);
  for (size_t b = 0; b < blocks; ++b) {
    const Record x(record, rows);
    for (unsigned first = 0; first < panel_vectors; first += vectors)
      block_of_levels<wide, chunk, rows, vectors>(w, block, levels, first, x, ahead, sums);
    if (w.zeros == Zeros::offsets) add_offsets(block, rows, x.scales, x.sums, sums);
    record += record_bytes(w, rows);
    block += block_bytes(w);
    levels += level_stride;
  }
}

template <bool wide, unsigned chunk, unsigned most>
inline void strip_of_rows(const PackedMatrix& w, const unsigned char* block, const unsigned char* levels,
                          size_t level_stride, size_t blocks, const unsigned char* record, Ahead ahead, unsigned rows,
                          float* sums) {
  if constexpr (most > 1) {
    if (rows < most)
      return strip_of_rows<wide, chunk, most - 1>(w, block, levels, level_stride, blocks, record, ahead, rows, sums);
  }
  strip_of_levels<wide, chunk, most>(w, block, levels, level_stride, blocks, record, ahead, sums);
}

template <class C>
inline void panel_of_some_tiles(const Call& call, const Rounded& rounded, size_t first, size_t end, size_t panel) {
  const PackedMatrix& w = *call.w;
  const Lane::Bytes book = book_of(w);
  constexpr bool as_stored = C::bits == 8 && !C::book;  // the codes are the levels
  alignas(64) unsigned char taken_out[as_stored ? 64 : max_block * panel_columns];
  alignas(64) float sums[(strip_rows + Lane::max_rows) * panel_columns];
  const size_t m0 = rounded.start(first), rows = rounded.start(end) - m0;
  __builtin_memset(sums, 0, rows * panel_columns * sizeof(float));

  const size_t stride = block_bytes(w), at_once = w.block < strip_inputs ? strip_inputs / w.block : 1;
  const unsigned char* block = w.streams + panel * w.blocks * stride;
  const size_t codes_at = panel_columns * sizeof(float) + zeros_bytes(w.zeros);
  for (size_t b = 0; b < w.blocks; b += at_once, block += at_once * stride) {
    const size_t blocks = w.blocks - b < at_once ? w.blocks - b : at_once;
    const unsigned char* levels = block + codes_at;
    size_t level_stride = stride;
    if constexpr (!as_stored) {
      unsigned char* to = taken_out;
      for (size_t i = 0; i < blocks; ++i) {
        const unsigned char* codes = block + i * stride + codes_at;
        for (size_t k = 0; k < w.block; k += C::chunk, codes += C::chunk_bytes, to += C::chunk * panel_columns) {
          take_out_groups<C, 0>(codes, book, to);
        }
      }
      levels = taken_out;
      level_stride = w.block * panel_columns;
    }
    const size_t passes = blocks * (w.block / C::chunk) * (panel_vectors / Lane::vectors(Lane::max_rows));
    const size_t share = (at_once * stride + end - first - 1) / (end - first);
    const auto record = [&](size_t tile, size_t b) {
      return rounded.tiles + tile * rounded.stride + b * record_bytes(w, rounded.size(tile));
    };
    const size_t record_lines = blocks * record_bytes(w, rounded.size(first)) / 64 + 1;
    Ahead ahead{block + at_once * stride, (share + 64 * passes - 1) / (64 * passes), nullptr,
                (record_lines + passes - 1) / passes};
    for (size_t tile = first; tile < end; ++tile, ahead.stream += share) {
      ahead.tile = tile + 1 < end ? record(tile + 1, b) : record(first, b + at_once);
      strip_of_rows<C::wide, C::chunk, Lane::max_rows>(w, block, levels, level_stride, blocks, record(tile, b), ahead,
                                                       rounded.size(tile),
                                                       sums + (rounded.start(tile) - m0) * panel_columns);
    }
  }
  finish(call, rounded.m0 + m0, static_cast<unsigned>(rows), panel, sums);
}

template <class C>
inline void panel_of_tiles(const Call& call, const Rounded& x, size_t first, size_t end, size_t panel) {
  while (first < end) {
    size_t next = first + 1;
    while (next < end && x.start(next) - x.start(first) < strip_rows) ++next;
    panel_of_some_tiles<C>(call, x, first, next, panel);
    first = next;
  }
}
