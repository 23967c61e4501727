// Depthwise convolutions of deltas. Memory decides: every input is read from the cache, and the ending follows line by line.

#include "common.h"

namespace {

struct Depthwise {
  Source source;
  const float *weight; // (kernel row, kernel column, channel)
  i64 kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x, y0, x0;

  explicit Depthwise(const i64 *a)
      : source{reinterpret_cast<const float *>(a[0]), a[1], a[2], a[3], a[4], a[5], a[6], a[7]},
        weight(reinterpret_cast<const float *>(a[8])), kernel_y(a[9]), kernel_x(a[10]), stride_y(a[11]), stride_x(a[12]),
        pad_y(a[13]), pad_x(a[14]), dilation_y(a[15]), dilation_x(a[16]), y0(a[17]), x0(a[18]) {}

  // sum[x][channel] of one line of outputs; `channels` floats a pixel.
  void line(i64 n, i64 y, i64 columns, i64 channels, float *sum) const {
    const i64 iy = (y0 + y) * stride_y - pad_y;
    for (i64 x = 0; x < columns; ++x) {
      const i64 ix = (x0 + x) * stride_x - pad_x;
      float *target = sum + x * channels;
      // few taps at a time, so that sums stay in registers for a vector of channels
      i64 c = 0;
      for (; c + 2 * LANES <= channels; c += 2 * LANES) {
        Vector a{}, b{};
        each_tap(n, iy, ix, channels, [&](const float *in, const float *w) {
          a += load(in + c) * load(w + c);
          b += load(in + c + LANES) * load(w + c + LANES);
        });
        store(target + c, a);
        store(target + c + LANES, b);
      }
      for (; c + LANES <= channels; c += LANES) {
        Vector a{};
        each_tap(n, iy, ix, channels, [&](const float *in, const float *w) { a += load(in + c) * load(w + c); });
        store(target + c, a);
      }
      for (; c < channels; ++c) {
        float a = 0.0f;
        each_tap(n, iy, ix, channels, [&](const float *in, const float *w) { a += in[c] * w[c]; });
        target[c] = a;
      }
    }
  }

private:
  template <class F> void each_tap(i64 n, i64 iy, i64 ix, i64 channels, F f) const {
    const Source &s = source;
    for (i64 ky = 0; ky < kernel_y; ++ky) {
      const i64 sy = iy + ky * dilation_y;
      if (sy < s.top || sy >= s.bottom)
        continue;
      for (i64 kx = 0; kx < kernel_x; ++kx) {
        const i64 sx = ix + kx * dilation_x;
        if (sx >= s.left && sx < s.right)
          f(s.data + n * s.batch + (sy - s.top) * s.row + (sx - s.left) * s.pixel, weight + (ky * kernel_x + kx) * channels);
      }
    }
  }
};

} // namespace

extern "C" {

void krypton_depthwise(const i64 *a, double p, double q) {
  const Ending e(a, p, q);
  const Depthwise d(a + ENDING_INTEGERS);
  e.clear_margins();
  const i64 lines = e.batch * e.rows(), columns = e.columns(), channels = e.channels;
#pragma omp parallel if (lines * columns * channels > SERIAL_BELOW)
  {
    static thread_local Scratch scratch;
    float *sum = scratch.floats(columns * channels);
#pragma omp for schedule(static)
    for (i64 line = 0; line < lines; ++line) {
      d.line(line / e.rows(), line % e.rows(), columns, channels, sum);
      e.finish(line / e.rows(), line % e.rows(), 0, columns, 0, channels, sum, channels);
    }
  }
}

} // extern "C"
