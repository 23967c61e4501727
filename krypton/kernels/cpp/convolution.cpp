// Convolutions of deltas as matrix products: rows are output pixels of all occlusions, gathered block by block into the cache.
// What is zero in neighbouring rows at once is not multiplied.

#include "gemm.h"

#include <limits>
#include <numeric>
#include <vector>

namespace {

constexpr i64 BLOCK = 12 * ROWS; // output pixels worked on together at most
constexpr i64 SUMS = 1 << 17;    // floats of a block's sums at most, half a megabyte: they stay in the second cache

// Multiplications of an output pixel from which on leaving out zeros is worth more than neighbouring pixels being neighbours in memory.
constexpr i64 HEAVY = 8192;

// What is convolved may still have to be made of the source: f(base + scale*source) - f(base), on the map of the source; or
// base*source, of a base with a number per occlusion and channel.
struct Beginning {
  i64 function; // 0: the source as it is; GATE: the product
  const float *base;
  i64 base_row, base_pixel;
  const float *scale;
  double p, q;
};

// An output pixel of one occlusion, in coordinates of the field.
struct Pixel {
  std::int32_t n, y, x;
  bool beside(const Pixel &left) const { return n == left.n && y == left.y && x == left.x + 1; }
  bool at_place_of(const Pixel &other) const { return y == other.y && x == other.x; }
};

// How many pixels from the first on are neighbours in a row.
i64 neighbours(const Pixel *pixels, i64 count) {
  i64 run = 1;
  while (run < count && pixels[run].beside(pixels[run - 1]))
    ++run;
  return run;
}

struct Convolution {
  Source source;
  const float *packed; // see krypton_pack
  i64 kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x, channels;
  i64 y0, x0; // where the field starts in the output map
  Format format;
  Beginning begin;
  bool heavy; // Is there so much to multiply for every pixel that order in memory is not what matters most?
  bool zeros; // Does the source have some that can be left out?

  Convolution(const Ending &e, const i64 *a, double p, double q)
      : source{reinterpret_cast<const float *>(a[0]), a[1], a[2], a[3], a[4], a[5], a[6], a[7]},
        packed(reinterpret_cast<const float *>(a[8])), kernel_y(a[9]), kernel_x(a[10]), stride_y(a[11]), stride_x(a[12]),
        pad_y(a[13]), pad_x(a[14]), dilation_y(a[15]), dilation_x(a[16]), channels(a[17]), y0(a[18]), x0(a[19]),
        format(static_cast<Format>(a[20])),
        begin{a[BEGINNING], reinterpret_cast<const float *>(a[22]), a[23], a[24], reinterpret_cast<const float *>(a[25]), p, q},
        heavy(taps() * e.channels >= HEAVY), zeros(finds_zeros(e)) {}

  i64 taps() const { return kernel_y * kernel_x * channels; }
  bool by_place() const { return heavy && zeros; }
  bool pointwise() const { return kernel_y == 1 && kernel_x == 1; }

  // Where the source has the first tap of a pixel, whether that is inside or not.
  const float *corner(Pixel p) const {
    const i64 iy = (y0 + p.y) * stride_y - pad_y, ix = (x0 + p.x) * stride_x - pad_x;
    return source.at(p.n, iy, ix);
  }

