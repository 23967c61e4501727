// Convolutions of deltas as matrix products: rows are output pixels of all occlusions, gathered block by block into the cache.

#include "gemm.h"

#include <vector>

namespace {

constexpr i64 BLOCK = 12 * ROWS; // output pixels worked on together at most
constexpr i64 SUMS = 1 << 17;    // floats of a block's sums at most, half a megabyte: they stay in the second cache

// What is convolved may still have to be made of the source: f(base + scale*source) - f(base), on the map of the source; or
// base*source, of a base with a number per occlusion and channel.
constexpr i64 GATE = -1;
struct Beginning {
  i64 function; // 0: the source as it is; GATE: the product, `base_row` being the stride from one occlusion to the next
  const float *base;
  i64 base_row, base_pixel;
  const float *scale;
  double p, q;
};

struct Range {
  i64 first, last;
};

// From a channel on (up to the next part's first) the source is zero outside these rows.
struct Part {
  i64 channel, top, bottom;
};
constexpr i64 MOST_PARTS = 128;

// What the lines of output pixels are that are worked on one after the other.
enum Order : i64 { OUTPUT_ROWS, OUTPUT_COLUMNS };

// Output pixels of one occlusion, next to each other along a row (column) of its field: from their number `start` on, up to the
// next line's. `along` is the row (column), `from` where they begin in it.
struct Line {
  i64 start;
  std::int32_t n, along, from;
};

struct Pixel {
  i64 n, y, x;
};

struct Convolution {
  Source source;
  const float *packed; // see krypton_pack
  i64 kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x, channels;
  i64 y0, x0; // where the field starts in the output map
  Format format;
  Beginning begin;
  const i64 *fields; // of the source of each occlusion (top, bottom, left, right), outside of which it is zero, or null
  Part parts[MOST_PARTS + 1];
  i64 part_count;
  Order order;
  bool uneven; // do parts differ in the rows that they have?
  const Line *lines = nullptr;
  i64 line_count = 0;

  Convolution(const i64 *a, const Ending &e, double p, double q)
      : source{reinterpret_cast<const float *>(a[0]), a[1], a[2], a[3], a[4], a[5], a[6], a[7]},
        packed(reinterpret_cast<const float *>(a[8])), kernel_y(a[9]), kernel_x(a[10]), stride_y(a[11]), stride_x(a[12]),
        pad_y(a[13]), pad_x(a[14]), dilation_y(a[15]), dilation_x(a[16]), channels(a[17]), y0(a[18]), x0(a[19]),
        format(static_cast<Format>(a[20])),
        begin{a[21], reinterpret_cast<const float *>(a[22]), a[23], a[24], reinterpret_cast<const float *>(a[25]), p, q},
        fields(reinterpret_cast<const i64 *>(a[26])) {
    part_count = a[27];
    for (i64 i = 0; i < part_count; ++i)
      parts[i] = {a[28 + 3 * i], a[29 + 3 * i], a[30 + 3 * i]};
    parts[part_count] = {channels, 0, 0};
    uneven = std::any_of(parts, parts + part_count, [&](const Part &part) { return part.bottom - part.top < e.rows(); });
    order = kernel_y == 1 && kernel_x > 1 ? OUTPUT_COLUMNS : OUTPUT_ROWS;
  }

  i64 taps() const { return kernel_y * kernel_x * channels; }
  i64 pixels() const { return lines[line_count].start; }
  bool pointwise() const { return kernel_y == 1 && kernel_x == 1; }

  // The lines of all occlusions' own fields. Those that read the same taps inside the source lie together: taps outside of it need
  // not be multiplied.
  void arrange(const Ending &e, std::vector<Line> &room) {
    static thread_local std::vector<Line> found;
    static thread_local std::vector<std::int32_t> keys;
    const bool by_columns = order == OUTPUT_COLUMNS, by_channels = pointwise() && uneven && stride_y == 1;
    const i64 taps = by_columns ? kernel_x : kernel_y, all_keys = by_channels ? e.rows() : pointwise() ? 1 : (taps + 1) * (taps + 1);
    static thread_local std::vector<i64> places;
    places.assign(all_keys + 1, 0);
    found.clear();
    keys.clear();
    for (i64 n = 0; n < e.batch; ++n) {
      const Rectangle own = e.own_field(n);
      const i64 first = by_columns ? own.left : own.top, last = by_columns ? own.right : own.bottom;
      const i64 from = by_columns ? own.top : own.left, count = by_columns ? own.rows() : own.columns();
      for (i64 along = first; along < last && count; ++along) {
        i64 key = by_channels ? along : 0;
        if (!pointwise()) {
          const Range r = by_columns ? taps_of_column(n, along) : taps_of_row(n, along);
          key = r.first * (taps + 1) + taps - r.last;
        }
        ++places[key + 1];
        found.push_back({count, static_cast<std::int32_t>(n), static_cast<std::int32_t>(along), static_cast<std::int32_t>(from)});
        keys.push_back(static_cast<std::int32_t>(key));
      }
    }
    for (i64 key = 0; key < all_keys; ++key)
      places[key + 1] += places[key];
    room.resize(found.size() + 1);
    for (std::size_t i = 0; i < found.size(); ++i)
      room[places[keys[i]]++] = found[i];
    room.back() = {0, 0, 0, 0};
    i64 start = 0;
    for (Line &line : room) { // until here `start` was the number of pixels
      const i64 count = line.start;
      line.start = start;
      start += count;
    }
    lines = room.data();
    line_count = static_cast<i64>(found.size());
  }

