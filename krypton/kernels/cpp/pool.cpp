// Pooling of deltas. Both kernels write zero in the output window outside the field, or outside each occlusion's own field.

#include "common.h"

namespace {

// Zero what a row of the output window has outside the field (top, bottom, left, right); is there anything inside?
bool open_row(float *row, i64 pixel, i64 y, i64 x0, i64 width, i64 channels, const i64 *field) {
  if (y < field[0] || y >= field[1] || field[2] >= field[3]) {
    zero_pixels(row, pixel, 0, width, channels);
    return false;
  }
  zero_pixels(row, pixel, 0, field[2] - x0, channels);
  zero_pixels(row, pixel, field[3] - x0, width, channels);
  return true;
}

} // namespace

extern "C" {

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
  const i64 *field = a + 34, *fields = reinterpret_cast<const i64 *>(a[38]);
#pragma omp parallel for schedule(static) if (batch * height * width * channels > SERIAL_BELOW)
  for (i64 line = 0; line < batch * height; ++line) {
    const i64 n = line / height, oy = y0 + line % height;
    const i64 *own = fields ? fields + 4 * n : field;
    if (!open_row(out + n * out_batch + (oy - y0) * out_row, out_pixel, oy, x0, width, channels, own))
      continue;
    for (i64 ox = own[2]; ox < own[3]; ++ox) {
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
  const i64 *field = a + 26, *fields = reinterpret_cast<const i64 *>(a[30]);
#pragma omp parallel for schedule(static) if (batch * height * width * channels > SERIAL_BELOW)
  for (i64 line = 0; line < batch * height; ++line) {
    const i64 n = line / height, oy = y0 + line % height;
    const i64 *own = fields ? fields + 4 * n : field;
    if (!open_row(out + n * out_batch + (oy - y0) * out_row, out_pixel, oy, x0, width, channels, own))
      continue;
    for (i64 ox = own[2]; ox < own[3]; ++ox) {
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
      const float weight = row_weight[oy - field[0]] * column_weight[ox - field[2]];
#pragma omp simd
      for (i64 c = 0; c < channels; ++c)
        target[c] *= weight;
    }
  }
}

} // extern "C"
