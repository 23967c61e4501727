// Instances of the inner loop for every number of rows and both formats, and packing.

#include "gemm.h"

namespace {

template <Format F> inline Vector multiply_add(Vector sum, float word, Vector column) {
#if defined(__AVX512BF16__)
  if constexpr (F == PAIRS)
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)column, (__m512bh)_mm512_set1_ps(word));
#endif
  return sum + word * column;
}

// c (+)= a b for M rows and V vectors of columns; meanwhile `step` words an iteration are fetched from `ahead` on.
template <Format F, bool ALL, int M, int V>
void multiply(const float *a, const float *b, Places places, float *c, i64 pitch, bool add, const float *ahead, i64 step) {
  Vector sum[M][V];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j)
      sum[i][j] = add ? load(c + i * pitch + j * LANES) : Vector{};
  for (i64 l = 0; l < places.count; ++l) {
    __builtin_prefetch(ahead + l * step, 0, 2);
    const i64 place = ALL ? l : places.of[l];
    Vector column[V];
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j)
      column[j] = load(b + (place * V + j) * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j)
        sum[i][j] = multiply_add<F>(sum[i][j], a[i * STRIDE + place], column[j]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j)
      store(c + i * pitch + j * LANES, sum[i][j]);
}

using Kernel = void (*)(const float *, const float *, Places, float *, i64, bool, const float *, i64);

struct Table {
  Kernel of[2][2][ROWS + 1][2];
  Table() { list<ROWS>(); }
  template <int M> void list() {
    list<FLOAT, false, M>();
    list<FLOAT, true, M>();
    list<PAIRS, false, M>();
    list<PAIRS, true, M>();
    if constexpr (M > 1)
      list<M - 1>();
  }
  template <Format F, bool ALL, int M> void list() {
    of[F][ALL][M][0] = multiply<F, ALL, M, 1>;
    of[F][ALL][M][1] = multiply<F, ALL, M, 2>;
  }
};
const Table table;

typedef std::uint32_t Words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

} // namespace

Places places_of(Format format, const float *a, i64 rows, i64 k, std::uint16_t *of) {
  const std::uint32_t magnitude = format == PAIRS ? 0x7fff7fff : 0x7fffffff; // minus zero is zero
  i64 count = 0;
  for (i64 first = 0; first < k; first += LANES) {
    Words any{};
    for (i64 i = 0; i < rows; ++i)
      any |= *reinterpret_cast<const Words *>(a + i * STRIDE + first); // rows have room for whole vectors
    const i64 lanes = std::min<i64>(LANES, k - first);
#if defined(__AVX512F__)
    const __m512i places = _mm512_add_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(int(first)));
    const __mmask16 some = _mm512_test_epi32_mask((__m512i)any, _mm512_set1_epi32(int(magnitude))) & ((1u << lanes) - 1);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(of + count), _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(some, places)));
    count += __builtin_popcount(some);
#else
    for (i64 lane = 0; lane < lanes; ++lane) {
      of[count] = static_cast<std::uint16_t>(first + lane);
      count += (any[lane] & magnitude) != 0;
    }
#endif
  }
  return {count < k ? of : nullptr, count};
}

void multiply_rows(Format format, const float *a, i64 rows, const float *b, i64 columns, Places places, float *c, i64 pitch, bool add,
                   const float *ahead, i64 step) {
  table.of[format][!places.of][rows][columns == WIDE](a, b, places, c, pitch, add, ahead, step);
}

void pack_panels(Format format, const float *b, i64 row, i64 column, i64 k, i64 columns, float *packed) {
  const i64 words = format == PAIRS ? divide_up(k, 2) : k;
  for (i64 first = 0; first < columns; first += WIDE) {
    const i64 wide = panel_width(first, columns);
    for (i64 l = 0; l < words; ++l)
      for (i64 j = 0; j < wide; ++j) {
        const auto element = [&](i64 at) { return first + j < columns && at < k ? b[at * row + (first + j) * column] : 0.0f; };
        if (format == PAIRS) {
          const std::uint32_t pair = narrow(element(2 * l)) | std::uint32_t(narrow(element(2 * l + 1))) << 16;
          std::memcpy(packed++, &pair, 4);
        } else {
          *packed++ = element(l);
        }
      }
  }
}

void put_row(Format format, float *words, i64 at, const float *source, i64 count) {
  if (format == FLOAT) {
    if (source)
      std::memcpy(words + at, source, sizeof(float) * count);
    else
      std::memset(words + at, 0, sizeof(float) * count);
    return;
  }
  auto *halves = reinterpret_cast<std::uint16_t *>(words) + at;
  if (!source) {
    std::memset(halves, 0, sizeof(std::uint16_t) * count);
    return;
  }
  i64 i = 0;
#if defined(__AVX512BF16__)
  for (; i + 16 <= count; i += 16) {
    const __m256bh narrowed = _mm512_cvtneps_pbh(_mm512_loadu_ps(source + i));
    std::memcpy(halves + i, &narrowed, 32);
  }
#endif
  for (; i < count; ++i)
    halves[i] = narrow(source[i]);
}

extern "C" {

// 1 where the processor multiplies pairs of bfloat16.
i64 krypton_has_pairs() {
#if defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}
}
