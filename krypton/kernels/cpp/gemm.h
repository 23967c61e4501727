// The one inner loop of all convolutions: a block of rows times a packed panel of columns, sums kept in registers.
//
// Matrices are made of 32-bit *words*: a float, or a pair of bfloat16 that one instruction multiplies and adds. Rows lie STRIDE
// words apart, a number the compiler knows, so that all of them are addressed from one register. Columns are packed WIDE at a
// time, [k][WIDE], or [k][LANES] for what is left at the end.
#pragma once

#include "common.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

enum Format : i64 { FLOAT = 0, PAIRS = 1 };

constexpr int WIDE = 2 * LANES;
constexpr int ROWS = LANES == 16 ? 12 : 4; // 24 of 32 (8 of 16) registers hold sums
constexpr i64 DEPTH = 256;                 // words of one block: a packed panel of that depth fits the first cache
constexpr i64 STRIDE = DEPTH + 16;         // not a power of two: rows fall into different cache sets

// Columns of the panel that starts at this column: WIDE, or LANES where that is enough.
inline i64 panel_width(i64 column, i64 columns) { return columns - column > LANES ? WIDE : LANES; }

// c (+)= a b for at most ROWS rows; `columns` is WIDE or LANES, `k` counts words. Meanwhile `step` words an iteration are
// fetched from `ahead` on.
void multiply_rows(Format format, const float *a, i64 rows, const float *b, i64 columns, i64 k, float *c, i64 pitch, bool add,
                   const float *ahead, i64 step);

// Pack b (k, columns), element (l, j) at b[l * row + j * column], into panels of words.
void pack_panels(Format format, const float *b, i64 row, i64 column, i64 k, i64 columns, float *packed);

// Copy `count` elements into a row of words, from element `at` on; null means zeros.
void put_row(Format format, float *words, i64 at, const float *source, i64 count);
