// Depthwise convolutions of deltas. Memory decides: every input is read from the cache, and the ending follows line by line.

#include "common.h"

namespace {

constexpr int MOST_TAPS = 128;

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
    const float *inputs[MOST_TAPS], *weights[MOST_TAPS];
    for (i64 x = 0; x < columns; ++x) {
      int taps = 0;
      bool first = true;
      const i64 iy = (y0 + y) * stride_y - pad_y, ix = (x0 + x) * stride_x - pad_x;
      for (i64 ky = 0; ky < kernel_y; ++ky) {
        const i64 sy = iy + ky * dilation_y;
        if (sy < source.top || sy >= source.bottom)
          continue;
        for (i64 kx = 0; kx < kernel_x; ++kx) {
          const i64 sx = ix + kx * dilation_x;
          if (sx < source.left || sx >= source.right)
            continue;
          if (taps == MOST_TAPS) { // a kernel of more taps goes in parts
            pixel(inputs, weights, taps, channels, sum + x * channels, first);
            taps = 0;
            first = false;
          }
          inputs[taps] = source.data + n * source.batch + (sy - source.top) * source.row + (sx - source.left) * source.pixel;
          weights[taps++] = weight + (ky * kernel_x + kx) * channels;
        }
      }
      if (taps == 9 && kernel_y * kernel_x == 9)
        pixel_of<9>(inputs, weights, channels, sum + x * channels);
      else
        pixel(inputs, weights, taps, channels, sum + x * channels, first);
    }
  }

private:
  // The taps of one output pixel; 3 x 3 inside the source is the common case, for which all is unrolled.
  template <int TAPS> static void pixel_of(const float *const *inputs, const float *const *weights, i64 channels, float *sum) {
    const float *in[TAPS];
    for (int t = 0; t < TAPS; ++t)
      in[t] = inputs[t];
    const float *w = weights[0]; // all taps: their weights follow one another
    i64 c = 0;
    for (; c + LANES <= channels; c += LANES) {
      Vector total{};
#pragma GCC unroll 16
      for (int t = 0; t < TAPS; ++t)
        total += load(in[t] + c) * load(w + t * channels + c);
      store(sum + c, total);
    }
    for (; c < channels; ++c) {
      float total = 0.0f;
      for (int t = 0; t < TAPS; ++t)
        total += in[t][c] * w[t * channels + c];
      sum[c] = total;
    }
  }

  static void pixel(const float *const *inputs, const float *const *weights, int taps, i64 channels, float *sum, bool first) {
    i64 c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES) {
      Vector total[4];
      for (int j = 0; j < 4; ++j)
        total[j] = first ? Vector{} : load(sum + c + j * LANES);
      for (int t = 0; t < taps; ++t)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
          total[j] += load(inputs[t] + c + j * LANES) * load(weights[t] + c + j * LANES);
      for (int j = 0; j < 4; ++j)
        store(sum + c + j * LANES, total[j]);
    }
    for (; c + LANES <= channels; c += LANES) {
      Vector total = first ? Vector{} : load(sum + c);
      for (int t = 0; t < taps; ++t)
        total += load(inputs[t] + c) * load(weights[t] + c);
      store(sum + c, total);
    }
    for (; c < channels; ++c) {
      float total = first ? 0.0f : sum[c];
      for (int t = 0; t < taps; ++t)
        total += inputs[t][c] * weights[t][c];
      sum[c] = total;
    }
  }
};

} // namespace

extern "C" {

void krypton_depthwise(const i64 *a, const double *parameters) {
  const Ending e(a, parameters[0], parameters[1]);
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
