// The products of the chunkwise mLSTM, forward and backward (exlstm/ops/chunkwise/products.py has the formulas).
//
// A task is one head of one batch row, and walks over its chunks with everything in the cache: the chunk's q, k, v
// (copied there once, widened to REAL), its L x L matrices, and the memory. Of the L x L matrices only the lower
// triangle is computed. The backward computes the memories of a group of chunks again from the one kept at its start;
// it holds them transposed, since that is how its products read them.

#include "product.h"

namespace {

struct Sizes {
  int64_t batch, time, heads, dk, dv, size, group;  // size: L; group: chunks from one kept memory to the next
  REAL scale;                                        // of q
  int64_t chunks() const { return (time + size - 1) / size; }
  int64_t tasks() const { return batch * heads; }
  int64_t gate(int64_t c, int64_t task) const { return (c * tasks() + task) * size; }  // into [N, B, H, L]
  int64_t row(int64_t task, int64_t t, int64_t width) const {                          // into [B, T, H, width]
    return ((task / heads * time + t) * heads + task % heads) * width;
  }
  int64_t length(int64_t c) const { return c + 1 < chunks() ? size : time - c * size; }
};

struct Gates {
  const REAL *a, *M, *u, *w, *kept, *m;  // [N, B, H, L] but kept [N, B, H]; m is null where nothing is normalised
  const int64_t* document;               // [N, B, H, L], or null
};

// A matrix of a task, zero at first, with room for the padding that `product` touches.
struct Matrix {
  int64_t stride;
  std::vector<REAL> data;
  Matrix(int64_t rows, int64_t columns)
      : stride(padded_columns(columns)), data((padded_rows(rows) + ROWS) * padded_columns(columns)) {}
  REAL* operator[](int64_t row) { return data.data() + row * stride; }
};

constexpr REAL EPS = 1e-6;
inline REAL floor_of(REAL m) {
  const REAL most = IS_FLOAT ? 80 : 700;
  return std::exp(-m < most ? -m : most);
}

// Copy a chunk of x [B, T, H, width], and its transpose if wanted; rows that are not there are 0.
template <class In>
void fetch(const Sizes& s, const In* x, int64_t task, int64_t c, int64_t width, REAL scale, Matrix& to, Matrix* flipped) {
  const int64_t length = s.length(c);
  for (int64_t t = 0; t < s.size; t++) {
    REAL* row = to[t];
    if (t < length) {
      const In* from = x + s.row(task, c * s.size + t, width);
      for (int64_t j = 0; j < width; j++) row[j] = scale * widen(from[j]);
    } else {
      std::memset(row, 0, width * sizeof(REAL));
    }
  }
  if (flipped) transpose(to[0], s.size, width, to.stride, (*flipped)[0], flipped->stride);
}

// E_ts = exp(a_s - M_t) where s is visible at t, else 0; A = E S in place of S. Row sums of A go to `sums`.
void weigh(const Sizes& s, const Gates& g, int64_t at, Matrix& S, Matrix* E, REAL* sums) {
  const REAL *a = g.a + at, *M = g.M + at;
  for (int64_t t = 0; t < s.size; t++) {
    const int64_t filled = std::min(round_up(std::min((t / ROWS + 1) * ROWS, s.size), LANES), S.stride);
    Vec total{};
    for (int64_t j = 0; j < filled; j += LANES) {
      const int count = int(std::min<int64_t>(LANES, std::max<int64_t>(t + 1 - j, 0)));
      Vec e{};
      if (count > 0) {
        e = exp(load(a + j, int(std::min<int64_t>(LANES, s.size - j))) - M[t]);
        for (int i = count; i < LANES; i++) e[i] = 0;
        if (g.document)
          for (int i = 0; i < count; i++)
            if (g.document[at + j + i] != g.document[at + t]) e[i] = 0;
      }
      const Vec product = count > 0 ? e * load(S[t] + j) : Vec{};
      store(S[t] + j, product);
      if (E) store((*E)[t] + j, e);
      total += product;
    }
    if (sums) sums[t] = sum(total);
  }
}

void scale_rows(Matrix& from, const REAL* log, int64_t rows, Matrix& to) {
  for (int64_t t = 0; t < rows; t++) {
    const REAL weight = std::exp(log[t]);
    for (int64_t j = 0; j < from.stride; j += LANES) store(to[t] + j, weight * load(from[t] + j));
  }
}

REAL dot(const REAL* x, const REAL* y, int64_t padded) {
  Vec total{};
  for (int64_t j = 0; j < padded; j += LANES) total += load(x + j) * load(y + j);
  return sum(total);
}

// y = keep y + weight x
void add(REAL* y, REAL keep, REAL weight, const REAL* x, int64_t padded) {
  for (int64_t j = 0; j < padded; j += LANES) store(y + j, keep * load(y + j) + weight * load(x + j));
}

template <class In>
struct Forward {
  Sizes s;
  const In *q, *k, *v;  // [B, T, H, D]
  Gates g;
  const REAL *C0, *n0;  // [B, H, DK, DV], [B, H, DK]
  In* h;                // [B, T, H, DV]
  REAL *d, *C1, *n1;    // [N, B, H, L], [B, H, DK, DV], [B, H, DK]
  REAL *C_kept, *n_kept;  // [groups, B, H, ...] for the backward, or null

