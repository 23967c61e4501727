// Fused delta kernels for CPUs, compiled once by the system's compiler and called through ctypes (see native.py).
//
// All tensors are float32 with channels innermost. A tensor is given by a pointer and its strides in elements for batch, row
// and pixel; an *extent* [top, bottom) x [left, right) says where it is defined, in the coordinates of the output window:
// outside of it a delta is zero. Every function takes one array of 64-bit integers, so that a call costs one conversion.

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

using i64 = std::int64_t;

namespace {

// out = f(base + scale * sum) - f(base); `sum` may be `out` itself.
template <class F> inline void map_row(float *out, const float *base, const float *sum, const float *scale, i64 count, F f) {
  if (scale) {
#pragma omp simd
    for (i64 c = 0; c < count; ++c)
      out[c] = f(base[c] + scale[c] * sum[c]) - f(base[c]);
  } else {
#pragma omp simd
    for (i64 c = 0; c < count; ++c)
      out[c] = f(base[c] + sum[c]) - f(base[c]);
  }
}

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
inline float clamp(float x, float low, float high) { return std::fmin(std::fmax(x, low), high); }

// Function numbers are those of NATIVE_FUNCTIONS in native.py.
void apply(i64 function, float p, float q, float *out, const float *base, const float *sum, const float *scale, i64 count) {
  switch (function) {
  case 1:
    return map_row(out, base, sum, scale, count, [](float x) { return x > 0.0f ? x : 0.0f; });
  case 2:
    return map_row(out, base, sum, scale, count, [p, q](float x) { return clamp(x, p, q); });
  case 3:
    return map_row(out, base, sum, scale, count, [](float x) { return x * sigmoid(x); });
  case 4:
    return map_row(out, base, sum, scale, count, [](float x) { return x * clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f); });
  case 5:
    return map_row(out, base, sum, scale, count, [](float x) { return clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f); });
  case 6:
    return map_row(out, base, sum, scale, count, [](float x) { return sigmoid(x); });
  case 7:
    return map_row(out, base, sum, scale, count, [](float x) { return std::tanh(x); });
  case 8:
    return map_row(out, base, sum, scale, count, [](float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f)); });
  case 9:
    return map_row(out, base, sum, scale, count, [](float x) {
      return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    });
  case 10:
    return map_row(out, base, sum, scale, count, [p](float x) { return x > 0.0f ? x : p * x; });
  default:
    return;
  }
}

// Largest product of sizes that is not worth waking a second thread for.
constexpr i64 serial_below = 16384;

struct Term {
  const float *data;
  i64 batch, row, pixel, top, bottom, left, right;
  const float *scale;
};