  // The line of an output pixel, by the pixel's number.
  const Line *line_of(i64 index) const {
    return std::upper_bound(lines, lines + line_count, index, [](i64 i, const Line &line) { return i < line.start; }) - 1;
  }

  Pixel pixel(const Line *line, i64 index) const {
    const i64 at = line->from + index - line->start;
    return order == OUTPUT_COLUMNS ? Pixel{line->n, at, line->along} : Pixel{line->n, line->along, at};
  }

  // Elements of the window, in order (kernel row, kernel column, channel), that any of these pixels reads inside the source.
  Range taps_of(i64 first, i64 last) const {
    if (pointwise() && !(uneven && stride_y == 1))
      return {0, taps()};
    Range all{taps(), 0};
    for (const Line *line = line_of(first); line->start < last; ++line) {
      const Range r = order == OUTPUT_COLUMNS ? taps_of_column(line->n, line->along) : taps_of_row(line->n, line->along);
      const i64 row = y0 + line->along - pad_y; // of the source, where a pointwise convolution reads
      const i64 step = order == OUTPUT_COLUMNS ? channels : kernel_x * channels;
      const Range elements = pointwise() ? channels_of_row(row) : Range{r.first * step, r.last * step};
      if (elements.first < elements.last)
        all = {std::min(all.first, elements.first), std::max(all.last, elements.last)};
    }
    return all;
  }

  // Where the source has the first tap of a pixel, whether that is inside or not.
  const float *corner(Pixel p) const {
    const i64 iy = (y0 + p.y) * stride_y - pad_y, ix = (x0 + p.x) * stride_x - pad_x;
    return source.data + p.n * source.batch + (iy - source.top) * source.row + (ix - source.left) * source.pixel;
  }

  // Elements [from, to) of the window of an output pixel.
  void gather(Pixel p, i64 from, i64 to, float *words) const {
    const Source &s = source;
    const i64 line = kernel_x * channels;
    const i64 ix = (x0 + p.x) * stride_x - pad_x;
    const float *first_tap = corner(p);
    for (i64 at = from; at < to;) {
      const i64 ky = at / line, first = at - ky * line, last = std::min(line, to - ky * line);
      const i64 iy = (y0 + p.y) * stride_y - pad_y + ky * dilation_y;
      if (iy < s.top || iy >= s.bottom)
        put_row(format, words, at - from, nullptr, last - first);
      else
        gather_line(first_tap + ky * dilation_y * s.row, p.n, iy, ix, first, last, words, at - from);
      at += last - first;
    }
    if (format == PAIRS && (to - from) % 2)
      put_row(format, words, to - from, nullptr, 1);
  }

private:
  // Channels that are not zero on a row of the source.
  Range channels_of_row(i64 row) const {
    if (row < source.top || row >= source.bottom)
      return {0, 0};
    Range all{channels, 0};
    for (i64 i = 0; i < part_count; ++i)
      if (parts[i].top <= row && row < parts[i].bottom)
        all = {std::min(all.first, parts[i].channel), std::max(all.last, parts[i + 1].channel)};
    return all;
  }

  // Kernel rows (columns) that an output row (column) of an occlusion reads inside its source.
  Range taps_of_row(i64 n, i64 y) const {
    const i64 start = (y0 + y) * stride_y - pad_y;
    const i64 top = fields ? std::max(fields[4 * n], source.top) : source.top;
    const i64 bottom = fields ? std::min(fields[4 * n + 1], source.bottom) : source.bottom;
    return {tap_at(start, top, dilation_y, kernel_y), tap_at(start, bottom, dilation_y, kernel_y)};
  }
  Range taps_of_column(i64 n, i64 x) const {
    const i64 start = (x0 + x) * stride_x - pad_x;
    const i64 left = fields ? std::max(fields[4 * n + 2], source.left) : source.left;
    const i64 right = fields ? std::min(fields[4 * n + 3], source.right) : source.right;
    return {tap_at(start, left, dilation_x, kernel_x), tap_at(start, right, dilation_x, kernel_x)};
  }
  // The first tap that reads at `edge` or beyond, when tap 0 reads at `start`.
  static i64 tap_at(i64 start, i64 edge, i64 dilation, i64 kernel) {
    return edge <= start ? 0 : std::min(divide_up(edge - start, dilation), kernel);
  }

