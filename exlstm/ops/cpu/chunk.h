// What the chunkwise kernels share: the work on one chunk of L steps of one head, everything in the cache.
//
// `At` says where a task's chunk lies: `at.size` is L, `at.row(c, t)` the row of step t in the tensors [.., D] (-1:
// there is no such step), `at.gate(c)` where the chunk's L values lie in the tensors of gates.

#pragma once

#include "product.h"

namespace {

// A matrix of a task, zero at first, with room for the padding that `product` touches.
struct Matrix {
  int64_t stride;
  std::vector<REAL> data;
  Matrix(int64_t rows, int64_t columns)
      : stride(padded_columns(columns)), data((padded_rows(rows) + ROWS) * padded_columns(columns)) {}
  REAL* operator[](int64_t row) { return data.data() + row * stride; }
};

// Logarithms of weights, as exlstm/ops/chunkwise/gates.py has them. m is null where nothing is normalised, document
// where a chunk has but one, level where a step reads all levels alike.
struct Weights {
  const REAL *a, *M, *m;
  const int64_t* document;
  const REAL* level;  // [.., L, levels]
  int64_t levels;
};

constexpr REAL EPS = 1e-6;
inline REAL floor_of(REAL m) {
  const REAL most = IS_FLOAT ? 80 : 700;
  return std::exp(-m < most ? -m : most);
}

inline REAL dot(const REAL* x, const REAL* y, int64_t padded) {
  Vec total{};
  for (int64_t j = 0; j < padded; j += LANES) total += load(x + j) * load(y + j);
  return sum(total);
}

// y = keep y + weight x
inline void add(REAL* y, REAL keep, REAL weight, const REAL* x, int64_t padded) {
  for (int64_t j = 0; j < padded; j += LANES) store(y + j, keep * load(y + j) + weight * load(x + j));
}

// to = exp(log) from, row by row
inline void scale_rows(Matrix& from, const REAL* log, int64_t rows, Matrix& to) {
  for (int64_t t = 0; t < rows; t++) {
    const REAL weight = std::exp(log[t]);
    for (int64_t j = 0; j < from.stride; j += LANES) store(to[t] + j, weight * load(from[t] + j));
  }
}

// Copy a chunk of x [.., width], and its transpose if wanted; steps that are not there are 0.
template <class In, class At>
void fetch(const At& at, const In* x, int64_t c, int64_t width, REAL scale, Matrix& to, Matrix* flipped) {
  for (int64_t t = 0; t < at.size; t++) {
    const int64_t row = at.row(c, t);
    if (row < 0) {
      std::memset(to[t], 0, width * sizeof(REAL));
      continue;
    }
    REAL* out = to[t];
    for (int64_t j = 0; j < width; j++) out[j] = scale * widen(x[row * width + j]);
  }
  if (flipped) transpose(to[0], at.size, width, to.stride, (*flipped)[0], flipped->stride);
}

template <class In, class At>
void put(const At& at, int64_t c, int64_t width, Matrix& from, In* to) {
  for (int64_t t = 0; t < at.size; t++) {
    const int64_t row = at.row(c, t);
    if (row < 0) continue;
    for (int64_t j = 0; j < width; j++) narrow(from[t][j], to[row * width + j]);
  }
}

// The blocks of earlier steps that step t of a chunk tells apart: for every set bit b of t the 2^b steps before
// (t >> b) << b, read with level b + 1, the last level serving all beyond it.
template <class Visit>
inline void for_blocks(int64_t t, int64_t levels, const Visit& visit) {
  for (int64_t b = 0; t >> b; b++)
    if (t >> b & 1) visit(((t >> b) - 1) << b, int64_t(1) << b, std::min(b + 1, levels - 1));
}

inline int64_t filled_columns(int64_t t, int64_t size, int64_t stride) {
  return std::min(round_up(std::min((t / ROWS + 1) * ROWS, size), LANES), stride);
}

// E_ts = exp(a_s + level - M_t) where s is visible at t, else 0; A = E S in place of S. Row sums of A go to `sums`.
inline void weigh(const Weights& w, int64_t gate, int64_t size, Matrix& S, Matrix* E, REAL* sums) {
  const REAL *a = w.a + gate, *M = w.M + gate;
  std::vector<REAL> biased(S.stride);
  for (int64_t t = 0; t < size; t++) {
    const REAL* log = a;
    if (w.level) {
      const REAL* level = w.level + (gate + t) * w.levels;
      biased[t] = a[t] + level[0];
      for_blocks(t, w.levels, [&](int64_t begin, int64_t length, int64_t which) {
        for (int64_t s = begin; s < begin + length; s++) biased[s] = a[s] + level[which];
      });
      log = biased.data();
    }
    Vec total{};
    for (int64_t j = 0; j < filled_columns(t, size, S.stride); j += LANES) {
      const int count = int(std::min<int64_t>(LANES, std::max<int64_t>(t + 1 - j, 0)));
      Vec e{};
      if (count > 0) {
        e = exp(load(log + j, int(std::min<int64_t>(LANES, size - j))) - M[t]);
        for (int i = count; i < LANES; i++) e[i] = 0;
        if (w.document)
          for (int i = 0; i < count; i++)
            if (w.document[gate + j + i] != w.document[gate + t]) e[i] = 0;
      }
      const Vec product = count > 0 ? e * load(S[t] + j) : Vec{};
      store(S[t] + j, product);
      if (E) store((*E)[t] + j, e);
      total += product;
    }
    if (sums) sums[t] = sum(total);
  }
}

// Through A = E S and E = exp(a + level - M); on return dA is the gradient of S. dlevel may be null.
inline void unweigh(const Weights& w, int64_t gate, int64_t size, Matrix& A, Matrix& E, Matrix& dA, const REAL* dd,
                    REAL* da, REAL* dM, REAL* dlevel) {
  std::vector<REAL> columns(A.stride), logs(A.stride);
  for (int64_t t = 0; t < size; t++) {
    Vec total{};
    for (int64_t j = 0; j < filled_columns(t, size, A.stride); j += LANES) {
      const Vec e = load(E[t] + j);
      // Above the diagonal dA was not computed; its weight is 0 there.
      const Vec through = e == 0 ? Vec{} : load(dA[t] + j) + dd[t], log = through * load(A[t] + j);
      store(dA[t] + j, through * e);
      store(&columns[j], load(&columns[j]) + log);
      store(&logs[j], log);
      total += log;
    }
    dM[gate + t] = -sum(total);
    if (dlevel) {
      REAL* level = dlevel + (gate + t) * w.levels;
      for (int64_t l = 0; l < w.levels; l++) level[l] = 0;
      level[0] = logs[t];
      for_blocks(t, w.levels, [&](int64_t begin, int64_t length, int64_t which) {
        for (int64_t s = begin; s < begin + length; s++) level[which] += logs[s];
      });
    }
  }
  std::memcpy(da + gate, columns.data(), size * sizeof(REAL));
}

// h = read / (max(|d|, floor(m)) + eps)
template <class In, class At>
void divide(const At& at, const Weights& w, int64_t c, int64_t width, Matrix& read, const REAL* d, In* h) {
  for (int64_t t = 0; t < at.size; t++) {
    const int64_t row = at.row(c, t);
    if (row < 0) continue;
    const REAL inverse = w.m ? 1 / (std::max(std::fabs(d[t]), floor_of(w.m[at.gate(c) + t])) + EPS) : 1;
    for (int64_t j = 0; j < width; j++) narrow(read[t][j] * inverse, h[row * width + j]);
  }
}

// Through `divide`: D is the gradient of the read, dd that of d.
template <class In, class At>
void undivide(const At& at, const Weights& w, int64_t c, int64_t width, const In* dh, const In* h, const REAL* d,
              Matrix& D, REAL* dd, REAL* dm) {
  fetch(at, dh, c, width, 1, D, nullptr);
  for (int64_t t = 0; t < at.size; t++) {
    dd[t] = 0;
    if (!w.m) continue;
    const int64_t gate = at.gate(c) + t, row = at.row(c, t);
    dm[gate] = 0;
    if (row < 0) continue;
    const REAL size = std::fabs(d[t]), m = w.m[gate], floor = floor_of(m);
    const REAL inverse = 1 / (std::max(size, floor) + EPS);
    REAL through = 0;
    for (int64_t j = 0; j < width; j++) {
      D[t][j] *= inverse;
      through -= D[t][j] * widen(h[row * width + j]);
    }
    const REAL to_d = size > floor ? 1 : size == floor ? 0.5 : 0;  // as torch.maximum has it
    dd[t] = through * to_d * (d[t] > 0 ? 1 : d[t] < 0 ? -1 : 0);
    if (-m <= (IS_FLOAT ? 80 : 700)) dm[gate] = -through * (1 - to_d) * floor;
  }
}

// Run `work(task)` for all tasks on torch's threads.
template <class Work>
void run(const Work& work, int64_t tasks, ParallelFor parallel_for) {
  const auto some = [](int64_t begin, int64_t end, void* pointer) {
    for (int64_t task = begin; task < end; task++) (*static_cast<const Work*>(pointer))(task);
  };
  void* pointer = const_cast<void*>(static_cast<const void*>(&work));
  if (parallel_for)
    parallel_for(0, tasks, 1, some, pointer);
  else
    some(0, tasks, pointer);
}

}  // namespace
