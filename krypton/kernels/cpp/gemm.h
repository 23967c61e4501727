// The one inner loop of all convolutions: a block of rows times a packed panel of columns, sums kept in registers.
//
// Matrices are made of 32-bit *words*: a float, or a pair of bfloat16 that one instruction multiplies and adds. Rows lie STRIDE
// words apart, a number the compiler knows, so that all of them are addressed from one register. Columns are packed WIDE at a
// time, [k][WIDE], or [k][LANES] for what is left at the end.
#pragma once

#include "common.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

enum Format : i64 { FLOAT = 0, PAIRS = 1 };

constexpr int WIDE = 2 * LANES;
constexpr int ROWS = LANES == 16 ? 12 : 4; // 24 of 32 (8 of 16) registers hold sums
constexpr i64 DEPTH = 256;                 // words of one block: a packed panel of that depth fits the first cache
constexpr i64 STRIDE = DEPTH + 16;         // not a power of two: rows fall into different cache sets

// Columns of the panel that starts at this column: WIDE, or LANES where that is enough.
inline i64 panel_width(i64 column, i64 columns) { return columns - column > LANES ? WIDE : LANES; }

// Which of a block's words a product is over, in ascending order; null: the first `count`.
struct Places {
  const std::uint16_t *of;
  i64 count;
};
// The first k without those that are zero in all of so many rows; they are listed in `of`, which has room for STRIDE.
Places places_of(Format format, const float *a, i64 rows, i64 k, std::uint16_t *of);

// c (+)= a b for at most ROWS rows over these words; `columns` is WIDE or LANES. Meanwhile `step` words an iteration are fetched
// from `ahead` on.
void multiply_rows(Format format, const float *a, i64 rows, const float *b, i64 columns, Places places, float *c, i64 pitch, bool add,
                   const float *ahead, i64 step);

// Pack b (k, columns), element (l, j) at b[l * row + j * column], into panels of words.
void pack_panels(Format format, const float *b, i64 row, i64 column, i64 k, i64 columns, float *packed);

// To the nearest bfloat16, ties to even. Deltas are finite: NaN and infinity are refused before.
inline std::uint16_t narrow(float x) {
  std::uint32_t u;
  std::memcpy(&u, &x, 4);
  return static_cast<std::uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// One element of a matrix, the `half`-th of its word.
inline void put_number(Format format, float *word, i64 half, float x) {
  if (format == FLOAT) {
    *word = x;
    return;
  }
  const std::uint16_t narrowed = narrow(x);
  std::memcpy(reinterpret_cast<char *>(word) + 2 * half, &narrowed, 2);
}

// A vector of elements into a row of words, from element `at` on.
inline void put_vector(Format format, float *words, i64 at, Vector v) {
  if (format == FLOAT) {
    store(words + at, v);
    return;
  }
  auto *halves = reinterpret_cast<std::uint16_t *>(words) + at;
#if defined(__AVX512BF16__)
  const __m256bh narrowed = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(halves, &narrowed, 32);
#else
  for (int i = 0; i < LANES; ++i)
    halves[i] = narrow(v[i]);
#endif
}

// Copy `count` elements into a row of words, from element `at` on; null means zeros.
void put_row(Format format, float *words, i64 at, const float *source, i64 count);