  // Are there zeros in the middle of some occlusions' fields? An activation that makes none leaves none.
  bool finds_zeros(const Ending &e) const {
    if (begin.function > 0)
      return true; // not known before it is applied
    i64 seen = 0, zeros = 0;
    for (i64 n = 0; n < e.batch; n += divide_up(e.batch, 8)) {
      const Rectangle own = e.own_field(n);
      const i64 y = (y0 + (own.top + own.bottom) / 2) * stride_y - pad_y + kernel_y / 2 * dilation_y;
      const i64 x = (x0 + (own.left + own.right) / 2) * stride_x - pad_x + kernel_x / 2 * dilation_x;
      if (!source.covers(y, x))
        continue;
      const float *pixel = source.at(n, y, x);
      const i64 some = std::min<i64>(channels, 128);
      zeros += std::count(pixel, pixel + some, 0.0f);
      seen += some;
    }
    return seen < 16 * zeros;
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

  // The same of so many pixels, into rows of words.
  void gather(const Pixel *pixels, i64 count, i64 from, i64 to, float *rows) const {
    const bool copied = pointwise() && format == FLOAT && begin.function <= 0;
    for (i64 i = 0; i < count;) {
      const i64 run = copied ? neighbours(pixels + i, count - i) : 1;
      if (copied && inside(pixels[i]) && inside(pixels[i + run - 1]))
        copy(corner(pixels[i]) + from, factors(pixels[i].n, from), run, to - from, rows + i * STRIDE);
      else
        for (i64 j = i; j < i + run; ++j)
          gather(pixels[j], from, to, rows + j * STRIDE);
      i += run;
    }
  }

private:
  bool inside(Pixel p) const { return source.covers((y0 + p.y) * stride_y - pad_y, (x0 + p.x) * stride_x - pad_x); }

  // What elements of an occlusion's pixels are multiplied by; null: nothing.
  const float *factors(i64 n, i64 from) const { return begin.function == GATE ? begin.base + n * begin.base_row + from : nullptr; }

  // Few elements of many pixels in a row of the output: calling memcpy would take longer than copying.
  void copy(const float *from, const float *factors, i64 pixels, i64 count, float *rows) const {
    for (; pixels > 0; --pixels, from += stride_x * source.pixel, rows += STRIDE) {
      const auto put = [&](i64 i) { store(rows + i, factors ? load(from + i) * load(factors + i) : load(from + i)); };
      if (count < LANES) {
        for (i64 i = 0; i < count; ++i)
          rows[i] = factors ? from[i] * factors[i] : from[i];
        continue;
      }
      for (i64 i = 0; i + LANES < count; i += LANES)
        put(i);
      put(count - LANES);
    }
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
    const float *base = gated ? factors(n, channel) : begin.base + iy * begin.base_row + x * begin.base_pixel + channel;
    const float *scale = gated ? base : begin.scale ? begin.scale + channel : nullptr;
    float made[2 * DEPTH], *out = format == FLOAT ? words + at : made;
    apply(gated ? 0 : begin.function, false, begin.p, begin.q, {out, base, pixel, scale, count, count, count, 1, count});
    if (format != FLOAT)
      put_row(format, words, at, made, count);
  }
};

// The output pixels of all occlusions' own fields, row by row; `by_place` those of all occlusions at a place one after the other:
// what they read is from the same places of the image, and an activation has made zero of much the same channels there.
class Pixels {
public:
  // Count them; `list` is then to be called for every row.
  void cover(const Ending &e, bool by_place) {
    by_place_ = by_place;
    starts_.assign(e.rows() + 1, 0);
    fields_.clear();
    for (i64 n = 0; n < e.batch; ++n) {
      const Rectangle own = e.own_field(n);
      fields_.push_back(own);
      for (i64 y = own.top; y < own.bottom; ++y)
        starts_[y + 1] += own.columns();
    }
    std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
    if (static_cast<i64>(pixels_.size()) < count())
      pixels_.resize(count());
  }
  i64 rows() const { return static_cast<i64>(starts_.size()) - 1; }
  i64 count() const { return starts_.back(); }
  const Pixel *from(i64 first) const { return pixels_.data() + first; }

