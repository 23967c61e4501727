// Convolutions of deltas as matrix products: rows are output pixels of all occlusions, gathered block by block into the cache.

#include "gemm.h"

namespace {

constexpr i64 BLOCK = 12 * ROWS;      // output pixels worked on together at most
constexpr i64 SUMS = 1 << 17;         // floats of a block's sums at most, half a megabyte: they stay in the second cache

struct Convolution {
  Source source;
  const float *packed; // see krypton_pack
  i64 kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x, channels;
  i64 y0, x0; // where the field starts in the output map
  Format format;

  explicit Convolution(const i64 *a)
      : source{reinterpret_cast<const float *>(a[0]), a[1], a[2], a[3], a[4], a[5], a[6], a[7]},
        packed(reinterpret_cast<const float *>(a[8])), kernel_y(a[9]), kernel_x(a[10]), stride_y(a[11]), stride_x(a[12]),
        pad_y(a[13]), pad_x(a[14]), dilation_y(a[15]), dilation_x(a[16]), channels(a[17]), y0(a[18]), x0(a[19]),
        format(static_cast<Format>(a[20])) {}

  i64 taps() const { return kernel_y * kernel_x * channels; }

  // Elements [from, to) of the window of output pixel (n, oy, ox), in order (kernel row, kernel column, channel).
  void gather(i64 n, i64 oy, i64 ox, i64 from, i64 to, float *words) const {
    const Source &s = source;
    const i64 line = kernel_x * channels;
    const i64 ix = (x0 + ox) * stride_x - pad_x;
    for (i64 at = from; at < to;) {
      const i64 ky = at / line, first = at - ky * line, last = std::min(line, to - ky * line);
      const i64 iy = (y0 + oy) * stride_y - pad_y + ky * dilation_y;
      if (iy < s.top || iy >= s.bottom) {
        put_row(format, words, at - from, nullptr, last - first);
      } else {
        const float *row = s.data + n * s.batch + (iy - s.top) * s.row + (ix - s.left) * s.pixel;
        gather_line(row, ix, first, last, words, at - from);
      }
      at += last - first;
    }
    if (format == PAIRS && (to - from) % 2)
      put_row(format, words, to - from, nullptr, 1);
  }

private:
  // Elements [first, last) of one kernel row; `row` points to where its first column would be.
  void gather_line(const float *row, i64 ix, i64 first, i64 last, float *words, i64 at) const {
    const Source &s = source;
    if (dilation_x == 1 && s.pixel == channels) { // neighbouring pixels are neighbours in memory
      const i64 begin = std::clamp((s.left - ix) * channels, first, last);
      const i64 end = std::clamp((s.right - ix) * channels, begin, last);
      if (first < begin)
        put_row(format, words, at, nullptr, begin - first);
      if (begin < end)
        put_row(format, words, at + begin - first, row + begin, end - begin);
      if (end < last)
        put_row(format, words, at + end - first, nullptr, last - end);
      return;
    }
    for (i64 element = first; element < last;) {
      const i64 kx = element / channels, stop = std::min((kx + 1) * channels, last), x = ix + kx * dilation_x;
      const float *pixel = row + kx * dilation_x * s.pixel + element - kx * channels;
      put_row(format, words, at + element - first, x < s.left || x >= s.right ? nullptr : pixel, stop - element);
      element = stop;
    }
  }
};

// The sums of output pixels [first, last) of all occlusions and of columns [left, right), then their ending.
void convolve_block(const Convolution &c, const Ending &e, i64 first, i64 last, i64 left, i64 right, Scratch &rows, Scratch &sums) {
  const i64 count = last - first, per_word = c.format == PAIRS ? 2 : 1, taps = c.taps(), depth = divide_up(taps, per_word);
  const i64 columns = e.columns(), area = e.rows() * columns;
  const i64 pitch = round_up(right - left, LANES);
  float *a = rows.floats(BLOCK * STRIDE), *sum = sums.floats(BLOCK * pitch);
  const i64 blocks = divide_up(depth, DEPTH), block = divide_up(depth, blocks);
  for (i64 begin = 0; begin < depth; begin += block) {
    const i64 words = std::min(block, depth - begin);
    i64 n = first / area, y = first % area / columns, x = first % columns;
    for (i64 i = 0; i < count; ++i) {
      c.gather(n, y, x, begin * per_word, std::min((begin + words) * per_word, taps), a + i * STRIDE);
      if (++x == columns) {
        x = 0;
        if (++y == e.rows()) {
          y = 0;
          ++n;
        }
      }
    }
    for (i64 column = left; column < right; column += WIDE) {
      const i64 wide = panel_width(column, e.channels);
      const float *panel = c.packed + column * depth + begin * wide;
      multiply_panel(c.format, a, count, panel, wide, words, sum + column - left, pitch, begin > 0, panel + depth * wide);
    }
  }
  for (i64 at = first; at < last;) { // row by row
    const i64 n = at / area, y = at % area / columns, x = at % columns, run = std::min(columns - x, last - at);
    e.finish(n, y, x, x + run, left, right, sum + (at - first) * pitch, pitch);
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

void krypton_convolution(const i64 *a, double p, double q) {
  const Ending e(a, p, q);
  const Convolution c(a + ENDING_INTEGERS);
  e.clear_margins();
  const i64 pixels = e.batch * e.rows() * e.columns();
  if (pixels <= 0)
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
#pragma omp for schedule(dynamic) collapse(2)
    for (i64 i = 0; i < count; ++i)
      for (i64 s = 0; s < shares; ++s)
        if (s * share < e.channels)
          convolve_block(c, e, i * block, std::min((i + 1) * block, pixels), s * share, std::min((s + 1) * share, e.channels), rows,
                         sums);
  }
}

} // extern "C"
