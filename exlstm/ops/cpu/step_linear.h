// Products of a few rows with a large matrix, which is read once, in the order in which it lies in memory.
//
// A matrix [out, in] lies in panels of PANEL_VECTORS * LANES outputs, the last one narrower: within a panel, input
// after input, the weights of all its outputs. Narrow weights lie several to a word, each word holding those of outputs
// LANES apart, so that shifts of whole vectors take them out.

#pragma once

#include "simd.h"

namespace {

constexpr int PANEL_VECTORS = 4;

typedef int32_t Words __attribute__((vector_size(LANES * 4)));
typedef int32_t WordsAnywhere __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

struct Full {
  typedef REAL Word;
  static constexpr int PER_WORD = 1;

  static Vec take(const Word* p, int) { return load(p); }
};

struct Halves {  // bfloat16
  typedef int32_t Word;
  static constexpr int PER_WORD = 2;

  static Vec take(const Word* p, int which) {
    typedef float Floats __attribute__((vector_size(LANES * 4)));
    const Words words = *reinterpret_cast<const WordsAnywhere*>(p);
    const Words bits = which ? words & int32_t(0xffff0000) : words << 16;
    Floats x;
    std::memcpy(&x, &bits, sizeof(x));
    return __builtin_convertvector(x, Vec);
  }
};

struct Bytes {  // int8, to be scaled; those that lie below in the word are taken along as its fraction
  typedef int32_t Word;
  static constexpr int PER_WORD = 4;

  static Vec take(const Word* p, int which) {
    return __builtin_convertvector(*reinterpret_cast<const WordsAnywhere*>(p) << (24 - 8 * which), Vec);
  }
};

// Run work(begin, end) over `tasks` tasks, on torch's threads where each of these gets enough of `cost` operations a
// task to be worth waking it.
template <class Work>
inline void share(ParallelFor parallel_for, int64_t tasks, int64_t cost, const Work& work) {
  in_parallel(parallel_for, tasks, std::max<int64_t>(1, 65536 / std::max<int64_t>(1, cost)), work);
}

// y = add + bias + scale * (W x), for `blocks` matrices side by side that each map their own `in` inputs.
template <class W>
struct Linear {
  int64_t batch, blocks, in, out;
  const REAL* x;                // [batch, blocks * in]
  const typename W::Word* weight;  // [blocks, packed]
  const REAL *bias, *scale;     // [blocks, padded out], or null
  const REAL* add;              // laid out as y, or null
  REAL* y;                      // [batch, blocks, out], a block begins every `y_block` elements
  int64_t x_row, add_row, y_row, y_block;

  static constexpr int64_t PANEL = PANEL_VECTORS * LANES;
  int64_t panels() const { return (out + PANEL - 1) / PANEL; }
  int64_t padded() const { return (out + LANES - 1) / LANES * LANES; }

  void run(ParallelFor parallel_for) const {
    share(parallel_for, blocks * panels(), batch * in * std::min(PANEL, out), [this](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t block = i / panels(), first = i % panels() * PANEL;
        switch (std::min(PANEL, padded() - first) / LANES) {
          case 4: panel<4>(block, first); break;
          case 3: panel<3>(block, first); break;
          case 2: panel<2>(block, first); break;
          default: panel<1>(block, first);
        }
      }
    });
  }

  template <int VECTORS>
  inline void panel(int64_t block, int64_t first) const {
    // While a panel lies in the cache, all rows pass through it.
    for (int64_t row = 0; row < batch;) {
      const int64_t left = batch - row;
      if (left >= 4 && MOST_ROWS >= 4) {
        rows<VECTORS, 4>(block, first, row);
        row += 4;
      } else if (left >= 2) {
        rows<VECTORS, 2>(block, first, row);
        row += 2;
      } else {
        rows<VECTORS, 1>(block, first, row);
        row += 1;
      }
    }
  }

  template <int VECTORS, int ROWS>
  inline void rows(int64_t block, int64_t first, int64_t row) const {
    constexpr int CHAINS = std::max(1, 8 / (VECTORS * ROWS));  // independent sums, to hide the time one addition takes
    const REAL* inputs = x + row * x_row + block * in;
    // Words from one input to the next, and before this panel in this block and in those before it.
    constexpr int64_t step = (VECTORS + W::PER_WORD - 1) / W::PER_WORD * LANES;
    const int64_t in_block = (padded() / LANES + W::PER_WORD - 1) / W::PER_WORD * LANES;
    const typename W::Word* w = weight + (block * in_block + first / W::PER_WORD) * in;
    Vec sums[CHAINS][ROWS][VECTORS] = {};
    int64_t k = 0;
    for (; k + CHAINS <= in; k += CHAINS)
      for (int c = 0; c < CHAINS; c++) accumulate<VECTORS, ROWS>(sums[c], inputs + k + c, w + (k + c) * step);
    for (; k < in; k++) accumulate<VECTORS, ROWS>(sums[0], inputs + k, w + k * step);
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++) {
        Vec total = sums[0][r][v];
        for (int c = 1; c < CHAINS; c++) total += sums[c][r][v];
        const int64_t at = first + v * LANES, place = block * y_block + at;
        const int count = int(std::min<int64_t>(LANES, out - at));
        if (scale) total *= load(scale + block * padded() + at);
        if (bias) total += load(bias + block * padded() + at);
        if (add) total += load(add + (row + r) * add_row + place, count);
        store(y + (row + r) * y_row + place, total, count);
      }
  }

  template <int VECTORS, int ROWS>
  inline void accumulate(Vec (&sums)[ROWS][VECTORS], const REAL* inputs, const typename W::Word* w) const {
    Vec weights[VECTORS];
    for (int v = 0; v < VECTORS; v++) weights[v] = W::take(w + v / W::PER_WORD * LANES, v % W::PER_WORD);
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++) sums[r][v] += inputs[r * x_row] * weights[v];
  }
};

// y[block, o] = sum_i weight[block, i, o] x[block, i], for many blocks of SIZE channels.
template <int SIZE>
inline void small_blocks(int64_t blocks, int64_t size, const REAL* x, const REAL* weight, REAL* y) {
  if (SIZE) size = SIZE;  // known to the compiler
  for (int64_t b = 0; b < blocks; b++, x += size, y += size, weight += size * size) {
    for (int64_t o = 0; o < size; o++) y[o] = weight[o] * x[0];
    for (int64_t i = 1; i < size; i++)
      for (int64_t o = 0; o < size; o++) y[o] += weight[i * size + o] * x[i];
  }
}

}  // namespace
