// Convolutions: planes of bytes, tiles of positions, and outputs plane by plane; written once over vector types. Included
// after finish.h.
//
// Lane: interleave(const unsigned char* const rows[4], width, p): p[i][j] = rows[j][i].

// Copies that are mostly short.
template <class T>
inline void copy_few(T* target, const T* source, size_t count) {
  unsigned char* to = reinterpret_cast<unsigned char*>(target);
  const unsigned char* from = reinterpret_cast<const unsigned char*>(source);
  const size_t bytes = count * sizeof(T);
  if (bytes >= 16) {
    for (size_t i = 0; i + 16 < bytes; i += 16) __builtin_memcpy(to + i, from + i, 16);
    __builtin_memcpy(to + bytes - 16, from + bytes - 16, 16);
  } else if (bytes >= 8) {
    __builtin_memcpy(to, from, 8);
    __builtin_memcpy(to + bytes - 8, from + bytes - 8, 8);
  } else if (bytes >= 4) {
    __builtin_memcpy(to, from, 4);
    __builtin_memcpy(to + bytes - 4, from + bytes - 4, 4);
  } else {
    for (size_t i = 0; i < bytes; ++i) to[i] = from[i];
  }
}

// to[i] = from[2 i]. Reads nothing behind from[2 count - 2].
inline void copy_seconds(const unsigned char* from, size_t count, unsigned char* to) {
  typedef unsigned short Pairs __attribute__((vector_size(16)));
  typedef unsigned char Firsts __attribute__((vector_size(8)));
  constexpr size_t step = 8;
  const auto copy = [&](size_t i) {
    Pairs pairs;
    __builtin_memcpy(&pairs, from + 2 * i, sizeof pairs);
    const Firsts firsts = __builtin_convertvector(pairs, Firsts);
    __builtin_memcpy(to + i, &firsts, sizeof firsts);
  };
  if (count == 0) return;
  to[count - 1] = from[2 * (count - 1)];
  const size_t paired = count - 1;  // the last one may have nothing behind it
  if (paired >= step) {
    for (size_t i = 0; i + step < paired; i += step) copy(i);
    copy(paired - step);
  } else {
    for (size_t i = 0; i < paired; ++i) to[i] = from[2 * i];
  }
}

// True if a tap along an axis reads the phase.
inline bool reads_phase(size_t phase, size_t taps, size_t dilation, size_t stride) {
  for (size_t tap = 0; tap < taps && tap < stride; ++tap) {
    if (tap * dilation % stride == phase) return true;
  }
  return false;
}

// Bytes of one row of a channel, from column x0 on, to where the planes have them.
inline void put_row(const ConvShape& s, const unsigned char* from, size_t y, size_t x0, size_t count,
                    unsigned char* plane) {
  const size_t row = y + s.pad_top, column = x0 + s.pad_left;
  if (s.stride_h == 1 && s.stride_w == 1) return copy_few(plane + row * s.pitch + column, from, count);
  unsigned char* line = plane + (row % s.stride_h * s.stride_w * s.rows + row / s.stride_h) * s.pitch;
  if (s.stride_w == 1) return copy_few(line + column, from, count);
  for (size_t phase = 0; phase < s.stride_w; ++phase) {
    if (!reads_phase(phase, s.kernel_w, s.dilation_w, s.stride_w)) continue;
    const size_t skip = (phase + s.stride_w - column % s.stride_w) % s.stride_w;
    if (skip >= count) continue;
    const size_t present = (count - skip + s.stride_w - 1) / s.stride_w;
    unsigned char* out = line + phase * s.rows * s.pitch + (column + skip) / s.stride_w;
    if (s.stride_w == 2) {
      copy_seconds(from + skip, present, out);
    } else {
      for (size_t i = 0; i < present; ++i) out[i] = from[skip + i * s.stride_w];
    }
  }
}

// Where rows first .. end of x go, with what lies above the first and below the last of all.
inline void pad_rows(const ConvShape& s, size_t first, size_t end, unsigned char padding, unsigned char* plane) {
  if (s.stride_h > 1) {
    __builtin_memset(plane, padding, s.plane);
    return;
  }
  const size_t from = first == 0 ? 0 : first + s.pad_top, to = end == s.height ? s.rows : end + s.pad_top;
  for (size_t phase = 0; phase < s.stride_w; ++phase)
    __builtin_memset(plane + (phase * s.rows + from) * s.pitch, padding, (to - from) * s.pitch);
}

