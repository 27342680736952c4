// What the chunkwise kernels share: the work on one chunk of L steps of one head, everything in the cache.
//
// `At` says where a task's chunk lies: `at.size` is L, `at.row(c, t)` the row of step t in the tensors [.., D] (-1:
// there is no such step), `at.gate(c)` where the chunk's L values lie in the tensors of gates.
//
// T is what the operands of products are held as: REAL, or bfloat16 where tensors are bfloat16 and the processor
// multiplies it. Products add up in REAL, and all else is REAL.

#pragma once

#include "product.h"

namespace {

// A matrix of a task by rows, zero at first, with room for what products and transposes touch beyond it.
template <class T>
struct Matrix {
  static constexpr int64_t BLOCK = 64 / sizeof(T);
  struct alignas(64) Line { T items[BLOCK]; };
  int64_t stride, columns;  // columns: whole vectors of REAL
  std::vector<Line> lines;
  Matrix(int64_t rows, int64_t columns)
      : stride(round_up(columns, BLOCK)), columns(padded_columns(columns)),
        lines(size_t((round_up(rows, BLOCK) + ROWS) * stride / BLOCK)) {}
  T* operator[](int64_t row) { return lines.data()->items + row * stride; }
  void zero() { std::memset(lines.data(), 0, lines.size() * sizeof(Line)); }
};

// X [K, N] in words of neighbours in a column: the right operand of a product, or its transpose as the left one. Where
// a word is one REAL, that is the matrix itself.
template <class T>
struct Paired {
  static constexpr bool SAME = std::is_same_v<T, REAL>;
  Matrix<Word<T>> space;
  const Word<T>* data = nullptr;
  int64_t stride = 0;
  Paired(int64_t rows, int64_t columns) : space(SAME ? 0 : (rows + 1) / 2, SAME ? 0 : columns) {}

