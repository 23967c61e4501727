// Depthwise convolutions. Memory decides: several outputs of a line are summed in registers at once, so that inputs and weights
// are loaded seldom, and the ending follows line by line.

#include "common.h"

namespace {

constexpr int MOST_TAPS = 128;
constexpr int MOST = 8, WIDEST = 7; // outputs of a block; columns of a kernel that blocks are made for

// `in` are the pixels that OUT neighbouring outputs read, (OUT - 1) * S + K for each of the kernel's rows that are inside. There
// are at least LANES channels; the last vector may overlap the one before it.
template <int K, int S, int OUT>
void block(const float *const *in, i64 rows, const float *weight, i64 channels, float *sum) {
  constexpr int WIDTH = (OUT - 1) * S + K;
  for (i64 c = 0;; c = std::min(c + LANES, channels - LANES)) {
    Vector total[OUT]{};
    for (i64 y = 0; y < rows; ++y) {
      Vector w[K];
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k)
        w[k] = load(weight + (y * K + k) * channels + c);
#pragma GCC unroll 32
      for (int x = 0; x < WIDTH; ++x) {
        const Vector v = load(in[y * WIDTH + x] + c);
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k)
          if (x >= k && (x - k) % S == 0 && (x - k) / S < OUT)
            total[(x - k) / S] += v * w[k];
      }
    }
#pragma GCC unroll 8
    for (int o = 0; o < OUT; ++o)
      store(sum + o * channels + c, total[o]);
    if (c + LANES >= channels)
      return;
  }
}

using Block = void (*)(const float *const *, i64, const float *, i64, float *);

// Blocks of 1 to MOST outputs; null for kernels of other widths and strides.
struct Blocks {
  Block of[WIDEST + 1][3][MOST + 1]{};
  Blocks() { list<MOST>(); }
  template <int OUT> void list() {
    of[3][1][OUT] = block<3, 1, OUT>;
    of[3][2][OUT] = block<3, 2, OUT>;
    of[5][1][OUT] = block<5, 1, OUT>;
    of[5][2][OUT] = block<5, 2, OUT>;
    of[7][1][OUT] = block<7, 1, OUT>;
    if constexpr (OUT > 1)
      list<OUT - 1>();
  }
};
const Blocks blocks;

struct Depthwise {
  Source source;
  const float *weight; // (kernel row, kernel column, channel)
  i64 kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x, y0, x0;

  explicit Depthwise(const i64 *a)
      : source{reinterpret_cast<const float *>(a[0]), a[1], a[2], a[3], a[4], a[5], a[6], a[7]},
        weight(reinterpret_cast<const float *>(a[8])), kernel_y(a[9]), kernel_x(a[10]), stride_y(a[11]), stride_x(a[12]),
        pad_y(a[13]), pad_x(a[14]), dilation_y(a[15]), dilation_x(a[16]), y0(a[17]), x0(a[18]) {}

  // sum[x][channel] of one line of outputs, from column `left` on; `channels` floats a pixel. `zeros` are as many.
  void line(i64 n, i64 y, i64 left, i64 columns, i64 channels, float *sum, const float *zeros) const {
    const bool fits = kernel_y <= MOST_TAPS / 8 && kernel_x <= WIDEST && stride_x <= 2 && dilation_x == 1 && dilation_y == 1;
    if (channels >= LANES && fits && blocks.of[kernel_x][stride_x][1])
      line_in_blocks(n, y, left, columns, channels, sum, zeros);
    else
      line_of_pixels(n, y, left, columns, channels, sum);
  }

private:
  void line_in_blocks(i64 n, i64 y, i64 left, i64 columns, i64 channels, float *sum, const float *zeros) const {
    const i64 iy = (y0 + y) * stride_y - pad_y, first = std::clamp<i64>(source.top - iy, 0, kernel_y);
    const i64 rows = std::clamp<i64>(source.bottom - iy, first, kernel_y) - first, parts = divide_up(columns, MOST);
    const float *row = source.data + n * source.batch + (iy + first - source.top) * source.row;
    const float *in[MOST_TAPS / 8 * (MOST * 2 + WIDEST)];
    for (i64 part = 0; part < parts; ++part) {
      const i64 x = part * columns / parts, outputs = (part + 1) * columns / parts - x;
      const i64 ix = (x0 + left + x) * stride_x - pad_x, width = (outputs - 1) * stride_x + kernel_x;
      for (i64 i = 0; i < rows; ++i)
        for (i64 j = 0; j < width; ++j) {
          const bool inside = ix + j >= source.left && ix + j < source.right;
          in[i * width + j] = inside ? row + i * source.row + (ix + j - source.left) * source.pixel : zeros;
        }
      blocks.of[kernel_x][stride_x][outputs](in, rows, weight + first * kernel_x * channels, channels, sum + x * channels);
    }
  }

  void line_of_pixels(i64 n, i64 y, i64 left, i64 columns, i64 channels, float *sum) const {
    const float *inputs[MOST_TAPS], *weights[MOST_TAPS];
    for (i64 x = 0; x < columns; ++x) {
      int taps = 0;
      bool first = true;
      const i64 iy = (y0 + y) * stride_y - pad_y, ix = (x0 + left + x) * stride_x - pad_x;
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
          inputs[taps] = source.at(n, sy, sx);
          weights[taps++] = weight + (ky * kernel_x + kx) * channels;
        }
      }
      pixel(inputs, weights, taps, channels, sum + x * channels, first);
    }
  }

  // The taps of one output pixel.
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
    const i64 rest = channels - c;
    float total[LANES]{};
    if (!first)
      std::copy(sum + c, sum + channels, total);
    for (int t = 0; t < taps && rest; ++t)
#pragma omp simd
      for (i64 j = 0; j < rest; ++j)
        total[j] += inputs[t][c + j] * weights[t][c + j];
    std::copy(total, total + rest, sum + c);
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
    float *sum = scratch.floats((columns + 1) * channels), *zeros = sum + columns * channels;
    std::memset(zeros, 0, sizeof(float) * channels);
#pragma omp for schedule(static)
    for (i64 line = 0; line < lines; ++line) {
      const i64 n = line / e.rows(), y = line % e.rows();
      const Rectangle own = e.own_field(n);
      if (y < own.top || y >= own.bottom || !own.columns())
        continue;
      d.line(n, y, own.left, own.columns(), channels, sum, zeros);
      e.finish(n, y, own.left, own.right, 0, channels, sum, channels);
    }
  }
}

} // extern "C"
