// Chains: several convolutions in a row, a few occlusions at a time, so that what lies between them never leaves the cache.

#include "common.h"

extern "C" {
void krypton_convolution(const i64 *a, const double *parameters);
void krypton_winograd(const i64 *a, const double *parameters);
void krypton_depthwise(const i64 *a, const double *parameters);
}

namespace {

constexpr i64 MOST_INTEGERS = ENDING_INTEGERS + 32; // more than any convolution has
constexpr i64 HEAD = 5, LINK_INTEGERS = 6;

using Function = void (*)(const i64 *, const double *);
const Function FUNCTIONS[] = {krypton_convolution, krypton_winograd, krypton_depthwise}; // see LINKS in native.py

// One convolution as it would run on all occlusions. Between links a value lies in a *slot*: room for a few occlusions that every
// thread has for itself, so many floats each; the pointer is to the first thread's. 0: it lies in a tensor like any other.
struct Link {
  i64 function;
  const i64 *integers;
  i64 count;
  const double *parameters;
  i64 out_slot, source_slot;

  explicit Link(const i64 *a)
      : function(a[0]), integers(reinterpret_cast<const i64 *>(a[1])), count(a[2]), parameters(reinterpret_cast<const double *>(a[3])),
        out_slot(a[4]), source_slot(a[5]) {}

  // The convolution of occlusions [first, first + few) alone; the thread's slots begin at occlusion `mine` of all threads' slots.
  void run(i64 first, i64 few, i64 mine) const {
    i64 a[MOST_INTEGERS], *b = a + ENDING_INTEGERS;
    std::memcpy(a, integers, sizeof(i64) * count);
    a[1] = few;
    place(a[0], a[5], out_slot, first, mine);
    move<i64>(a[21], 4 * first);
    for (i64 t = 0; t < a[16]; ++t) {
      i64 *term = a + ENDING_TERMS + t * TERM_INTEGERS;
      move<float>(term[0], term[1] * first);
    }
    place(b[0], b[1], source_slot, first, mine);
    if (FUNCTIONS[function] == krypton_convolution && b[BEGINNING] == GATE)
      move<float>(b[BEGINNING + 1], b[BEGINNING + 2] * first);
    FUNCTIONS[function](a, parameters);
  }

private:
  // Let a pointer point so many elements on, unless it is null.
  template <class T> static void move(i64 &pointer, i64 elements) {
    if (pointer)
      pointer += elements * static_cast<i64>(sizeof(T));
  }
  static void place(i64 &pointer, i64 &batch, i64 slot, i64 first, i64 mine) {
    move<float>(pointer, slot ? slot * mine : batch * first);
    if (slot)
      batch = slot;
  }
};

} // namespace

extern "C" {

// How many links, occlusions in all, occlusions at a time, threads, and where each link's seconds are added, of all threads
// together; then the links.
void krypton_chain(const i64 *a) {
  const i64 links = a[0], batch = a[1], chunk = a[2], threads = a[3];
  double *seconds = reinterpret_cast<double *>(a[4]);
#pragma omp parallel num_threads(threads)
  {
    omp_set_num_threads(1); // for what the links start
#pragma omp for schedule(dynamic, 1)
    for (i64 first = 0; first < batch; first += chunk) {
      const i64 few = std::min(chunk, batch - first);
      for (i64 i = 0; i < links; ++i) {
        const double started = omp_get_wtime();
        Link(a + HEAD + i * LINK_INTEGERS).run(first, few, omp_get_thread_num() * chunk);
        const double spent = omp_get_wtime() - started;
#pragma omp atomic
        seconds[i] += spent;
      }
    }
  }
}

} // extern "C"