inline void fill_plane(const Conv& call, size_t image, size_t channel, size_t first, size_t end, unsigned char* plane) {
  const ConvShape& s = call.shape;
  const unsigned char padding = static_cast<unsigned char>(call.grid.zero_point ^ Lane::flip);
  const size_t start = (image * s.channels + channel) * s.height * s.width;
  const Rounding rounding(call.grid);
  if (s.plane != s.height * s.width) pad_rows(s, first, end, padding, plane);
  constexpr size_t piece = 512;  // of a row, or of as many rows as it holds: they are mostly short
  const size_t at_once = s.stride_h > 1 || s.width == 0 || s.width > piece ? 1 : piece / s.width;
  alignas(64) unsigned char bytes[piece];
  for (size_t y = first; y < end; y += at_once) {
    if (!reads_phase((y + s.pad_top) % s.stride_h, s.kernel_h, s.dilation_h, s.stride_h)) continue;
    const size_t rows = smaller(at_once, end - y);
    for (size_t x0 = 0; x0 < s.width; x0 += piece) {
      const size_t wide = smaller(piece, s.width - x0), count = rows * wide, at = start + y * s.width + x0;
      const unsigned char* from = bytes;
      if (call.floats) {
        Lane::quantize(call.floats + at, count, rounding, bytes);
      } else if (Lane::flip == 0) {
        from = call.bytes + at;
      } else {
        for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<unsigned char>(call.bytes[at + i] ^ Lane::flip);
      }
      for (size_t r = 0; r < rows; ++r) put_row(s, from + r * wide, y + r, x0, wide, plane);
    }
  }
}

inline void pack_positions(const PackedWeights& w, const unsigned char* planes, const size_t* offsets, size_t f0,
                           unsigned count, unsigned width, unsigned char* p) {
  constexpr unsigned most = 4 * Lane::lanes;
  alignas(64) static constexpr unsigned char nothing[most] = {};
  alignas(64) unsigned char edge[4][most];
  for (size_t k = 0; k < w.k; k += 4) {
    const unsigned char* rows[4];
    for (unsigned j = 0; j < 4; ++j) {
      const bool present = k + j < w.k;
      rows[j] = present ? planes + offsets[k + j] + f0 : nothing;
      if (!present || count == width) continue;
      __builtin_memset(edge[j], 0, most);
      __builtin_memcpy(edge[j], rows[j], count);
      rows[j] = edge[j];
    }
    Lane::interleave(rows, width, p + k * width);
  }
}

// Where a run of positions lies among the outputs: `length` of them from position `from` of the tile on.
struct Segment {
  unsigned from, length;
  size_t to;
};

inline unsigned segments_of(const ConvShape& s, size_t f0, unsigned count, Segment* out) {
  unsigned found = 0;
  for (size_t f = f0; f < f0 + count;) {
    const size_t row = f / s.pitch, column = f % s.pitch;
    if (column >= s.out_w) {
      f += s.pitch - column;
      continue;
    }
    const size_t left = f0 + count - f;
    const size_t length = s.pitch == s.out_w ? left : smaller(s.out_w - column, left);
    out[found++] = {static_cast<unsigned>(f - f0), static_cast<unsigned>(length), row * s.out_w + column};
    f += length;
  }
  return found;
}

struct FinishPlanes {
  template <Form form, Activation activation>
  static void run(const Conv& call, size_t first, size_t outputs, size_t f0, unsigned count, unsigned width,
                  size_t channel, const int32_t* sums, const float* factors) {
    constexpr unsigned most = 4 * Lane::lanes;
    const Output& y = call.y;
    const Finish<form, activation> finish(y);
    Segment segments[most];
    const unsigned found = segments_of(call.shape, f0, count, segments);
    const bool whole = found == 1 && segments[0].from == 0;
    const size_t area = call.shape.out_h * call.shape.out_w;
    alignas(64) float floats[most], residual[most] = {};
    alignas(64) unsigned char bytes[most];
    for (size_t n = 0; n < outputs; ++n) {
      const size_t plane = (first + n) * area;
      const float* bias = y.bias ? y.bias + channel + n : nullptr;
      if (whole) {
        const size_t at = plane + segments[0].to;
        finish.template line<true>({sums + n * width, factors + n, bias, y.residual ? y.residual + at : nullptr,
                                    y.floats ? y.floats + at : nullptr, y.bytes ? y.bytes + at : nullptr,
                                    segments[0].length});
        continue;
      }
      for (unsigned i = 0; y.residual && i < found; ++i)
        copy_few(residual + segments[i].from, y.residual + plane + segments[i].to, segments[i].length);
      finish.template line<true>(
          {sums + n * width, factors + n, bias, y.residual ? residual : nullptr, floats, bytes, width});
      for (unsigned i = 0; i < found; ++i) {
        const Segment& s = segments[i];
        if constexpr (form == Form::floats) {
          copy_few(y.floats + plane + s.to, floats + s.from, s.length);
        } else {
          copy_few(y.bytes + plane + s.to, bytes + s.from, s.length);
        }
      }
    }
  }
};

inline void finish_planes(const Conv& call, size_t image, size_t group, size_t f0, unsigned count, unsigned width,
                          size_t panel, const int32_t* sums, float* factors) {
  const PackedWeights& w = *call.w;
  const size_t per_group = call.shape.outputs / call.shape.group, panels = (per_group + w.panel - 1) / w.panel;
  const size_t local = panel % panels * w.panel, outputs = smaller(w.panel, per_group - local);
  const size_t channel = group * per_group + local;
  prepare_factors(w, panel * w.panel, outputs, call.grid, call.y, factors);
  finish<FinishPlanes>(call, image * call.shape.outputs + channel, outputs, f0, count, width, channel, sums, factors);
}
