// Winograd convolutions, stride 1, of deltas: F(M, R) along each axis (Lavin and Gray, 2015; Toom and Cook).
//
// A tile of inputs is transformed to as many numbers, multiplied point by point with transformed weights, summed over channels (a
// matrix product for each of the points), and transformed back to outputs. Zero-extension is part of the first transform, the
// ending part of the last: no other pass over memory is made.

#include "gemm.h"

#include <vector>

namespace {

// The sum of numbers that the compiler knows times vectors; zeros cost nothing.
template <int N, class F> inline Vector product(const Vector *v, F number) {
  Vector sum{};
#pragma GCC unroll 10
  for (int j = 0; j < N; ++j)
    if (number(j) != 0.0)
      sum += static_cast<float>(number(j)) * v[j];
  return sum;
}

// The transforms of one line: M outputs of R taps from M + R - 1 numbers, one for each of the points where polynomials are
// evaluated; the last is infinity. All are worked out by the compiler, rows scaled by powers of two to sizes near one.
template <int M, int R> struct Lines {
  static constexpr int POINTS = M + R - 1;
  static constexpr double PLACES[] = {0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 0.75, -0.75};
  static_assert(POINTS <= 10 && POINTS % 2 == 0);

  struct Matrices {
    double input[POINTS][POINTS]{}, weight[POINTS][R]{}, output[M][POINTS]{};
    constexpr Matrices() {
      for (int i = 0; i < POINTS; ++i) {
        double factor = 1.0; // of the i-th Lagrange polynomial
        input[i][0] = 1.0;
        int degree = 0;
        for (int j = 0; j < POINTS - 1; ++j) {
          if (j == i)
            continue;
          if (i < POINTS - 1)
            factor *= PLACES[i] - PLACES[j];
          ++degree;
          for (int d = degree; d > 0; --d)
            input[i][d] = input[i][d - 1] - PLACES[j] * input[i][d];
          input[i][0] *= -PLACES[j];
        }
        double power = 1.0;
        for (int k = 0; k < std::max(R, M); ++k) {
          const bool infinite = i == POINTS - 1;
          if (k < R)
            weight[i][k] = infinite ? k == R - 1 : power / factor;
          if (k < M)
            output[k][i] = infinite ? k == M - 1 : power;
          power *= infinite ? 1.0 : PLACES[i];
        }
        double largest = 0.0, scale = 1.0;
        for (int j = 0; j < POINTS; ++j)
          largest = std::max(largest, input[i][j] < 0 ? -input[i][j] : input[i][j]);
        while (largest * scale > 1.5)
          scale /= 2;
        for (int j = 0; j < POINTS; ++j)
          input[i][j] *= scale;
        for (int k = 0; k < R; ++k)
          weight[i][k] /= scale;
      }
    }
  };
  static constexpr Matrices OF{};

  // Places come in pairs p, -p, whose rows differ in the sign of every other number: both are the sum and the difference of an
  // even and an odd half.
  static void input(const Vector *d, Vector *v) {
    v[0] = product<POINTS>(d, [](int j) { return OF.input[0][j]; });
#pragma GCC unroll 10
    for (int i = 1; i + 1 < POINTS; i += 2) {
      const Vector even = product<POINTS>(d, [i](int j) { return (OF.input[i][j] + OF.input[i + 1][j]) / 2; });
      const Vector odd = product<POINTS>(d, [i](int j) { return (OF.input[i][j] - OF.input[i + 1][j]) / 2; });
      v[i] = even + odd;
      v[i + 1] = even - odd;
    }
    v[POINTS - 1] = product<POINTS>(d, [](int j) { return OF.input[POINTS - 1][j]; });
  }
  static void output(const Vector *m, Vector *y) {
    constexpr int PAIRS_OF = (POINTS - 1) / 2;
    Vector even[PAIRS_OF], odd[PAIRS_OF];
#pragma GCC unroll 10
    for (int i = 0; i < PAIRS_OF; ++i) {
      even[i] = m[1 + 2 * i] + m[2 + 2 * i];
      odd[i] = m[1 + 2 * i] - m[2 + 2 * i];
    }
#pragma GCC unroll 10
    for (int k = 0; k < M; ++k) {
      y[k] = product<PAIRS_OF>(k % 2 ? odd : even, [k](int i) { return OF.output[k][1 + 2 * i]; });
      if (k == 0)
        y[k] += m[0];
      if (k == M - 1)
        y[k] += m[POINTS - 1];
    }
  }
  static void weight(const double *g, double *u) {
    for (int i = 0; i < POINTS; ++i) {
      u[i] = 0.0;
      for (int k = 0; k < R; ++k)
        u[i] += OF.weight[i][k] * g[k];
    }
  }
};

// An axis along which the kernel has one tap: nothing is transformed.
template <> struct Lines<1, 1> {
  static constexpr int POINTS = 1;
  static void input(const Vector *d, Vector *v) { v[0] = d[0]; }
  static void output(const Vector *m, Vector *y) { y[0] = m[0]; }
  static void weight(const double *g, double *u) { u[0] = g[0]; }
};

constexpr i64 SUMS = 108 * 1024; // floats of one panel's sums at most: they stay in the second cache

// A tile of outputs: its first one, in coordinates of the field.
struct Tile {
  i64 n, y, x;
};

// MY x MX outputs of a kernel of RY x RX taps at a time.
template <int MY, int RY, int MX, int RX> struct Winograd {
  using Down = Lines<MY, RY>;
  using Across = Lines<MX, RX>;
  static constexpr int HIGH = Down::POINTS, BROAD = Across::POINTS, POINTS = HIGH * BROAD;

  Source source;
  const float *packed; // (panel, point, channel, column), see krypton_winograd_pack
  i64 pad_y, pad_x, channels, y0, x0;
  Format format;
  i64 per_word, words, blocks, depth; // a block is `depth` words of channels, of `words` in all

  explicit Winograd(const i64 *a)
      : source{reinterpret_cast<const float *>(a[0]), a[1], a[2], a[3], a[4], a[5], a[6], a[7]},
        packed(reinterpret_cast<const float *>(a[8])), pad_y(a[9]), pad_x(a[10]), channels(a[11]), y0(a[12]), x0(a[13]),
        format(static_cast<Format>(a[18])), per_word(format == PAIRS ? 2 : 1), words(divide_up(channels, per_word)),
        blocks(divide_up(words, DEPTH)), depth(divide_up(words, blocks)) {}

  // Tiles that cover the occlusions' own fields.
  static void cover(const Ending &e, std::vector<Tile> &tiles) {
    tiles.clear();
    for (i64 n = 0; n < e.batch; ++n) {
      const Rectangle own = e.own_field(n);
      for (i64 y = own.top; y < own.bottom; y += MY)
        for (i64 x = own.left; x < own.right; x += MX)
          tiles.push_back({n, y, x});
    }
  }

  // Where the transformed inputs of a point, block of channels and tile are kept.
  template <class T> T *at(T *v, i64 point, i64 block, i64 tile, i64 tiles) const {
    return v + ((point * blocks + block) * tiles + tile) * STRIDE;
  }

  // Transform one tile's inputs, vector of channels by vector.
  void transform_input(const Tile &t, float *v, i64 tile, i64 tiles) const {
    const Source &s = source;
    const i64 iy = y0 + t.y - pad_y, ix = x0 + t.x - pad_x;
    const float *corner = s.data + t.n * s.batch + (iy - s.top) * s.row + (ix - s.left) * s.pixel;
    const int top = std::clamp<i64>(s.top - iy, 0, HIGH), bottom = std::clamp<i64>(s.bottom - iy, top, HIGH);
    const int left = std::clamp<i64>(s.left - ix, 0, BROAD), right = std::clamp<i64>(s.right - ix, left, BROAD);
    for (i64 block = 0; block < blocks; ++block) {
      const i64 first = block * depth * per_word, last = std::min(first + depth * per_word, channels);
      for (i64 c = first; c < last; c += LANES) {
        const i64 lanes = std::min<i64>(LANES, last - c);
        Vector half[HIGH][BROAD]; // columns transformed
        for (int x = 0; x < BROAD; ++x) {
          Vector d[HIGH], u[HIGH];
          const bool inside = x >= left && x < right;
          for (int y = 0; y < HIGH; ++y)
            d[y] = inside && y >= top && y < bottom ? load_part(corner + y * s.row + x * s.pixel + c, lanes) : Vector{};
          Down::input(d, u);
          for (int y = 0; y < HIGH; ++y)
            half[y][x] = u[y];
        }
        for (int y = 0; y < HIGH; ++y) {
          Vector u[BROAD];
          Across::input(half[y], u);
          for (int x = 0; x < BROAD; ++x)
            put_vector(format, at(v, y * BROAD + x, block, tile, tiles), c - first, u[x]); // rows have room for whole ones
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

  // Products and output transform of one panel of columns, for tiles [from, to) of the `tiles` in v, which are those in `of`.
  void panel(const Ending &e, i64 column, const float *v, const Tile *of, i64 from, i64 to, i64 tiles, float *sums) const {
    const i64 wide = panel_width(column, e.channels), count = to - from, last = std::min(column + wide, e.channels);
    const float *b = packed + column * words * POINTS;
    const i64 share = divide_up(wide * ROWS, count);
    for (i64 point = 0; point < POINTS; ++point)
      for (i64 block = 0; block < blocks; ++block) {
        const i64 k = std::min(depth, words - block * depth);
        const float *a = at(v, point, block, from, tiles);
        float *sum = sums + point * count * wide;
        // weights seldom fit a cache: the next panel is fetched as this one is used
        for (i64 row = 0; row < count; row += ROWS)
          multiply_rows(format, a + row * STRIDE, std::min<i64>(ROWS, count - row), b, wide, {nullptr, k}, sum + row * wide, wide, block > 0,
                        b + k * wide + row / ROWS * share * k, share);
        b += k * wide;
      }
    float lines[MY][MX * WIDE];
    for (i64 t = 0; t < count; ++t) {
      const Tile &tile = of[from + t];
      const Rectangle own = e.own_field(tile.n);
      for (i64 j = 0; j < wide; j += LANES)
        transform_output(sums + t * wide + j, count * wide, lines, wide, j);
      const i64 x1 = std::min(tile.x + MX, own.right);
      for (i64 y = tile.y; y < std::min(tile.y + MY, own.bottom); ++y)
        e.finish(tile.n, y, tile.x, x1, column, last, lines[y - tile.y], wide);
    }
  }

  // One tile and vector of columns; the sums of its points lie `pitch` apart.
  static void transform_output(const float *sums, i64 pitch, float (*lines)[MX * WIDE], i64 wide, i64 j) {
    Vector half[MY][BROAD];
    for (int x = 0; x < BROAD; ++x) {
      Vector m[HIGH], y[MY];
      for (int i = 0; i < HIGH; ++i)
        m[i] = load(sums + (i * BROAD + x) * pitch);
      Down::output(m, y);
      for (int i = 0; i < MY; ++i)
        half[i][x] = y[i];
    }
    for (int i = 0; i < MY; ++i) {
      Vector y[MX];
      Across::output(half[i], y);
      for (int x = 0; x < MX; ++x)
        store(lines[i] + x * wide + j, y[x]);
    }
  }

  static void convolve(const i64 *a, const double *parameters) {
    const Ending e(a, parameters[0], parameters[1]);
    const Winograd w(a + ENDING_INTEGERS);
    e.clear_margins();
    static thread_local std::vector<Tile> list; // as `shared` below
    cover(e, list);
    const Tile *of = list.data();
    const i64 all = static_cast<i64>(list.size());
    if (all <= 0)
      return;
    // tiles worked on together, so many that weights are read seldom, and so few that their sums stay in the cache
    const i64 most = std::max<i64>(SUMS / (POINTS * WIDE) / ROWS * ROWS, ROWS);
    const i64 chunk = round_up(divide_up(all, divide_up(all, most)), ROWS);
    const i64 panels = divide_up(e.channels, WIDE), threads = omp_get_max_threads();
    static thread_local Scratch shared; // of the calling thread: queries may run side by side
    float *v = shared.floats(POINTS * w.blocks * chunk * STRIDE);
#pragma omp parallel num_threads(threads)
    {
      static thread_local Scratch mine;
      float *sums = mine.floats(POINTS * chunk * WIDE);
      for (i64 first = 0; first < all; first += chunk) {
        const i64 tiles = std::min(chunk, all - first);
#pragma omp for schedule(static)
        for (i64 t = 0; t < tiles; ++t)
          w.transform_input(of[first + t], v, t, tiles);
        // panels that do not go round evenly are cut into parts
        const i64 parts = panels % threads && panels < 8 * threads ? std::min(threads, divide_up(tiles, ROWS)) : 1;
        const i64 part = round_up(divide_up(tiles, parts), ROWS);
#pragma omp for schedule(dynamic) collapse(2)
        for (i64 panel = 0; panel < panels; ++panel)
          for (i64 i = 0; i < parts; ++i)
            if (i * part < tiles)
              w.panel(e, panel * WIDE, v, of + first, i * part, std::min((i + 1) * part, tiles), tiles, sums);
      }
    }
  }

  static void pack(const float *weight, i64 outputs, i64 channels, float *packed, Format format) {
    const i64 per_word = format == PAIRS ? 2 : 1, words = divide_up(channels, per_word);
#pragma omp parallel for schedule(static)
    for (i64 first = 0; first < outputs; first += WIDE) {
      const i64 wide = panel_width(first, outputs);
      float *panel = packed + first * words * POINTS;
      std::memset(panel, 0, sizeof(float) * wide * words * POINTS); // half a pair may be left over
      for (i64 j = 0; j < wide; ++j)
        for (i64 c = 0; c < channels; ++c) {
          double half[HIGH][RX], u[HIGH][BROAD];
          for (int x = 0; x < RX; ++x) {
            double g[RY], column[HIGH];
            for (int y = 0; y < RY; ++y)
              g[y] = first + j < outputs ? weight[((first + j) * channels + c) * RY * RX + y * RX + x] : 0.0;
            Down::weight(g, column);
            for (int y = 0; y < HIGH; ++y)
              half[y][x] = column[y];
          }
          for (int y = 0; y < HIGH; ++y) {
            Across::weight(half[y], u[y]);
            for (int x = 0; x < BROAD; ++x)
              put_number(format, panel + ((y * BROAD + x) * words + c / per_word) * wide + j, c % per_word, static_cast<float>(u[y][x]));
          }
        }
    }
  }
};

// All there are, by outputs and taps along both axes.
struct Entry {
  i64 outputs_y, taps_y, outputs_x, taps_x, points;
  void (*convolve)(const i64 *, const double *);
  void (*pack)(const float *, i64, i64, float *, Format);
};
template <int MY, int RY, int MX, int RX> constexpr Entry entry() {
  using W = Winograd<MY, RY, MX, RX>;
  return {MY, RY, MX, RX, W::POINTS, W::convolve, W::pack};
}
const Entry ENTRIES[] = {
    entry<2, 3, 2, 3>(), entry<4, 3, 4, 3>(), entry<4, 5, 4, 5>(), entry<1, 1, 4, 3>(),
    entry<4, 3, 1, 1>(), entry<1, 1, 4, 7>(), entry<4, 7, 1, 1>(),
};

const Entry *find(const i64 *a) {
  for (const Entry &e : ENTRIES)
    if (e.outputs_y == a[0] && e.taps_y == a[1] && e.outputs_x == a[2] && e.taps_x == a[3])
      return &e;
  return nullptr;
}

} // namespace

extern "C" {

// The points of a tile of outputs and taps (rows, rows, columns, columns); 0 when there is no such kernel.
i64 krypton_winograd_points(const i64 *a) {
  const Entry *found = find(a);
  return found ? found->points : 0;
}

// Transformed weights of (K, C, taps, taps); `packed` has room for K rounded up to LANES, times C, times the points.
void krypton_winograd_pack(const i64 *a) {
  find(a)->pack(reinterpret_cast<const float *>(a[4]), a[5], a[6], reinterpret_cast<float *>(a[7]), static_cast<Format>(a[8]));
}

void krypton_winograd(const i64 *a, const double *parameters) { find(a + ENDING_INTEGERS + 14)->convolve(a, parameters); }

} // extern "C"