// out[.., left:right of the term] (+)= scale * term, along one row of pixels.
void add_term(float *out, i64 out_pixel, const Term &term, const float *source, i64 from, i64 to, i64 channels, bool first) {
  if (!term.scale && out_pixel == channels && term.pixel == channels) { // contiguous pixels: one long loop
    float *target = out + from * channels;
    const float *s = source + (from - term.left) * channels;
    const i64 count = (to - from) * channels;
    if (first && target != s) // in place: nothing to copy
      std::memcpy(target, s, sizeof(float) * count);
    else if (!first)
#pragma omp simd
      for (i64 c = 0; c < count; ++c)
        target[c] += s[c];
    return;
  }
  for (i64 x = from; x < to; ++x) {
    float *target = out + x * out_pixel;
    const float *s = source + (x - term.left) * term.pixel;
    const float *scale = term.scale;
    if (scale && first) {
#pragma omp simd
      for (i64 c = 0; c < channels; ++c)
        target[c] = scale[c] * s[c];
    } else if (scale) {
#pragma omp simd
      for (i64 c = 0; c < channels; ++c)
        target[c] += scale[c] * s[c];
    } else if (first) {
      if (target != s)
        std::memcpy(target, s, sizeof(float) * channels);
    } else {
#pragma omp simd
      for (i64 c = 0; c < channels; ++c)
        target[c] += s[c];
    }
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

// Zero what a row of the output window has outside the field (top, bottom, left, right); is there anything inside?
bool open_row(float *row, i64 pixel, i64 y, i64 x0, i64 width, i64 channels, const i64 *field) {
  if (y < field[0] || y >= field[1]) {
    zero_pixels(row, pixel, 0, width, channels);
    return false;
  }
  zero_pixels(row, pixel, 0, field[2] - x0, channels);
  zero_pixels(row, pixel, field[3] - x0, width, channels);
  return true;
}

} // namespace

extern "C" {

// Delta of `f(sum of terms)`: out = f(base + sum) - f(base) inside the field, zero elsewhere in the output window.
// The first term may be `out` itself.
void krypton_combine(const i64 *a, double p, double q) {
  float *out = reinterpret_cast<float *>(a[0]);
  const i64 batch = a[1], height = a[2], width = a[3], channels = a[4];
  const i64 out_batch = a[5], out_row = a[6], out_pixel = a[7];
  const i64 top = a[8], bottom = a[9], left = a[10], right = a[11];
  const float *base = reinterpret_cast<const float *>(a[12]); // its first element belongs to (top, left)
  const i64 base_row = a[13], base_pixel = a[14], function = a[15], count = a[16];
  Term terms[8];
  for (i64 t = 0; t < count; ++t) {
    const i64 *b = a + 17 + 9 * t;
    terms[t] = {reinterpret_cast<const float *>(b[0]), b[1], b[2], b[3], b[4], b[5], b[6], b[7],
                reinterpret_cast<const float *>(b[8])};
  }
#pragma omp parallel for schedule(static) if (batch * height * width * channels > serial_below)
  for (i64 line = 0; line < batch * height; ++line) {
    const i64 n = line / height, y = line % height;
    float *row = out + n * out_batch + y * out_row;
    if (y < top || y >= bottom) {
      zero_pixels(row, out_pixel, 0, width, channels);
      continue;
    }
    zero_pixels(row, out_pixel, 0, left, channels);
    zero_pixels(row, out_pixel, right, width, channels);
    const float *b = base + (y - top) * base_row;
    const Term &only = terms[0];
    if (function && count == 1 && y >= only.top && y < only.bottom && only.left <= left && right <= only.right) {
      // one summand is the common case: everything in one pass
      const float *source = only.data + n * only.batch + (y - only.top) * only.row + (left - only.left) * only.pixel;
      if (!only.scale && out_pixel == channels && base_pixel == channels && only.pixel == channels)
        apply(function, p, q, row + left * channels, b, source, nullptr, (right - left) * channels);
      else
        for (i64 x = 0; x < right - left; ++x)
          apply(function, p, q, row + (left + x) * out_pixel, b + x * base_pixel, source + x * only.pixel, only.scale, channels);
      continue;
    }
    bool first = true;
    for (i64 t = 0; t < count; ++t) {
      const Term &term = terms[t];
      const i64 from = term.left > left ? term.left : left, to = term.right < right ? term.right : right;
      const bool covers = y >= term.top && y < term.bottom && from < to;
      if (first && !(covers && from == left && to == right)) {
        zero_pixels(row, out_pixel, left, right, channels);
        first = false;
      }
      if (!covers)
        continue;
      const float *source = term.data + n * term.batch + (y - term.top) * term.row;
      add_term(row, out_pixel, term, source, from, to, channels, first);
      first = false;
    }
    if (first)
      zero_pixels(row, out_pixel, left, right, channels);
    if (function) {
      if (out_pixel == channels && base_pixel == channels)
        apply(function, p, q, row + left * channels, b, row + left * channels, nullptr, (right - left) * channels);
      else
        for (i64 x = left; x < right; ++x)
          apply(function, p, q, row + x * out_pixel, b + (x - left) * base_pixel, row + x * out_pixel, nullptr, channels);
    }
  }
}

// Delta of max pooling: max over the window of (input view + delta), less the output view.
// `out` holds the outputs [y0, y0 + height) x [x0, x0 + width) and is zeroed outside the field; all coordinates are absolute.
void krypton_max_pool(const i64 *a) {
  float *out = reinterpret_cast<float *>(a[0]);
  const i64 batch = a[1], height = a[2], width = a[3], channels = a[4];
  const i64 out_batch = a[5], out_row = a[6], out_pixel = a[7], y0 = a[8], x0 = a[9];
  const float *delta = reinterpret_cast<const float *>(a[10]);
  const i64 delta_batch = a[11], delta_row = a[12], delta_pixel = a[13];
  const i64 top = a[14], bottom = a[15], left = a[16], right = a[17];
  const float *view = reinterpret_cast<const float *>(a[18]);
  const i64 view_row = a[19], view_pixel = a[20], in_height = a[21], in_width = a[22];
  const float *result = reinterpret_cast<const float *>(a[23]);
  const i64 result_row = a[24], result_pixel = a[25];
  const i64 kernel_y = a[26], kernel_x = a[27], stride_y = a[28], stride_x = a[29], pad_y = a[30], pad_x = a[31];
  const i64 dilation_y = a[32], dilation_x = a[33];
  const i64 field_left = a[36], field_right = a[37]; // its rows, a[34] and a[35], are open_row's
#pragma omp parallel for schedule(static) if (batch * height * width * channels > serial_below)
  for (i64 line = 0; line < batch * height; ++line) {
    const i64 n = line / height, oy = y0 + line % height;
    if (!open_row(out + n * out_batch + (oy - y0) * out_row, out_pixel, oy, x0, width, channels, a + 34))
      continue;
    for (i64 ox = field_left; ox < field_right; ++ox) {
      float *target = out + n * out_batch + (oy - y0) * out_row + (ox - x0) * out_pixel;
      bool any = false;
      for (i64 ky = 0; ky < kernel_y; ++ky) {
        const i64 y = oy * stride_y - pad_y + ky * dilation_y;
        if (y < 0 || y >= in_height)
          continue;
        for (i64 kx = 0; kx < kernel_x; ++kx) {
          const i64 x = ox * stride_x - pad_x + kx * dilation_x;
          if (x < 0 || x >= in_width)
            continue;
          const float *v = view + y * view_row + x * view_pixel;
          const bool changed = y >= top && y < bottom && x >= left && x < right;
          if (changed) {
            const float *d = delta + n * delta_batch + (y - top) * delta_row + (x - left) * delta_pixel;
            if (any)
#pragma omp simd
              for (i64 c = 0; c < channels; ++c) {
                const float s = v[c] + d[c];
                target[c] = s > target[c] ? s : target[c];
              }
            else
#pragma omp simd
              for (i64 c = 0; c < channels; ++c)
                target[c] = v[c] + d[c];
          } else if (any) {
#pragma omp simd
            for (i64 c = 0; c < channels; ++c)
              target[c] = v[c] > target[c] ? v[c] : target[c];
          } else {
            std::memcpy(target, v, sizeof(float) * channels);
          }
          any = true;
        }
      }
      if (!any) { // a window of padding alone: ceil_mode can make one
        std::memset(target, 0, sizeof(float) * channels);
        continue;
      }
      const float *r = result + oy * result_row + ox * result_pixel;
#pragma omp simd
      for (i64 c = 0; c < channels; ++c)
        target[c] -= r[c];
    }
  }
}

// Delta of average pooling: the sum of the delta over the window, times weights per output row and column.
void krypton_avg_pool(const i64 *a) {
  float *out = reinterpret_cast<float *>(a[0]);
  const i64 batch = a[1], height = a[2], width = a[3], channels = a[4];
  const i64 out_batch = a[5], out_row = a[6], out_pixel = a[7], y0 = a[8], x0 = a[9];
  const float *delta = reinterpret_cast<const float *>(a[10]);
  const i64 delta_batch = a[11], delta_row = a[12], delta_pixel = a[13];
  const i64 top = a[14], bottom = a[15], left = a[16], right = a[17];
  const float *row_weight = reinterpret_cast<const float *>(a[18]);    // one for every row of the field
  const float *column_weight = reinterpret_cast<const float *>(a[19]); // one for every column of the field
  const i64 kernel_y = a[20], kernel_x = a[21], stride_y = a[22], stride_x = a[23], pad_y = a[24], pad_x = a[25];
  const i64 field_left = a[28], field_right = a[29];
#pragma omp parallel for schedule(static) if (batch * height * width * channels > serial_below)
  for (i64 line = 0; line < batch * height; ++line) {
    const i64 n = line / height, oy = y0 + line % height;
    if (!open_row(out + n * out_batch + (oy - y0) * out_row, out_pixel, oy, x0, width, channels, a + 26))
      continue;
    for (i64 ox = field_left; ox < field_right; ++ox) {
      float *target = out + n * out_batch + (oy - y0) * out_row + (ox - x0) * out_pixel;
      std::memset(target, 0, sizeof(float) * channels);
      const i64 first_y = oy * stride_y - pad_y, first_x = ox * stride_x - pad_x;
      const i64 from_y = first_y > top ? first_y : top, to_y = first_y + kernel_y < bottom ? first_y + kernel_y : bottom;
      const i64 from_x = first_x > left ? first_x : left, to_x = first_x + kernel_x < right ? first_x + kernel_x : right;
      for (i64 y = from_y; y < to_y; ++y)
        for (i64 x = from_x; x < to_x; ++x) {
          const float *d = delta + n * delta_batch + (y - top) * delta_row + (x - left) * delta_pixel;
#pragma omp simd
          for (i64 c = 0; c < channels; ++c)
            target[c] += d[c];
        }
      const float weight = row_weight[oy - a[26]] * column_weight[ox - field_left];
#pragma omp simd
      for (i64 c = 0; c < channels; ++c)
        target[c] *= weight;
    }
  }
}

} // extern "C"
