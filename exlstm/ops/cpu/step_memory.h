// One step of what remembers: mLSTM, hierarchical mLSTM, sLSTM, attention. States are changed in place.

#pragma once

#include "step_linear.h"

namespace {

constexpr REAL EPS = 1e-6;  // exlstm/ops/mlstm.py

inline int lanes_at(int64_t j, int64_t width) { return int(std::min<int64_t>(LANES, width - j)); }
inline REAL logsigmoid(REAL x) { return std::min<REAL>(x, 0) - std::log1p(std::exp(-std::fabs(x))); }
// The reciprocal of max(|w|, exp(-m)) + eps, exp(-m) bounded as normaliser_floor does.
inline REAL normaliser(REAL w, REAL m) {
  const REAL floor = std::exp(std::min<REAL>(-m, IS_FLOAT ? 80 : 700));
  return 1 / (std::max(std::fabs(w), floor) + EPS);
}

// The sum of all lanes, halves first, so that additions do not wait for one another.
inline REAL total(Vec x) {
  REAL lanes[LANES];
  std::memcpy(lanes, &x, sizeof(x));
  for (int n = LANES / 2; n > 0; n /= 2)
    for (int j = 0; j < n; j++) lanes[j] += lanes[j + n];
  return lanes[0];
}

inline REAL dot(const REAL* a, const REAL* b, int64_t width) {
  Vec products{};
  for (int64_t j = 0; j < width; j += LANES)
    products += load(a + j, lanes_at(j, width)) * load(b + j, lanes_at(j, width));
  return total(products);
}

// y[j..] = f(j, count) along a row, vector by vector.
template <class F>
inline void along(int64_t width, REAL* y, const F& f) {
  for (int64_t j = 0; j < width; j += LANES) {
    const int count = lanes_at(j, width);
    store(y + j, f(j, count), count);
  }
}

// y += scale * (a M), for M [rows, width].
inline void add_rows(int64_t rows, const REAL* a, const REAL* M, int64_t width, REAL scale, REAL* y) {
  int64_t j = 0;
  for (; j + 4 * LANES <= width; j += 4 * LANES) {
    Vec sums[4] = {};
    for (int64_t r = 0; r < rows; r++)
      for (int s = 0; s < 4; s++) sums[s] += a[r] * load(M + r * width + j + s * LANES);
    for (int s = 0; s < 4; s++) store(y + j + s * LANES, load(y + j + s * LANES) + scale * sums[s]);
  }
  for (; j < width; j += LANES) {
    const int count = lanes_at(j, width);
    Vec sum{};
    for (int64_t r = 0; r < rows; r++) sum += a[r] * load(M + r * width + j, count);
    store(y + j, load(y + j, count) + scale * sum, count);
  }
}

// What the heads of all batch rows are given: q, k [B, H * DK], v, h [B, H * DV], gates i, f [B, H].
struct Heads {
  int64_t heads, dk, dv;
  const REAL *q, *k, *v, *i, *f;
  REAL* h;
  int64_t q_row, k_row, v_row, i_row, f_row, h_row;