  void list(i64 y) {
    Pixel *next = pixels_.data() + starts_[y];
    i64 left = std::numeric_limits<i64>::max(), right = 0;
    const auto reaches = [y](const Rectangle &field) { return field.top <= y && y < field.bottom; };
    for (const Rectangle &field : fields_)
      if (reaches(field)) {
        left = std::min(left, field.left);
        right = std::max(right, field.right);
      }
    const i64 batch = static_cast<i64>(fields_.size());
    const auto add = [&](i64 n, i64 x) {
      *next++ = {static_cast<std::int32_t>(n), static_cast<std::int32_t>(y), static_cast<std::int32_t>(x)};
    };
    if (by_place_) {
      for (i64 x = left; x < right; ++x)
        for (i64 n = 0; n < batch; ++n)
          if (reaches(fields_[n]) && fields_[n].left <= x && x < fields_[n].right)
            add(n, x);
    } else {
      for (i64 n = 0; n < batch; ++n)
        if (reaches(fields_[n]))
          for (i64 x = fields_[n].left; x < fields_[n].right; ++x)
            add(n, x);
    }
  }

private:
  bool by_place_ = false;
  std::vector<i64> starts_; // of rows
  std::vector<Rectangle> fields_;
  std::vector<Pixel> pixels_;
};

// Inputs of a pointwise convolution that will be gathered next, fetched while the current ones are multiplied.
class Ahead {
public:
  // Elements [from, from + count) of so many pixels.
  Ahead(const Convolution &c, const Pixel *pixels, i64 many, i64 from, i64 count)
      : c_(c), pixel_(pixels), from_(from), lines_(divide_up(count, 16)), total_(many > 0 ? many * lines_ : 0) {}
  // Be as far as `done` of `of` parts of the work.
  void fetch(i64 done, i64 of) {
    for (const i64 until = total_ * done / of; at_ < until; ++at_) {
      if (at_ % lines_ == 0)
        row_ = c_.corner(*pixel_++) + from_;
      __builtin_prefetch(row_ + at_ % lines_ * 16, 0, 2);
    }
  }

private:
  const Convolution &c_;
  const Pixel *pixel_;
  const float *row_ = nullptr;
  i64 from_, lines_, total_, at_ = 0;
};

// Rows of a block that are multiplied together, and their words without those that are zero in all of them.
struct Group {
  i64 first, rows;
  Places places;
};

// `by_place`: those of one place, in equal parts if they are many; those of several places if they are few.
void group_rows(const Pixel *pixels, i64 count, bool by_place, std::vector<Group> &groups) {
  const auto at_one_place = [&](i64 first) {
    i64 last = first + 1;
    while (last < count && pixels[last].at_place_of(pixels[first]))
      ++last;
    return last - first;
  };
  groups.clear();
  for (i64 first = 0; first < count;) {
    i64 rows = by_place ? at_one_place(first) : std::min<i64>(ROWS, count - first);
    if (rows > ROWS)
      rows = divide_up(rows, divide_up(rows, ROWS));
    else if (by_place)
      for (i64 more; first + rows < count && rows + (more = at_one_place(first + rows)) <= ROWS;)
        rows += more;
    groups.push_back({first, rows, {}});
    first += rows;
  }
}

// What one thread works with.
struct Room {
  Scratch rows, sums;
  std::vector<Group> groups;
  std::uint16_t places[BLOCK][STRIDE];
};

// The sums of so many output pixels and of columns [left, right), then their ending. `later`: those that the thread goes on with.
void convolve_block(const Convolution &c, const Ending &e, const Pixel *pixels, i64 count, const Pixel *later, i64 later_count, i64 left,
                    i64 right, Room &room) {
  const i64 per_word = c.format == PAIRS ? 2 : 1, depth = divide_up(c.taps(), per_word);
  const i64 pitch = round_up(right - left, LANES);
  float *a = room.rows.floats(BLOCK * STRIDE), *sum = room.sums.floats(BLOCK * pitch);
  std::vector<Group> &groups = room.groups;
  group_rows(pixels, count, c.by_place(), groups);
  const i64 blocks = divide_up(depth, DEPTH), block = divide_up(depth, blocks), panels = divide_up(right - left, WIDE);
  for (i64 begin = 0; begin < depth; begin += block) {
    const i64 words = std::min(block, depth - begin);
    c.gather(pixels, count, begin * per_word, std::min((begin + words) * per_word, c.taps()), a);
    for (Group &g : groups)
      g.places = c.zeros ? places_of(c.format, a + g.first * STRIDE, g.rows, words, room.places[g.first]) : Places{nullptr, words};
    const bool more = begin + words < depth;
    const i64 next = more ? begin + words : 0, next_words = more ? std::min(block, depth - next) : block;
    const i64 fetched = c.pointwise() && c.heavy ? more ? count : later_count : 0;
    Ahead ahead(c, more ? pixels : later, fetched, next * per_word, next_words * per_word);
    const i64 steps = panels * static_cast<i64>(groups.size());
    i64 step = 0;
    for (i64 column = left; column < right; column += WIDE) {
      const i64 wide = panel_width(column, e.channels), share = divide_up(wide * words, count);
      const float *panel = c.packed + column * depth + begin * wide, *next_panel = panel + depth * wide;
      for (const Group &g : groups) {
        ahead.fetch(++step, steps);
        // weights seldom fit a cache: the next panel is fetched as this one is used
        multiply_rows(c.format, a + g.first * STRIDE, g.rows, panel, wide, g.places, sum + g.first * pitch + column - left, pitch,
                      begin > 0, next_panel + g.first * share, divide_up(g.rows * share, std::max<i64>(g.places.count, 1)));
      }
    }
  }
  for (i64 at = 0; at < count;) { // pixels that are neighbours in a row together
    const i64 run = neighbours(pixels + at, count - at);
    const Pixel &p = pixels[at];
    e.finish(p.n, p.y, p.x, p.x + run, left, right, sum + at * pitch, pitch);
    at += run;
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
  const Convolution c(e, a + ENDING_INTEGERS, parameters[2], parameters[3]);
  static thread_local Pixels callers; // queries may run side by side
  Pixels &pixels = callers;           // in all threads of this one
  pixels.cover(e, c.by_place());
  const i64 all = pixels.count();
  if (!all)
    return;
  const i64 threads = all * c.taps() * e.channels / 16 > SERIAL_BELOW ? omp_get_max_threads() : 1;
  // as many blocks as threads have to do, all of about one size
  const i64 most = std::clamp<i64>(SUMS / e.channels / ROWS * ROWS, ROWS, BLOCK);
  const i64 blocks = round_up(divide_up(all, most), divide_up(all, ROWS) >= threads ? threads : 1);
  const i64 block = round_up(divide_up(all, blocks), ROWS), count = divide_up(all, block);
  // few pixels: threads share the columns instead
  const i64 shares = count < threads ? std::min(divide_up(e.channels, WIDE), divide_up(threads, count)) : 1;
  const i64 share = round_up(divide_up(e.channels, shares), WIDE);
#pragma omp parallel num_threads(threads)
  {
    static thread_local Room room;
    const auto size = [&](i64 first) { return std::clamp<i64>(all - first, 0, block); };
#pragma omp for schedule(static)
    for (i64 y = 0; y < pixels.rows(); ++y)
      pixels.list(y);
#pragma omp for schedule(static, 1) collapse(2)
    for (i64 i = 0; i < count; ++i)
      for (i64 s = 0; s < shares; ++s)
        if (s * share < e.channels) {
          const i64 first = i * block, later = std::min(first + threads * block, all);
          convolve_block(c, e, pixels.from(first), size(first), pixels.from(later), size(later), s * share,
                         std::min((s + 1) * share, e.channels), room);
        }
  }
}

} // extern "C"
