// Winograd convolutions F(M x M, 3 x 3), stride 1, of deltas (Lavin and Gray, 2015).
//
// A tile of (M + 2)^2 inputs is transformed to as many numbers, multiplied point by point with transformed weights, summed over
// channels (a matrix product for each of the points), and transformed back to M x M outputs. Zero-extension is part of the first
// transform, the ending part of the last: no other pass over memory is made.

#include "gemm.h"

namespace {

// The transforms of one line, on vectors. Points 0, 1, -1, (2, -2), infinity.
template <int M> struct Lines;

template <> struct Lines<2> {
  static constexpr int POINTS = 4;
  static void input(const Vector *d, Vector *v) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  static void output(const Vector *m, Vector *y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  static void weight(const double *g, double *u) {
    u[0] = g[0];
    u[1] = (g[0] + g[1] + g[2]) / 2;
    u[2] = (g[0] - g[1] + g[2]) / 2;
    u[3] = g[2];
  }
};

template <> struct Lines<4> {
  static constexpr int POINTS = 6;
  static void input(const Vector *d, Vector *v) {
    const Vector a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
    v[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    v[1] = a + b;
    v[2] = a - b;
    v[3] = c + e;
    v[4] = c - e;
    v[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
  }
  static void output(const Vector *m, Vector *y) {
    const Vector a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
    y[0] = m[0] + a + c;
    y[1] = b + 2.0f * d;
    y[2] = a + 4.0f * c;
    y[3] = b + 8.0f * d + m[5];
  }
  static void weight(const double *g, double *u) {
    u[0] = g[0] / 4;
    u[1] = -(g[0] + g[1] + g[2]) / 6;
    u[2] = -(g[0] - g[1] + g[2]) / 6;
    u[3] = g[0] / 24 + g[1] / 12 + g[2] / 6;
    u[4] = g[0] / 24 - g[1] / 12 + g[2] / 6;
    u[5] = g[2];
  }
};

constexpr i64 SUMS = 108 * 1024; // floats of one panel's sums at most: they stay in the second cache

template <int M> struct Winograd {
  static constexpr int SIDE = Lines<M>::POINTS, POINTS = SIDE * SIDE;

  Source source;
  const float *packed; // (panel, point, channel, column), see krypton_winograd_pack
  i64 pad_y, pad_x, channels, y0, x0, tiles_y, tiles_x, blocks, depth;

  Winograd(const i64 *a, const Ending &e)
      : source{reinterpret_cast<const float *>(a[0]), a[1], a[2], a[3], a[4], a[5], a[6], a[7]},
        packed(reinterpret_cast<const float *>(a[8])), pad_y(a[9]), pad_x(a[10]), channels(a[11]), y0(a[12]), x0(a[13]),
        tiles_y(divide_up(e.rows(), M)), tiles_x(divide_up(e.columns(), M)), blocks(divide_up(channels, DEPTH)),
        depth(divide_up(channels, blocks)) {}

  // Where the transformed inputs of a point, block of channels and tile are kept.
  float *at(float *v, i64 point, i64 block, i64 tile, i64 tiles) const { return v + ((point * blocks + block) * tiles + tile) * STRIDE; }

  // Transform one tile's inputs, vector of channels by vector.
  void transform_input(i64 n, i64 ty, i64 tx, float *v, i64 tile, i64 tiles) const {
    const Source &s = source;
    const i64 iy = y0 + ty * M - pad_y, ix = x0 + tx * M - pad_x;
    const float *corner = s.data + n * s.batch + (iy - s.top) * s.row + (ix - s.left) * s.pixel;
    const int top = std::clamp<i64>(s.top - iy, 0, SIDE), bottom = std::clamp<i64>(s.bottom - iy, top, SIDE);
    const int left = std::clamp<i64>(s.left - ix, 0, SIDE), right = std::clamp<i64>(s.right - ix, left, SIDE);
    for (i64 block = 0; block < blocks; ++block) {
      const i64 first = block * depth, last = std::min(first + depth, channels);
      for (i64 c = first; c < last; c += LANES) {
        const i64 lanes = std::min<i64>(LANES, last - c);
        Vector half[SIDE][SIDE]; // columns transformed: [point along y][x]
        for (int x = 0; x < SIDE; ++x) {
          Vector d[SIDE];
          const bool inside = x >= left && x < right;
          for (int y = 0; y < SIDE; ++y)
            d[y] = inside && y >= top && y < bottom ? load_part(corner + y * s.row + x * s.pixel + c, lanes) : Vector{};
          Vector u[SIDE];
          Lines<M>::input(d, u);
          for (int y = 0; y < SIDE; ++y)
            half[y][x] = u[y];
        }
        for (int y = 0; y < SIDE; ++y) {
          Vector u[SIDE];
          Lines<M>::input(half[y], u);
          for (int x = 0; x < SIDE; ++x)
            store(at(v, y * SIDE + x, block, tile, tiles) + c - first, u[x]); // rows have room for whole vectors
        }
      }
    }
  }

  static Vector load_part(const float *p, i64 lanes) {
    if (lanes == LANES)
      return load(p);
    Vector v{};
    std::memcpy(&v, p, sizeof(float) * lanes);
    return v;
  }

  // Products and output transform of one panel of columns, for tiles [from, to) of the `tiles` in v, the first being tile `first`.
  void panel(const Ending &e, i64 column, const float *v, i64 first, i64 from, i64 to, i64 tiles, float *sums) const {
    const i64 wide = panel_width(column, e.channels), count = to - from, last = std::min(column + wide, e.channels);
    const float *weights = packed + column * channels * POINTS;
    for (i64 point = 0; point < POINTS; ++point)
      for (i64 block = 0; block < blocks; ++block) {
        const i64 begin = block * depth, k = std::min(depth, channels - begin);
        const float *b = weights + (point * channels + begin) * wide;
        multiply_panel(FLOAT, at(const_cast<float *>(v), point, block, from, tiles), count, b, wide, k, sums + point * count * wide,
                       wide, block > 0, b + k * wide);
      }
    const i64 per_image = tiles_y * tiles_x;
    float line[M][M * WIDE];
    for (i64 t = 0; t < count; ++t) {
      const i64 index = first + from + t, n = index / per_image, ty = index % per_image / tiles_x, tx = index % tiles_x;
      for (i64 j = 0; j < wide; j += LANES) {
        Vector half[M][SIDE];
        for (int x = 0; x < SIDE; ++x) {
          Vector m[SIDE], y[M];
          for (int i = 0; i < SIDE; ++i)
            m[i] = load(sums + ((i * SIDE + x) * count + t) * wide + j);
          Lines<M>::output(m, y);
          for (int i = 0; i < M; ++i)
            half[i][x] = y[i];
        }
        for (int i = 0; i < M; ++i) {
          Vector y[M];
          Lines<M>::output(half[i], y);
          for (int x = 0; x < M; ++x)
            store(line[i] + x * wide + j, y[x]);
        }
      }
      const i64 x1 = std::min((tx + 1) * M, e.columns());
      for (i64 y = ty * M; y < std::min((ty + 1) * M, e.rows()); ++y)
        e.finish(n, y, tx * M, x1, column, last, line[y - ty * M], wide);
    }
  }
};

template <int M> void convolve(const i64 *a, double p, double q) {
  const Ending e(a, p, q);
  const Winograd<M> w(a + ENDING_INTEGERS, e);
  e.clear_margins();
  const i64 per_image = w.tiles_y * w.tiles_x, all = e.batch * per_image;
  if (all <= 0)
    return;
  // tiles worked on together, so many that weights are read seldom, and so few that their sums stay in the cache
  const i64 most = SUMS / (w.POINTS * WIDE) / ROWS * ROWS;
  const i64 chunk = round_up(divide_up(all, divide_up(all, most)), ROWS);
  const i64 panels = divide_up(e.channels, WIDE), threads = omp_get_max_threads();
  static thread_local Scratch shared; // of the calling thread: queries may run side by side
  float *v = shared.floats(w.POINTS * w.blocks * chunk * STRIDE);
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch mine;
    float *sums = mine.floats(w.POINTS * chunk * WIDE);
    for (i64 first = 0; first < all; first += chunk) {
      const i64 tiles = std::min(chunk, all - first);
#pragma omp for schedule(static)
      for (i64 t = 0; t < tiles; ++t) {
        const i64 index = first + t;
        w.transform_input(index / per_image, index % per_image / w.tiles_x, index % w.tiles_x, v, t, tiles);
      }
      // panels that do not go round evenly are cut into parts
      const i64 parts = panels % threads && panels < 8 * threads ? std::min(threads, divide_up(tiles, ROWS)) : 1;
      const i64 part = round_up(divide_up(tiles, parts), ROWS);
#pragma omp for schedule(dynamic) collapse(2)
      for (i64 panel = 0; panel < panels; ++panel)
        for (i64 i = 0; i < parts; ++i)
          if (i * part < tiles)
            w.panel(e, panel * WIDE, v, first, i * part, std::min((i + 1) * part, tiles), tiles, sums);
    }
  }
}

template <int M> void pack(const float *weight, i64 outputs, i64 channels, float *packed) {
  constexpr int SIDE = Lines<M>::POINTS;
#pragma omp parallel for schedule(static)
  for (i64 first = 0; first < outputs; first += WIDE) {
    const i64 wide = panel_width(first, outputs);
    float *panel = packed + first * channels * SIDE * SIDE;
    for (i64 j = 0; j < wide; ++j)
      for (i64 c = 0; c < channels; ++c) {
        double half[SIDE][3], u[SIDE][SIDE];
        for (int x = 0; x < 3; ++x) {
          double g[3], column[SIDE];
          for (int y = 0; y < 3; ++y)
            g[y] = first + j < outputs ? weight[((first + j) * channels + c) * 9 + y * 3 + x] : 0.0;
          Lines<M>::weight(g, column);
          for (int y = 0; y < SIDE; ++y)
            half[y][x] = column[y];
        }
        for (int y = 0; y < SIDE; ++y) {
          Lines<M>::weight(half[y], u[y]);
          for (int x = 0; x < SIDE; ++x)
            panel[((y * SIDE + x) * channels + c) * wide + j] = static_cast<float>(u[y][x]);
        }
      }
  }
}

} // namespace

extern "C" {

// Weights (K, C, 3, 3) transformed for F(M x M, 3 x 3); `packed` has room for K rounded up to LANES, times C (M + 2)^2.
void krypton_winograd_pack(const i64 *a) {
  const auto *weight = reinterpret_cast<const float *>(a[0]);
  auto *packed = reinterpret_cast<float *>(a[3]);
  a[4] == 2 ? pack<2>(weight, a[1], a[2], packed) : pack<4>(weight, a[1], a[2], packed);
}

void krypton_winograd(const i64 *a, double p, double q) {
  a[ENDING_INTEGERS + 14] == 2 ? convolve<2>(a, p, q) : convolve<4>(a, p, q);
}

} // extern "C"