  void operator()(int64_t task) const {
    const int64_t L = s.size, dk = s.dk, dv = s.dv;
    Matrix Q(L, dk), K(L, dk), Kw(L, dk), V(L, dv), KT(dk, L), S(L, L), H(L, dv), C(dk, dv), n(1, dk);
    std::vector<REAL> sums(L);
    for (int64_t i = 0; i < dk; i++) std::memcpy(C[i], C0 + (task * dk + i) * dv, dv * sizeof(REAL));
    std::memcpy(n[0], n0 + task * dk, dk * sizeof(REAL));
    for (int64_t c = 0; c < s.chunks(); c++) {
      const int64_t at = s.gate(c, task);
      if (C_kept && c % s.group == 0) keep(c / s.group, task, C, n);
      fetch(s, q, task, c, dk, s.scale, Q, nullptr);
      fetch(s, k, task, c, dk, 1, K, &KT);
      fetch(s, v, task, c, dv, 1, V, nullptr);
      product(C_LOWER, L, L, dk, Q[0], Q.stride, 1, KT[0], KT.stride, S[0], S.stride, 0);
      weigh(s, g, at, S, nullptr, sums.data());
      product(A_LOWER, L, dv, L, S[0], S.stride, 1, V[0], V.stride, H[0], H.stride, 0);
      scale_rows(Q, g.u + at, L, Q);
      product(ALL, L, dv, dk, Q[0], Q.stride, 1, C[0], C.stride, H[0], H.stride, 1);
      for (int64_t t = 0; t < s.length(c); t++) {
        REAL inverse = 1;
        if (g.m) {
          d[at + t] = sums[t] + dot(Q[t], n[0], Q.stride);
          inverse = 1 / (std::max(std::fabs(d[at + t]), floor_of(g.m[at + t])) + EPS);
        }
        In* out = h + s.row(task, c * L + t, dv);
        for (int64_t j = 0; j < dv; j++) narrow(H[t][j] * inverse, out[j]);
      }
      const REAL kept = std::exp(g.kept[c * s.tasks() + task]);
      scale_rows(K, g.w + at, L, Kw);
      product(ALL, dk, dv, L, Kw[0], 1, Kw.stride, V[0], V.stride, C[0], C.stride, kept);
      if (g.m) {
        add(n[0], kept, 1, Kw[0], Kw.stride);
        for (int64_t t = 1; t < L; t++) add(n[0], 1, 1, Kw[t], Kw.stride);
      }
    }
    for (int64_t i = 0; i < dk; i++) std::memcpy(C1 + (task * dk + i) * dv, C[i], dv * sizeof(REAL));
    std::memcpy(n1 + task * dk, n[0], dk * sizeof(REAL));
  }