  template <class From>
  void of(const From* x, int64_t x_stride, int64_t rows) {
    if constexpr (SAME) {
      data = x;
      stride = x_stride;
    } else {
      data = space[0];
      stride = space.stride;
      for (int64_t i = 0; i < rows; i += 2)
        for (int64_t j = 0; j < space.columns; j += LANES) {
          const From *p = x + i * x_stride + j, *next = p + x_stride;
          store(space[i / 2] + j, i + 1 < rows ? paired(p, next) : paired(p));
        }
    }
  }
  template <class From>
  void of(Matrix<From>& x, int64_t rows) { of(x[0], x.stride, rows); }
};

// The transpose of X [rows, columns], its rows taken by words.
template <class T, class From>
inline void transpose(Matrix<From>& x, int64_t rows, int64_t columns, Matrix<Word<T>>& to) {
  constexpr int64_t DEPTH = sizeof(Word<T>) / sizeof(T);
  for (int64_t i = 0; i < rows; i += LANES)
    for (int64_t j = 0; j * DEPTH < columns; j += LANES)
      transpose_block<T>(x[i] + j * DEPTH, x.stride, to[j] + i, to.stride);
}

// The left operand of a product: X by rows, or the transpose of X by its columns.
template <class W>
struct Left { const W* data; int64_t row, column; };
template <class T>
inline Left<Word<T>> rows_of(Matrix<T>& x) {
  return {reinterpret_cast<const Word<T>*>(x[0]), x.stride * int64_t(sizeof(T)) / int64_t(sizeof(Word<T>)), 1};
}
template <class T>
inline Left<Word<T>> columns_of(const Paired<T>& x) { return {x.data, 1, x.stride}; }

template <class W>
inline void product(Part part, int64_t M, int64_t N, int64_t K, Left<W> A, const W* B, int64_t b_row, Matrix<REAL>& C,
                    const Update& update) {
  product(part, M, N, K, A.data, A.row, A.column, B, b_row, C[0], C.stride, update);
}
template <class W, class T>
inline void product(Part part, int64_t M, int64_t N, int64_t K, Left<W> A, const Paired<T>& B, Matrix<REAL>& C,
                    const Update& update = {}) {
  product(part, M, N, K, A, B.data, B.stride, C, update);
}
template <class W>
inline void product(Part part, int64_t M, int64_t N, int64_t K, Left<W> A, Matrix<W>& B, Matrix<REAL>& C,
                    const Update& update = {}) {
  product(part, M, N, K, A, B[0], B.stride, C, update);
}

// Logarithms of weights, as exlstm/ops/chunkwise/gates.py has them. m is null where nothing is normalised, document
// where a chunk has but one, level where a step reads all levels alike.
struct Weights {
  const REAL *a, *M, *m;
  const int64_t* document;
  const REAL* level;  // [.., L, levels]
  int64_t levels;
};

constexpr REAL EPS = 1e-6, MOST = IS_FLOAT ? 80 : 700;  // of -m in the normaliser's floor

// One number a step of a chunk, with room for what products and vectors read beyond them.
struct Steps {
  std::vector<REAL> data;
  explicit Steps(int64_t size) : data(round_up(size, LANES) + LANES + ROWS) {}
  REAL& operator[](int64_t t) { return data[t]; }
  operator const REAL*() const { return data.data(); }
};

// to = factor exp(log)
inline void exps(const REAL* log, REAL factor, int64_t size, Steps& to) {
  for (int64_t t = 0; t < size; t += LANES)
    store(&to[t], factor * exp(load(log + t, int(std::min<int64_t>(LANES, size - t)))));
}

template <class T>
inline REAL dot(const REAL* x, const T* y, int64_t columns) {
  Vec total{}, other{};
  int64_t j = 0;
  for (; j + LANES < columns; j += 2 * LANES) {
    total += load(x + j) * load(y + j);
    other += load(x + j + LANES) * load(y + j + LANES);
  }
  if (j < columns) total += load(x + j) * load(y + j);
  return sum(total + other);
}

// y = keep y + weight x
inline void add(REAL* y, REAL keep, REAL weight, const REAL* x, int64_t columns) {
  for (int64_t j = 0; j < columns; j += LANES) store(y + j, keep * load(y + j) + weight * load(x + j));
}

// n = keep n + sum_t weight_t x_t
template <class T>
inline void add_rows(Matrix<REAL>& n, REAL keep, const REAL* weight, Matrix<T>& x, int64_t rows) {
  for (int64_t j = 0; j < n.columns; j += LANES) {
    Vec total = keep * load(n[0] + j);
    for (int64_t t = 0; t < rows; t++) total += weight[t] * load(x[t] + j);
    store(n[0] + j, total);
  }
}

// to = weight x, row by row
template <class T>
inline void scale_rows(Matrix<T>& x, const REAL* weight, int64_t rows, Matrix<T>& to) {
  for (int64_t t = 0; t < rows; t++)
    for (int64_t j = 0; j < x.columns; j += LANES) store(to[t] + j, weight[t] * load(x[t] + j));
}

inline int lanes_of(int64_t j, int64_t width) { return int(std::min<int64_t>(LANES, width - j)); }

// Copy a chunk of x [.., width]; steps that are not there are 0.
template <class In, class T, class At>
inline void fetch(const At& at, const In* x, int64_t c, int64_t width, Matrix<T>& to) {
  for (int64_t t = 0; t < at.size; t++) {
    const int64_t row = at.row(c, t);
    const In* from = x + row * width;
    if (row < 0)
      std::memset(to[t], 0, width * sizeof(T));
    else if constexpr (std::is_same_v<In, T>)
      std::memcpy(to[t], from, width * sizeof(T));
    else
      for (int64_t j = 0; j < width; j += LANES) store(to[t] + j, load(from + j, lanes_of(j, width)));
  }
}

template <class In, class At>
inline void put(const At& at, int64_t c, int64_t width, Matrix<REAL>& from, In* to) {
  for (int64_t t = 0; t < at.size; t++) {
    const int64_t row = at.row(c, t);
    if (row < 0) continue;
    for (int64_t j = 0; j < width; j += LANES) store(to + row * width + j, load(from[t] + j), lanes_of(j, width));
  }
}

// The level between lanes of one vector.
struct LaneLevels {
  REAL at[LANES][LANES] = {};
  constexpr LaneLevels() {
    for (int t = 0; t < LANES; t++)
      for (int s = 0; s < LANES; s++)
        for (int x = t ^ s; x > 0; x /= 2) at[t][s] += 1;
  }
};

// The weights among the steps of a chunk, exp(a_s + level - M_t) where s is visible at t, else 0; a vector of s at a
// time. `filled` is how far they are needed: zeros complete the tile of the diagonal.
class Within {
 public:
  Within(const Weights& w, int64_t size) : w(w), size(size), a(size), document(size) {}
  void enter(int64_t gate) {
    at = gate;
    std::memcpy(&a[0], w.a + gate, size * sizeof(REAL));
    if (w.document)
      for (int64_t t = 0; t < size; t++) document[t] = REAL(w.document[gate + t]);
  }
  int64_t filled(int64_t t) const { return round_up(std::min((t / ROWS + 1) * ROWS, size), LANES); }
  Vec weight(int64_t t, int64_t j) {
    if (j > t) return Vec{};
    Vec log = load(&a[j]) - w.M[at + t];
    if (w.level) log += level(t, j);
    Vec e = exp(log);
    if (j + LANES > t + 1) e = lane() <= REAL(t - j) ? e : Vec{};
    if (w.document) e = load(&document[j]) == document[t] ? e : Vec{};
    return e;
  }
  // Add up, level by level, what comes through log weights of step t.
  void through_level(int64_t t, int64_t j, Vec log, REAL* dlevel) const {
    if (j > t) return;
    if (t - j >= LANES) {
      dlevel[beyond(t, j)] += sum(log);
      return;
    }
    const Vec levels = load(LEVELS.at[t % LANES]);
    for (int64_t b = 0; b <= LANE_BITS; b++) dlevel[std::min(b, w.levels - 1)] += sum(levels == REAL(b) ? log : Vec{});
  }
  const Weights& w;
  const int64_t size;