  Heads of(int64_t b, int64_t head) const {
    Heads one = *this;
    one.q += b * q_row + head * dk, one.k += b * k_row + head * dk;
    one.v += b * v_row + head * dv, one.h += b * h_row + head * dv;
    one.i += b * i_row + head, one.f += b * f_row + head;
    return one;
  }
};

// One head: what is kept and written of C passes through the registers once, and is read there.
inline void mlstm_head(const Heads& x, REAL* C, REAL* n, REAL* m) {
  const REAL kept = logsigmoid(*x.f) + *m, m_new = std::max(kept, *x.i);
  const REAL keep = std::exp(kept - m_new), write = std::exp(*x.i - m_new), root = 1 / std::sqrt(REAL(x.dk));
  along(x.dk, n, [&](int64_t j, int count) { return keep * load(n + j, count) + write * load(x.k + j, count); });
  *m = m_new;
  const REAL scale = root * normaliser(root * dot(x.q, n, x.dk), m_new);
  int64_t j = 0;
  for (; j + 4 * LANES <= x.dv; j += 4 * LANES) {
    const Vec v[4] = {load(x.v + j), load(x.v + j + LANES), load(x.v + j + 2 * LANES), load(x.v + j + 3 * LANES)};
    Vec h[4] = {};
    for (int64_t d = 0; d < x.dk; d++) {
      REAL* row = C + d * x.dv + j;
      const REAL written = write * x.k[d], q = x.q[d];
      for (int s = 0; s < 4; s++) {
        const Vec c = keep * load(row + s * LANES) + written * v[s];
        store(row + s * LANES, c);
        h[s] += q * c;
      }
    }
    for (int s = 0; s < 4; s++) store(x.h + j + s * LANES, scale * h[s]);
  }
  for (; j < x.dv; j += LANES) {
    const int count = lanes_at(j, x.dv);
    const Vec v = load(x.v + j, count);
    Vec h{};
    for (int64_t d = 0; d < x.dk; d++) {
      REAL* row = C + d * x.dv + j;
      const Vec c = keep * load(row, count) + write * x.k[d] * v;
      store(row, c, count);
      h += x.q[d] * c;
    }
    store(x.h + j, scale * h, count);
  }
}

// The slots of one head of a hierarchical memory (exlstm/ops/reference/hmlstm.py).
struct Tree {
  int64_t levels, position;
  REAL *C, *n, *m, *log_decay;  // [levels, DK, DV], [levels, DK], [levels], one number