  void keep(int64_t group, int64_t task, Matrix& C, Matrix& n) const {
    const int64_t at = group * s.tasks() + task;
    for (int64_t i = 0; i < s.dk; i++) std::memcpy(C_kept + (at * s.dk + i) * s.dv, C[i], s.dv * sizeof(REAL));
    std::memcpy(n_kept + at * s.dk, n[0], s.dk * sizeof(REAL));
  }
};

template <class In>
struct Backward {
  Sizes s;
  const In *q, *k, *v;
  Gates g;
  const In* h;
  const REAL *d, *C_kept, *n_kept;
  const In* dh;             // [B, T, H, DV]
  const REAL *dC1, *dn1;    // [B, H, DK, DV], [B, H, DK]
  In *dq, *dk_, *dv_;
  REAL *da, *dM, *du, *dw, *dkept, *dm;  // as Gates
  REAL *dC0, *dn0;

  void operator()(int64_t task) const {
    const int64_t L = s.size, dk = s.dk, dv = s.dv;
    Matrix Q(L, dk), K(L, dk), V(L, dv), KT(dk, L), VT(dv, L), S(L, L), E(L, L), dA(L, L), D(L, dv), scaled(L, dk),
        from_C(L, dk), dQ(L, dk), dK(L, dk), dKw(L, dk), dV(L, dv), dC(dk, dv), dCT(dv, dk), dn(1, dk), Vw(L, dv);
    std::vector<Matrix> CT(s.group, Matrix(dv, dk)), n(s.group, Matrix(1, dk));
    std::vector<REAL> dd(L);
    transpose(dC1 + task * dk * dv, dk, dv, dv, dCT[0], dCT.stride);
    std::memcpy(dn[0], dn1 + task * dk, dk * sizeof(REAL));
    for (int64_t group = (s.chunks() - 1) / s.group; group >= 0; group--) {
      const int64_t first = group * s.group, last = std::min(first + s.group, s.chunks()) - 1;
      memories(task, group, first, last, K, V, Vw, scaled, CT, n);
      for (int64_t c = last; c >= first; c--) {
        const int64_t at = s.gate(c, task);
        Matrix &Cc = CT[c - first], &nc = n[c - first];
        fetch(s, q, task, c, dk, s.scale, Q, nullptr);
        fetch(s, k, task, c, dk, 1, K, &KT);
        fetch(s, v, task, c, dv, 1, V, &VT);
        quotient(task, c, D, dd);

        product(C_LOWER, L, L, dk, Q[0], Q.stride, 1, KT[0], KT.stride, S[0], S.stride, 0);
        weigh(s, g, at, S, &E, nullptr);
        product(C_LOWER, L, L, dv, D[0], D.stride, 1, VT[0], VT.stride, dA[0], dA.stride, 0);
        logarithms(at, S, E, dA, dd);  // dA becomes the gradient of q k^T

        product(ALL, L, dk, dv, D[0], D.stride, 1, Cc[0], Cc.stride, from_C[0], from_C.stride, 0);
        product(A_LOWER, L, dk, L, dA[0], dA.stride, 1, K[0], K.stride, dQ[0], dQ.stride, 0);
        for (int64_t t = 0; t < L; t++) {
          const REAL u = std::exp(g.u[at + t]);
          if (g.m) add(from_C[t], 1, dd[t], nc[0], from_C.stride);
          du[at + t] = u * dot(from_C[t], Q[t], Q.stride);
          add(dQ[t], s.scale, u * s.scale, from_C[t], dQ.stride);
        }
        put(task, c, dk, dQ, dq);

        product(A_UPPER, L, dk, L, dA[0], 1, dA.stride, Q[0], Q.stride, dK[0], dK.stride, 0);
        product(ALL, L, dk, dv, V[0], V.stride, 1, dCT[0], dCT.stride, dKw[0], dKw.stride, 0);
        for (int64_t t = 0; t < L; t++) {
          const REAL w = std::exp(g.w[at + t]);
          if (g.m) add(dKw[t], 1, 1, dn[0], dKw.stride);
          dw[at + t] = w * dot(dKw[t], K[t], K.stride);
          add(dK[t], 1, w, dKw[t], dK.stride);
        }
        put(task, c, dk, dK, dk_);

        transpose(dCT[0], dv, dk, dCT.stride, dC[0], dC.stride);
        scale_rows(K, g.w + at, L, scaled);
        product(A_UPPER, L, dv, L, S[0], 1, S.stride, D[0], D.stride, dV[0], dV.stride, 0);
        product(ALL, L, dv, dk, scaled[0], scaled.stride, 1, dC[0], dC.stride, dV[0], dV.stride, 1);
        put(task, c, dv, dV, dv_);

        const REAL kept = std::exp(g.kept[c * s.tasks() + task]);
        REAL through = g.m ? dot(dn[0], nc[0], dn.stride) : 0;
        for (int64_t j = 0; j < dv; j++) through += dot(dCT[j], Cc[j], dCT.stride);
        dkept[c * s.tasks() + task] = kept * through;
        scale_rows(Q, g.u + at, L, scaled);
        product(ALL, dv, dk, L, D[0], 1, D.stride, scaled[0], scaled.stride, dCT[0], dCT.stride, kept);
        if (g.m) {
          add(dn[0], kept, dd[0], scaled[0], dn.stride);
          for (int64_t t = 1; t < L; t++) add(dn[0], 1, dd[t], scaled[t], dn.stride);
        }
      }
    }
    transpose(dCT[0], dv, dk, dCT.stride, dC0 + task * dk * dv, dv);
    std::memcpy(dn0 + task * dk, dn[0], dk * sizeof(REAL));
  }

