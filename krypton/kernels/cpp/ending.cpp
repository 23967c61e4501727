// How delta rules and operators on whole maps end: scales, sums and elementwise functions; and `krypton_combine`, which is nothing else.

#include "common.h"

#include <cmath>

namespace {

// Whole vectors first, whose number of lanes the compiler knows: maps of few channels are many short rows.
template <bool ABSOLUTE, bool SCALED, class F>
inline void map_row(float *out, const float *base, const float *sum, const float *scale, i64 count, F f) {
  const auto map = [&](i64 c) {
    const float changed = f(base[c] + (SCALED ? scale[c] * sum[c] : sum[c]));
    out[c] = ABSOLUTE ? changed : changed - f(base[c]);
  };
  i64 c = 0;
  for (; c + LANES <= count; c += LANES)
#pragma omp simd
    for (i64 lane = 0; lane < LANES; ++lane)
      map(c + lane);
#pragma omp simd
  for (i64 rest = c; rest < count; ++rest)
    map(rest);
}

template <class F> inline void map_strip(const Strip &s, bool absolute, F f) {
  for (i64 x = 0; x < s.pixels; ++x) {
    float *out = s.out + x * s.out_pixel;
    const float *base = s.base + x * s.base_pixel, *sum = s.sum + x * s.sum_pixel;
    if (absolute && s.scale)
      map_row<true, true>(out, base, sum, s.scale, s.channels, f);
    else if (absolute)
      map_row<true, false>(out, base, sum, nullptr, s.channels, f);
    else if (s.scale)
      map_row<false, true>(out, base, sum, s.scale, s.channels, f);
    else
      map_row<false, false>(out, base, sum, nullptr, s.channels, f);
  }
}

inline float clamp(float x, float low, float high) { return std::fmin(std::fmax(x, low), high); }

// e^x for |x| <= 80 as 2^n e^r: plain arithmetic, which becomes part of the vectors around it, as a call of a library does not.
inline float exponential(float x) {
  const float n = std::nearbyint(x * 1.44269504f), r = x - n * 0.693147181f;
  float power = 1.0f / 5040.0f;
  for (const float factor : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f})
    power = power * r + factor;
  const std::int32_t exponent = (static_cast<std::int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, 4);
  return power * scale;
}

// The bound keeps the power finite: fast division makes NaN of infinity.
inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(clamp(-x, -80.0f, 80.0f))); }

// target (+)= scale * source
void add_row(float *target, const float *source, const float *scale, i64 count, bool first) {
  if (scale && first) {
#pragma omp simd
    for (i64 c = 0; c < count; ++c)
      target[c] = scale[c] * source[c];
  } else if (scale) {
#pragma omp simd
    for (i64 c = 0; c < count; ++c)
      target[c] += scale[c] * source[c];
  } else if (first) {
    if (target != source) // in place: nothing to copy
      std::memcpy(target, source, sizeof(float) * count);
  } else {
#pragma omp simd
    for (i64 c = 0; c < count; ++c)
      target[c] += source[c];
  }
}

// Pixels [from, to) of the output window, `target` being the window's pixel 0, get (+)= scale * term.
void add_term(float *target, i64 pitch, const Term &term, const float *source, i64 from, i64 to, i64 channels, bool first) {
  if (!term.scale && pitch == channels && term.pixel == channels) { // contiguous pixels: one long loop
    add_row(target + from * channels, source + (from - term.left) * channels, nullptr, (to - from) * channels, first);
    return;
  }
  for (i64 x = from; x < to; ++x)
    add_row(target + x * pitch, source + (x - term.left) * term.pixel, term.scale, channels, first);
}

} // namespace

// Function numbers are those of NATIVE_FUNCTIONS in native.py.
void apply(i64 function, bool absolute, double p64, double q64, Strip s) {
  const float p = static_cast<float>(p64), q = static_cast<float>(q64);
  if (!s.scale && s.out_pixel == s.channels && s.sum_pixel == s.channels && (s.base_pixel == s.channels || !(function || absolute))) {
    s.channels *= s.pixels; // contiguous pixels: one long loop
    s.pixels = 1;
  }
  switch (function) {
  case 0:
    if (absolute)
      return map_strip(s, true, [](float x) { return x; });
    for (i64 x = 0; x < s.pixels; ++x)
      add_row(s.out + x * s.out_pixel, s.sum + x * s.sum_pixel, s.scale, s.channels, true);
    return;
  case 1:
    return map_strip(s, absolute, [](float x) { return x > 0.0f ? x : 0.0f; });
  case 2:
    return map_strip(s, absolute, [p, q](float x) { return clamp(x, p, q); });
  case 3:
    return map_strip(s, absolute, [](float x) { return x * sigmoid(x); });
  case 4:
    return map_strip(s, absolute, [](float x) { return x * clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f); });
  case 5:
    return map_strip(s, absolute, [](float x) { return clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f); });
  case 6:
    return map_strip(s, absolute, [](float x) { return sigmoid(x); });
  case 7:
    return map_strip(s, absolute, [](float x) { return std::tanh(x); });
  case 8:
    return map_strip(s, absolute, [](float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f)); });
  case 9:
    return map_strip(s, absolute, [](float x) {
      return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    });
  case 10:
    return map_strip(s, absolute, [p](float x) { return x > 0.0f ? x : p * x; });
  default:
    return;
  }
}

void zero_pixels(float *out, i64 pixel, i64 from, i64 to, i64 channels) {
  if (from >= to)
    return;
  if (pixel == channels) {
    std::memset(out + from * channels, 0, sizeof(float) * (to - from) * channels);
    return;
  }
  for (i64 x = from; x < to; ++x)
    std::memset(out + x * pixel, 0, sizeof(float) * channels);
}