 private:
  static constexpr int LANE_BITS = __builtin_ctz(LANES);
  static constexpr LaneLevels LEVELS{};
  static Vec lane() {
    Vec x{};
    for (int i = 0; i < LANES; i++) x[i] = REAL(i);
    return x;
  }
  // The level between t and all steps of an earlier vector.
  int64_t beyond(int64_t t, int64_t j) const {
    return std::min<int64_t>(64 - __builtin_clzll(uint64_t(t ^ j)), w.levels - 1);
  }
  Vec level(int64_t t, int64_t j) const {
    const REAL* level = w.level + (at + t) * w.levels;
    if (t - j >= LANES) return all(level[beyond(t, j)]);
    const Vec levels = load(LEVELS.at[t % LANES]);
    Vec x = all(level[0]);
    for (int64_t b = 1; b <= LANE_BITS; b++) x = levels >= REAL(b) ? all(level[std::min(b, w.levels - 1)]) : x;
    return x;
  }
  int64_t at = 0;
  Steps a, document;
};

// A = scale E S with the weights E; its sums of rows go to `sums`.
template <class T>
inline void weigh(Within& within, REAL scale, Matrix<REAL>& S, Matrix<T>& A, REAL* sums) {
  for (int64_t t = 0; t < within.size; t++) {
    Vec total{};
    for (int64_t j = 0; j < within.filled(t); j += LANES) {
      const Vec x = j > t ? Vec{} : scale * within.weight(t, j) * load(S[t] + j);
      store(A[t] + j, x);
      total += x;
    }
    sums[t] = sum(total);
  }
}

// A as above and, from dA + dd, dS and the gradients of the weights' logarithms. dlevel may be null.
template <class T>
inline void unweigh(Within& within, int64_t gate, REAL scale, Matrix<REAL>& S, Matrix<REAL>& dA, const REAL* dd,
                    Matrix<T>& A, Matrix<T>& dS, Steps& columns, REAL* da, REAL* dM, REAL* dlevel) {
  const int64_t size = within.size;
  std::fill(columns.data.begin(), columns.data.end(), REAL(0));
  for (int64_t t = 0; t < size; t++) {
    REAL* level = dlevel ? dlevel + (gate + t) * within.w.levels : nullptr;
    if (level) std::fill(level, level + within.w.levels, REAL(0));
    Vec total{};
    for (int64_t j = 0; j < within.filled(t); j += LANES) {
      if (j > t) {
        store(A[t] + j, Vec{});
        store(dS[t] + j, Vec{});
        continue;
      }
      const Vec e = scale * within.weight(t, j), s = load(S[t] + j);
      // Above the diagonal dA was not computed; its weight is 0 there.
      const Vec ds = e == 0 ? Vec{} : (load(dA[t] + j) + dd[t]) * e, log = ds * s;
      store(A[t] + j, e * s);
      store(dS[t] + j, ds);
      store(&columns[j], load(&columns[j]) + log);
      if (level) within.through_level(t, j, log, level);
      total += log;
    }
    dM[gate + t] = -sum(total);
  }
  std::memcpy(da + gate, &columns[0], size * sizeof(REAL));
}

// 1 / (max(|d|, floor(m)) + eps) of every step, or 1 where nothing is normalised.
inline void inverses(const REAL* m, const REAL* d, int64_t size, Steps& to, Steps& floor) {
  if (!m) return std::fill(to.data.begin(), to.data.end(), REAL(1));
  for (int64_t t = 0; t < size; t += LANES) {
    const int count = int(std::min<int64_t>(LANES, size - t));
    const Vec log = -load(m + t, count), low = exp(log < MOST ? log : all(MOST));
    store(&floor[t], low);
    store(&to[t], 1 / (larger(absolute(load(d + t, count)), low) + EPS));
  }
}

// h = read / denominator
template <class In, class At>
inline void divide(const At& at, int64_t c, int64_t width, Matrix<REAL>& read, const REAL* inverse, In* h) {
  for (int64_t t = 0; t < at.size; t++) {
    const int64_t row = at.row(c, t);
    if (row < 0) continue;
    for (int64_t j = 0; j < width; j += LANES)
      store(h + row * width + j, inverse[t] * load(read[t] + j), lanes_of(j, width));
  }
}

// Through `divide`: D is the gradient of the read, dd that of d; dm may be null.
template <class In, class T, class At>
inline void undivide(const At& at, int64_t c, int64_t width, const In* dh, const In* h, const REAL* m, const REAL* d,
                     Steps& inverse, Steps& floor, Matrix<T>& D, Steps& dd, REAL* dm) {
  inverses(m, d, at.size, inverse, floor);
  for (int64_t t = 0; t < at.size; t++) {
    const int64_t row = at.row(c, t);
    Vec total{};
    for (int64_t j = 0; j < width; j += LANES) {
      const int64_t from = row * width + j;
      const Vec x = row < 0 ? Vec{} : inverse[t] * load(dh + from, lanes_of(j, width));
      store(D[t] + j, x);
      if (m && row >= 0) total += x * load(h + from, lanes_of(j, width));
    }
    if (!m) continue;
    const REAL through = -sum(total), size = std::fabs(d[t]);
    const REAL to_d = size > floor[t] ? 1 : size == floor[t] ? 0.5 : 0;  // as torch.maximum has it
    dd[t] = through * to_d * (d[t] > 0 ? 1 : d[t] < 0 ? -1 : 0);
    dm[t] = -m[t] <= MOST ? -through * (1 - to_d) * floor[t] : 0;
  }
}

// Run all tasks on torch's threads; each part of them makes itself the space that `work` needs.
template <class Work>
void run(const Work& work, int64_t tasks, ParallelFor parallel_for) {
  in_parallel(parallel_for, tasks, 1, [&](int64_t begin, int64_t end) {
    typename Work::Space space(work.s);
    for (int64_t task = begin; task < end; task++) work(task, space);
  });
}

}  // namespace