  // The memories at the start of a group's chunks, from the one kept at its start.
  void memories(int64_t task, int64_t group, int64_t first, int64_t last, Matrix& K, Matrix& V, Matrix& Vw, Matrix& Kw,
                std::vector<Matrix>& CT, std::vector<Matrix>& n) const {
    const int64_t dk = s.dk, dv = s.dv, at = group * s.tasks() + task;
    transpose(C_kept + at * dk * dv, dk, dv, dv, CT[0][0], CT[0].stride);
    std::memcpy(n[0][0], n_kept + at * dk, dk * sizeof(REAL));
    for (int64_t c = first; c < last; c++) {
      const REAL kept = std::exp(g.kept[c * s.tasks() + task]);
      const REAL* w = g.w + s.gate(c, task);
      Matrix &now = CT[c - first], &next = CT[c - first + 1];
      fetch(s, k, task, c, dk, 1, K, nullptr);
      fetch(s, v, task, c, dv, 1, V, nullptr);
      scale_rows(V, w, s.size, Vw);
      next.data = now.data;
      product(ALL, dv, dk, s.size, Vw[0], 1, Vw.stride, K[0], K.stride, next[0], next.stride, kept);
      n[c - first + 1].data = n[c - first].data;
      if (!g.m) continue;
      scale_rows(K, w, s.size, Kw);
      add(n[c - first + 1][0], kept, 1, Kw[0], Kw.stride);
      for (int64_t t = 1; t < s.size; t++) add(n[c - first + 1][0], 1, 1, Kw[t], Kw.stride);
    }
  }

  // Through h = read / (max(|d|, floor) + eps): D is the gradient of the read, dd that of d.
  void quotient(int64_t task, int64_t c, Matrix& D, std::vector<REAL>& dd) const {
    fetch(s, dh, task, c, s.dv, 1, D, nullptr);
    std::fill(dd.begin(), dd.end(), REAL(0));
    if (!g.m) return;
    const int64_t at = s.gate(c, task);
    for (int64_t t = 0; t < s.size; t++) {
      dm[at + t] = 0;
      if (t >= s.length(c)) continue;
      const REAL value = d[at + t], size = std::fabs(value), m = g.m[at + t], floor = floor_of(m);
      const REAL inverse = 1 / (std::max(size, floor) + EPS);
      const In* out = h + s.row(task, c * s.size + t, s.dv);
      REAL through = 0;
      for (int64_t j = 0; j < s.dv; j++) {
        D[t][j] *= inverse;
        through -= D[t][j] * widen(out[j]);
      }
      const REAL to_d = size > floor ? 1 : size == floor ? 0.5 : 0;  // as torch.maximum has it
      dd[t] = through * to_d * (value > 0 ? 1 : value < 0 ? -1 : 0);
      if (-m <= (IS_FLOAT ? 80 : 700)) dm[at + t] = -through * (1 - to_d) * floor;
    }
  }