  // Elements [first, last) of one kernel row; `row` points to where its first column would be.
  void gather_line(const float *row, i64 n, i64 iy, i64 ix, i64 first, i64 last, float *words, i64 at) const {
    const Source &s = source;
    if (dilation_x == 1 && s.pixel == channels && !begin.function) { // neighbouring pixels are neighbours in memory
      const i64 start = std::clamp((s.left - ix) * channels, first, last);
      const i64 end = std::clamp((s.right - ix) * channels, start, last);
      if (first < start)
        put_row(format, words, at, nullptr, start - first);
      if (start < end)
        put_row(format, words, at + start - first, row + start, end - start);
      if (end < last)
        put_row(format, words, at + end - first, nullptr, last - end);
      return;
    }
    for (i64 element = first; element < last;) {
      const i64 kx = element / channels, stop = std::min((kx + 1) * channels, last), x = ix + kx * dilation_x;
      const i64 channel = element - kx * channels;
      const float *pixel = row + kx * dilation_x * s.pixel + channel;
      if (x < s.left || x >= s.right)
        put_row(format, words, at + element - first, nullptr, stop - element);
      else if (!begin.function)
        put_row(format, words, at + element - first, pixel, stop - element);
      else
        begin_row(pixel, n, iy, x, channel, words, at + element - first, stop - element);
      element = stop;
    }
  }

  void begin_row(const float *pixel, i64 n, i64 iy, i64 x, i64 channel, float *words, i64 at, i64 count) const {
    const bool gated = begin.function == GATE;
    const float *base = begin.base + (gated ? n : iy) * begin.base_row + x * begin.base_pixel + channel;
    const float *scale = gated ? base : begin.scale ? begin.scale + channel : nullptr;
    float made[2 * DEPTH], *out = format == FLOAT ? words + at : made;
    apply(gated ? 0 : begin.function, false, begin.p, begin.q, {out, base, pixel, scale, count, count, count, 1, count});
    if (format != FLOAT)
      put_row(format, words, at, made, count);
  }
};

// Inputs of a pointwise convolution that will be gathered next, fetched while the current ones are multiplied.
class Ahead {
public:
  // Elements [from, from + count) of pixels [first, last).
  Ahead(const Convolution &c, i64 first, i64 last, i64 from, i64 count)
      : c_(c), from_(from), lines_(divide_up(count, 16)), total_(first < last ? (last - first) * lines_ : 0) {
    if (total_) {
      index_ = first;
      line_ = c.line_of(first);
    }
  }
  // Be as far as `done` of `of` parts of the work.
  void fetch(i64 done, i64 of) {
    for (const i64 until = total_ * done / of; at_ < until; ++at_) {
      if (at_ % lines_ == 0) {
        row_ = c_.corner(c_.pixel(line_, index_)) + from_;
        if (++index_ == line_[1].start)
          ++line_;
      }
      __builtin_prefetch(row_ + at_ % lines_ * 16, 0, 2);
    }
  }

private:
  const Convolution &c_;
  const Line *line_ = nullptr;
  const float *row_ = nullptr;
  i64 index_ = 0, from_, lines_, total_, at_ = 0;
};

// The sums of output pixels [first, last) of all occlusions and of columns [left, right), then their ending.
void convolve_block(const Convolution &c, const Ending &e, i64 first, i64 last, i64 left, i64 right, Scratch &rows, Scratch &sums) {
  const i64 count = last - first, per_word = c.format == PAIRS ? 2 : 1, all_words = divide_up(c.taps(), per_word);
  const i64 pitch = round_up(right - left, LANES);
  float *a = rows.floats(BLOCK * STRIDE), *sum = sums.floats(BLOCK * pitch);
  Range taps = c.taps_of(first, last);
  if (taps.first >= taps.last)
    taps = {0, std::min<i64>(per_word, c.taps())}; // nothing but zeros: one of them will do
  const i64 start = taps.first / per_word, depth = divide_up(taps.last, per_word) - start;
  const i64 blocks = divide_up(depth, DEPTH), block = divide_up(depth, blocks), panels = divide_up(right - left, WIDE);
  for (i64 begin = start; begin < start + depth; begin += block) {
    const i64 words = std::min(block, start + depth - begin);
    const Line *line = c.line_of(first);
    for (i64 i = 0; i < count; ++i) {
      c.gather(c.pixel(line, first + i), begin * per_word, std::min((begin + words) * per_word, c.taps()), a + i * STRIDE);
      if (first + i + 1 == line[1].start)
        ++line;
    }
    const bool more = begin + words < start + depth;
    const i64 next = more ? begin + words : start, next_words = more ? std::min(block, start + depth - next) : block;
    const i64 later = first + omp_get_num_threads() * count; // where the thread goes on
    const i64 next_first = more ? first : later, next_last = !c.pointwise() ? 0 : more ? last : std::min(later + count, c.pixels());
    Ahead ahead(c, next_first, next_last, next * per_word, next_words * per_word);
    const i64 steps = panels * divide_up(count, ROWS);
    i64 step = 0;
    for (i64 column = left; column < right; column += WIDE) {
      const i64 wide = panel_width(column, e.channels);
      const float *panel = c.packed + column * all_words + begin * wide;
      for (i64 row = 0; row < count; row += ROWS) {
        ahead.fetch(++step, steps);
        // weights seldom fit a cache: the next panel is fetched as this one is used
        const i64 share = divide_up(wide * ROWS, count);
        multiply_rows(c.format, a + row * STRIDE, std::min<i64>(ROWS, count - row), panel, wide, words, sum + row * pitch + column - left,
                      pitch, begin > start, panel + all_words * wide + row / ROWS * share * words, share);
      }
    }
  }
  const Line *line = c.line_of(first);
  for (i64 at = first; at < last;) { // pixels that are neighbours in a row together
    const Pixel p = c.pixel(line, at);
    const i64 run = c.order == OUTPUT_COLUMNS ? 1 : std::min(line[1].start, last) - at;
    e.finish(p.n, p.y, p.x, p.x + run, left, right, sum + (at - first) * pitch, pitch);
    at += run;
    if (at == line[1].start)
      ++line;
  }
}

} // namespace