  bool held(int64_t slot) const {
    const int64_t bits = slot < 63 ? position >> slot : 0;
    return slot == levels - 1 ? bits > 0 : bits & 1;
  }
};

inline void hmlstm_read(const Heads& x, const REAL* level, const Tree& tree) {
  const REAL root = 1 / std::sqrt(REAL(x.dk)), itself = *x.i + level[0];
  const auto log_weight = [&](int64_t slot) { return tree.m[slot] + level[std::min(slot + 1, tree.levels - 1)]; };
  REAL m = std::max(*tree.log_decay, itself);
  for (int64_t slot = 0; slot < tree.levels; slot++)
    if (tree.held(slot)) m = std::max(m, log_weight(slot));
  const REAL w_itself = std::exp(itself - m) * root * dot(x.q, x.k, x.dk);
  REAL weights = w_itself;
  along(x.dv, x.h, [&](int64_t j, int count) { return w_itself * load(x.v + j, count); });
  for (int64_t slot = 0; slot < tree.levels; slot++) {
    if (!tree.held(slot)) continue;
    const REAL weight = std::exp(log_weight(slot) - m) * root;
    weights += weight * dot(x.q, tree.n + slot * x.dk, x.dk);
    add_rows(x.dk, x.q, tree.C + slot * x.dk * x.dv, x.dv, weight, x.h);
  }
  const REAL scale = normaliser(weights, m);
  along(x.dv, x.h, [&](int64_t j, int count) { return scale * load(x.h + j, count); });
}

// into += weight * slot, and the slot is emptied.
inline void merge(REAL* into, REAL* slot, REAL weight, int64_t size) {
  for (int64_t j = 0; j < size; j += LANES) {
    const int count = lanes_at(j, size);
    store(into + j, load(into + j, count) + weight * load(slot + j, count), count);
    store(slot + j, Vec{}, count);
  }
}

// Add one step to the slots as one is added to a binary counter.
inline void hmlstm_count(const Heads& x, Tree& tree) {
  int64_t target = 0;
  while (target < tree.levels - 1 && tree.held(target)) target++;
  REAL m = *x.i;
  for (int64_t slot = 0; slot <= target; slot++)
    if (tree.held(slot)) m = std::max(m, tree.m[slot]);
  const REAL write = std::exp(*x.i - m), keep = tree.held(target) ? std::exp(tree.m[target] - m) : 0;
  REAL *C = tree.C + target * x.dk * x.dv, *n = tree.n + target * x.dk;
  for (int64_t d = 0; d < x.dk; d++) {
    const REAL written = write * x.k[d];
    n[d] = keep * n[d] + written;
    REAL* row = C + d * x.dv;
    along(x.dv, row, [&](int64_t j, int count) {
      return keep * load(row + j, count) + written * load(x.v + j, count);
    });
  }
  for (int64_t slot = 0; slot < target; slot++) {
    const REAL weight = std::exp(tree.m[slot] - m);
    merge(C, tree.C + slot * x.dk * x.dv, weight, x.dk * x.dv);
    merge(n, tree.n + slot * x.dk, weight, x.dk);
    tree.m[slot] = 0;
  }
  tree.m[target] = m;
}

inline void hmlstm_head(const Heads& x, const REAL* level, Tree tree) {
  const REAL lf = logsigmoid(*x.f);
  for (int64_t slot = 0; slot < tree.levels; slot++)
    if (tree.held(slot)) tree.m[slot] += lf;
  *tree.log_decay += lf;
  hmlstm_read(x, level, tree);
  hmlstm_count(x, tree);
}

// One head of sLSTM cells from their pre-activations [4, D], in the order i, f, z, o, recurrence included; those of
// forget gates above `cap` count as it.
inline void slstm_head(int64_t width, REAL cap, const REAL* gates, REAL* c, REAL* n, REAL* m, REAL* h) {
  for (int64_t j = 0; j < width; j += LANES) {
    const int count = lanes_at(j, width);
    const Vec i = load(gates + j, count), f = load(gates + width + j, count);
    const Vec before = load(n + j, count), kept = log_forget(f, cap) + load(m + j, count);
    const auto empty = before == 0;
    const Vec m_new = empty ? i : larger(kept, i);
    const Vec keep = empty ? Vec{} : exp(kept - m_new), write = exp(i - m_new);
    const Vec z = tanh(load(gates + 2 * width + j, count)), o = sigmoid(load(gates + 3 * width + j, count));
    const Vec c_new = keep * load(c + j, count) + write * z, n_new = keep * before + write;
    store(c + j, c_new, count);
    store(n + j, n_new, count);
    store(m + j, m_new, count);
    store(h + j, o * c_new / n_new, count);
  }
}

// One head's keys and values of the `slots` steps before this one, in a ring whose oldest is `first`.
struct Ring {
  int64_t slots, width, first;
  const REAL *k, *v;           // [slots, D]
  const bool* held;            // [slots]
  const REAL *cosine, *sine;   // [slots, D / 2] of rotations by 1, 2, ... steps
};

// y = softmax(q . rotated k / sqrt(D)) v for one head; `scores` has room for slots + 1. A query and a key `distance`
// steps apart meet as if the query alone had turned by it.
inline void attend_head(const Ring& ring, const REAL* q, const REAL* k, const REAL* v, REAL* scores, REAL* y) {
  const int64_t slots = ring.slots, width = ring.width, half = width / 2;
  const REAL root = 1 / std::sqrt(REAL(width));
  REAL largest = scores[slots] = root * dot(q, k, width);
  for (int64_t slot = 0; slot < slots; slot++) {
    scores[slot] = -INFINITY;
    if (!ring.held[slot]) continue;
    const int64_t distance = slot < ring.first ? ring.first - slot : slots + ring.first - slot;
    const REAL *key = ring.k + slot * width;
    const REAL *cosine = ring.cosine + (distance - 1) * half, *sine = ring.sine + (distance - 1) * half;
    Vec products{};
    for (int64_t j = 0; j < half; j += LANES) {
      const int count = lanes_at(j, half);
      const Vec qa = load(q + j, count), qb = load(q + half + j, count);
      const Vec ka = load(key + j, count), kb = load(key + half + j, count);
      products += load(cosine + j, count) * (qa * ka + qb * kb) + load(sine + j, count) * (qa * kb - qb * ka);
    }
    scores[slot] = root * total(products);
    largest = std::max(largest, scores[slot]);
  }
  Vec weights{};
  along(slots + 1, scores, [&](int64_t j, int count) {
    const Vec weight = exp(load(scores + j, count) - largest);
    for (int lane = 0; lane < count; lane++) weights[lane] += weight[lane];
    return weight;
  });
  const REAL scale = 1 / total(weights);
  along(width, y, [&](int64_t j, int count) { return scale * scores[slots] * load(v + j, count); });
  add_rows(slots, scores, ring.v, width, scale, y);
}

}  // namespace