  // Through A = E S and E = exp(a - M); on return dA is the gradient of S.
  void logarithms(int64_t at, Matrix& A, Matrix& E, Matrix& dA, const std::vector<REAL>& dd) const {
    std::vector<REAL> columns(A.stride);
    for (int64_t t = 0; t < s.size; t++) {
      const int64_t filled = std::min(round_up(std::min((t / ROWS + 1) * ROWS, s.size), LANES), A.stride);
      Vec total{};
      for (int64_t j = 0; j < filled; j += LANES) {
        const Vec e = load(E[t] + j);
        // Above the diagonal dA was not computed; its weight is 0 there.
        const Vec through = e == 0 ? Vec{} : load(dA[t] + j) + dd[t], log = through * load(A[t] + j);
        store(dA[t] + j, through * e);
        store(&columns[j], load(&columns[j]) + log);
        total += log;
      }
      dM[at + t] = -sum(total);
    }
    std::memcpy(da + at, columns.data(), s.size * sizeof(REAL));
  }

  void put(int64_t task, int64_t c, int64_t width, Matrix& from, In* to) const {
    for (int64_t t = 0; t < s.length(c); t++) {
      In* out = to + s.row(task, c * s.size + t, width);
      for (int64_t j = 0; j < width; j++) narrow(from[t][j], out[j]);
    }
  }
};

template <class Work>
void run(const Work& work, ParallelFor parallel_for) {
  const auto some = [](int64_t begin, int64_t end, void* pointer) {
    for (int64_t task = begin; task < end; task++) (*static_cast<const Work*>(pointer))(task);
  };
  void* pointer = const_cast<void*>(static_cast<const void*>(&work));
  if (parallel_for)
    parallel_for(0, work.s.tasks(), 1, some, pointer);
  else
    some(0, work.s.tasks(), pointer);
}

}  // namespace

extern "C" {

#define EXLSTM_MLSTM(NAME, IN)                                                                                         \
  void exlstm_mlstm_forward_##NAME(ParallelFor parallel_for, const Sizes* s, const IN* q, const IN* k, const IN* v,    \
                                   const Gates* g, const REAL* C0, const REAL* n0, IN* h, REAL* d, REAL* C1, REAL* n1, \
                                   REAL* C_kept, REAL* n_kept) {                                                       \
    run(Forward<IN>{*s, q, k, v, *g, C0, n0, h, d, C1, n1, C_kept, n_kept}, parallel_for);                             \
  }                                                                                                                    \
  void exlstm_mlstm_backward_##NAME(ParallelFor parallel_for, const Sizes* s, const IN* q, const IN* k, const IN* v,   \
                                    const Gates* g, const IN* h, const REAL* d, const REAL* C_kept,                    \
                                    const REAL* n_kept, const IN* dh, const REAL* dC1, const REAL* dn1, IN* dq,        \
                                    IN* dk, IN* dv, REAL* da, REAL* dM, REAL* du, REAL* dw, REAL* dkept, REAL* dm,     \
                                    REAL* dC0, REAL* dn0) {                                                            \
    run(Backward<IN>{*s, q, k, v, *g, h, d, C_kept, n_kept, dh, dC1, dn1, dq, dk, dv, da, dM, du, dw, dkept, dm, dC0,  \
                     dn0},                                                                                             \
        parallel_for);                                                                                                 \
  }

EXLSTM_MLSTM(real, REAL)
EXLSTM_MLSTM(bfloat16, BFloat16)
}