extern "C" {

// Weights (K, C, kernel_y, kernel_x) into panels; `packed` has room for K rounded up to LANES times the words of a window.
void krypton_pack(const i64 *a) {
  const float *weight = reinterpret_cast<const float *>(a[0]);
  const i64 outputs = a[1], channels = a[2], area = a[3], taps = channels * area;
  Scratch scratch;
  float *ordered = scratch.floats(outputs * taps); // (K, kernel row, kernel column, channel)
  for (i64 k = 0; k < outputs; ++k)
    for (i64 c = 0; c < channels; ++c)
      for (i64 t = 0; t < area; ++t)
        ordered[(k * area + t) * channels + c] = weight[(k * channels + c) * area + t];
  pack_panels(static_cast<Format>(a[4]), ordered, 1, taps, taps, outputs, reinterpret_cast<float *>(a[5]));
}

// `parameters`: p and q of the ending's function, then of the beginning's.
void krypton_convolution(const i64 *a, const double *parameters) {
  const Ending e(a, parameters[0], parameters[1]);
  e.clear_margins();
  if (e.batch * e.rows() * e.columns() <= 0)
    return;
  Convolution c(a + ENDING_INTEGERS, e, parameters[2], parameters[3]);
  static thread_local std::vector<Line> lines; // of the calling thread: queries may run side by side
  c.arrange(e, lines);
  const i64 pixels = c.pixels();
  if (!pixels)
    return;
  const i64 threads = pixels * c.taps() * e.channels / 16 > SERIAL_BELOW ? omp_get_max_threads() : 1;
  // as many blocks as threads have to do, all of about one size
  const i64 most = std::clamp<i64>(SUMS / e.channels / ROWS * ROWS, ROWS, BLOCK);
  const i64 blocks = round_up(divide_up(pixels, most), divide_up(pixels, ROWS) >= threads ? threads : 1);
  const i64 block = round_up(divide_up(pixels, blocks), ROWS), count = divide_up(pixels, block);
  // few pixels: threads share the columns instead
  const i64 shares = count < threads ? std::min(divide_up(e.channels, WIDE), divide_up(threads, count)) : 1;
  const i64 share = round_up(divide_up(e.channels, shares), WIDE);
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch rows, sums;
#pragma omp for schedule(static, 1) collapse(2)
    for (i64 i = 0; i < count; ++i)
      for (i64 s = 0; s < shares; ++s)
        if (s * share < e.channels)
          convolve_block(c, e, i * block, std::min((i + 1) * block, pixels), s * share, std::min((s + 1) * share, e.channels), rows,
                         sums);
  }
}

} // extern "C"