Ending::Ending(const i64 *a, double p, double q)
    : out(reinterpret_cast<float *>(a[0])), batch(a[1]), height(a[2]), width(a[3]), channels(a[4]), out_batch(a[5]),
      out_row(a[6]), out_pixel(a[7]), field{a[8], a[9], a[10], a[11]}, base(reinterpret_cast<const float *>(a[12])),
      base_row(a[13]), base_pixel(a[14]), function(a[15]), count(a[16]), own(reinterpret_cast<const float *>(a[17])),
      absolute(a[18] != 0), y0(a[19]), x0(a[20]), fields(reinterpret_cast<const i64 *>(a[21])), p(p), q(q) {
  for (i64 t = 0; t < count; ++t) {
    const i64 *b = a + ENDING_TERMS + TERM_INTEGERS * t;
    static_cast<Source &>(terms[t]) = {reinterpret_cast<const float *>(b[0]), b[1], b[2], b[3], b[4], b[5], b[6], b[7]};
    terms[t].scale = reinterpret_cast<const float *>(b[8]);
  }
}

bool Ending::open_row(i64 n, i64 y, const Rectangle &inside) const {
  float *row = out + n * out_batch + y * out_row;
  if (y < field[0] + inside.top || y >= field[0] + inside.bottom || !inside.columns()) {
    zero_pixels(row, out_pixel, 0, width, channels);
    return false;
  }
  zero_pixels(row, out_pixel, 0, field[2] + inside.left, channels);
  zero_pixels(row, out_pixel, field[2] + inside.right, width, channels);
  return true;
}

void Ending::clear_margins() const {
  if (!fields && field[0] == 0 && field[1] == height && field[2] == 0 && field[3] == width)
    return;
#pragma omp parallel for schedule(static) if (batch * height * width * channels > SERIAL_BELOW)
  for (i64 line = 0; line < batch * height; ++line)
    open_row(line / height, line % height, own_field(line / height));
}

void Ending::finish(i64 n, i64 y, i64 from, i64 to, i64 first, i64 last, float *sum, i64 pitch) const {
  const i64 wide = last - first, wy = y + field[0];
  const float *scale = own ? own + first : nullptr;
  if (scale && count) {
    for (i64 x = from; x < to; ++x)
      add_row(sum + (x - from) * pitch, sum + (x - from) * pitch, scale, wide, true);
    scale = nullptr;
  }
  for (i64 t = 0; t < count; ++t) {
    const Term &term = terms[t];
    if (wy < term.top || wy >= term.bottom)
      continue;
    const i64 a = std::max(term.left, from + field[2]), b = std::min(term.right, to + field[2]);
    const float *source = term.data + n * term.batch + (wy - term.top) * term.row + first;
    Term part = term;
    if (part.scale)
      part.scale += first;
    if (a < b)
      add_term(sum - (from + field[2]) * pitch, pitch, part, source, a, b, wide, false);
  }
  float *target = out + n * out_batch + wy * out_row + (from + field[2]) * out_pixel + first;
  const float *b = base + y * base_row + from * base_pixel + first;
  apply(function, absolute, p, q, {target, b, sum, scale, out_pixel, base_pixel, pitch, to - from, wide});
}

extern "C" {

// `f(sum of terms)`, or its delta. The first term may be `out` itself.
void krypton_combine(const i64 *a, const double *parameters) {
  const double p = parameters[0], q = parameters[1];
  const Ending e(a, p, q);
  const i64 channels = e.channels;
#pragma omp parallel for schedule(static) if (e.batch * e.height * e.width * channels > SERIAL_BELOW)
  for (i64 line = 0; line < e.batch * e.height; ++line) {
    const i64 n = line / e.height, y = line % e.height;
    const Rectangle inside = e.own_field(n);
    if (!e.open_row(n, y, inside))
      continue;
    float *row = e.out + n * e.out_batch + y * e.out_row;
    const i64 left = e.field[2] + inside.left, right = e.field[2] + inside.right;
    const float *base = e.base + (y - e.field[0]) * e.base_row + inside.left * e.base_pixel;
    const Term &only = e.terms[0];
    if ((e.function || e.absolute) && e.count == 1 && y >= only.top && y < only.bottom && only.left <= left && right <= only.right) {
      // one summand is the common case: everything in one pass
      const float *source = only.data + n * only.batch + (y - only.top) * only.row + (left - only.left) * only.pixel;
      apply(e.function, e.absolute, p, q,
            {row + left * e.out_pixel, base, source, only.scale, e.out_pixel, e.base_pixel, only.pixel, right - left, channels});
      continue;
    }
    bool first = true;
    for (i64 t = 0; t < e.count; ++t) {
      const Term &term = e.terms[t];
      const i64 from = std::max(term.left, left), to = std::min(term.right, right);
      const bool covers = y >= term.top && y < term.bottom && from < to;
      if (first && !(covers && from == left && to == right)) {
        zero_pixels(row, e.out_pixel, left, right, channels);
        first = false;
      }
      if (!covers)
        continue;
      add_term(row, e.out_pixel, term, term.data + n * term.batch + (y - term.top) * term.row, from, to, channels, first);
      first = false;
    }
    if (first)
      zero_pixels(row, e.out_pixel, left, right, channels);
    float *sums = row + left * e.out_pixel;
    if (e.function || e.absolute)
      apply(e.function, e.absolute, p, q, {sums, base, sums, nullptr, e.out_pixel, e.base_pixel, e.out_pixel, right - left, channels});
  }
}

} // extern "C"
