// What all kernels share: how tensors and extents are described, and how a delta rule, or an operator on whole maps, ends.
//
// All tensors are float32 with channels innermost: a pointer and strides in elements for batch, row and pixel. An *extent*
// [top, bottom) x [left, right) says where a tensor is defined; outside of it a delta is zero. Every function takes one array
// of 64-bit integers, so that a call costs one conversion; `Ending` is the head of all of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <omp.h>

using i64 = std::int64_t;

// Vectors of the widest kind there is.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Vector load(const float *p) { return *reinterpret_cast<const Vector *>(p); }
inline void store(float *p, Vector v) { *reinterpret_cast<Vector *>(p) = v; }

// Largest product of sizes that is not worth waking a second thread for.
constexpr i64 SERIAL_BELOW = 16384;

constexpr i64 round_up(i64 value, i64 step) { return (value + step - 1) / step * step; }
constexpr i64 divide_up(i64 value, i64 step) { return (value + step - 1) / step; }

// Memory that a thread keeps between calls, at least as large as asked for, aligned to cache lines.
class Scratch {
public:
  Scratch() = default;
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  ~Scratch() { std::free(data_); }
  float *floats(i64 count) {
    if (count > size_) {
      std::free(data_);
      size_ = count;
      data_ = static_cast<float *>(std::aligned_alloc(64, round_up(count * 4, 64)));
      if (!data_) {
        size_ = 0;
        std::abort(); // an exception must not leave a parallel region
      }
    }
    return data_;
  }

private:
  float *data_ = nullptr;
  i64 size_ = 0;
};

// A delta that is read: element (n, y, x) lies at data + n*batch + (y - top)*row + (x - left)*pixel.
struct Source {
  const float *data;
  i64 batch, row, pixel, top, bottom, left, right;
  const float *at(i64 n, i64 y, i64 x) const { return data + n * batch + (y - top) * row + (x - left) * pixel; }
  bool covers(i64 y, i64 x) const { return top <= y && y < bottom && left <= x && x < right; }
};

struct Term : Source {
  const float *scale; // per channel, or null
};

constexpr i64 MOST_TERMS = 8, TERM_INTEGERS = 9, ENDING_TERMS = 22, ENDING_INTEGERS = ENDING_TERMS + MOST_TERMS * TERM_INTEGERS;

// Where the numbers that describe a convolution have its Beginning (convolution.cpp), behind those of its ending; and the
// function there that means a product, the second number after it being the stride from one occlusion's factors to the next's.
constexpr i64 BEGINNING = 21, GATE = -1;

struct Rectangle {
  i64 top, bottom, left, right;
  i64 rows() const { return std::max<i64>(bottom - top, 0); }
  i64 columns() const { return std::max<i64>(right - left, 0); }
};

// Pixels of one row, so many elements apart, that an elementwise function reads and writes.
struct Strip {
  float *out;
  const float *base, *sum, *scale; // scale: per channel, or null
  i64 out_pixel, base_pixel, sum_pixel, pixels, channels;
};

// out = f(base + scale*sum) - f(base), just scale*sum where function is 0; `absolute`: out = f(base + scale*sum), function 0
// being the identity. `sum` may be `out`.
void apply(i64 function, bool absolute, double p, double q, Strip strip);

// What is done with the sum that a kernel computed: out = f(base + own*sum + terms) - f(base) on the field, which is given in
// the coordinates of the output window; zero elsewhere in the window. The field is that of all occlusions together; each has
// one of its own inside, if `fields` is given, and the rest of its output is zero, too. Values of whole maps end `absolute`,
// without the subtraction: their base holds the shifts of the channels, and its pixels and rows lie 0 apart.
struct Ending {
  float *out;
  i64 batch, height, width, channels, out_batch, out_row, out_pixel;
  i64 field[4];      // top, bottom, left, right
  const float *base; // its first element belongs to the field's first pixel
  i64 base_row, base_pixel, function, count;
  const float *own; // per channel, or null
  bool absolute;
  i64 y0, x0;        // where the field starts in the output map
  const i64 *fields; // of each occlusion (top, bottom, left, right) in the output map, or null
  double p, q;
  Term terms[MOST_TERMS];

  Ending(const i64 *a, double p, double q);
  i64 rows() const { return field[1] - field[0]; }
  i64 columns() const { return field[3] - field[2]; }
  // The field of one occlusion, in coordinates of the field.
  Rectangle own_field(i64 n) const {
    if (!fields)
      return {0, rows(), 0, columns()};
    const i64 *f = fields + 4 * n;
    return {std::max<i64>(f[0] - y0, 0), std::min(f[1] - y0, rows()), std::max<i64>(f[2] - x0, 0), std::min(f[3] - x0, columns())};
  }
  // Zero what a row of the window (window coordinates) has outside the occlusion's field; is there anything inside?
  bool open_row(i64 n, i64 y, const Rectangle &inside) const;
  // Zero the window outside the occlusions' fields.
  void clear_margins() const;
  // Pixels [from, to) of row y of the field (field coordinates), channels [first, last), for occlusion n. `sum` holds their
  // sums, `pitch` floats a pixel, and is overwritten.
  void finish(i64 n, i64 y, i64 from, i64 to, i64 first, i64 last, float *sum, i64 pitch) const;
};

void zero_pixels(float *out, i64 pixel, i64 from, i64 to, i64 channels);
