// The products of the chunkwise mLSTM, forward and backward (exlstm/ops/chunkwise/products.py has the formulas).
//
// A task is one head of one batch row, and walks over its chunks with everything in the cache: the chunk's q, k, v
// (copied there once, widened to REAL), its L x L matrices, and the memory. Of the L x L matrices only the lower
// triangle is computed. The backward computes the memories of a group of chunks again from the one kept at its start;
// it holds them transposed, since that is how its products read them.

#include "chunk.h"

namespace {

struct Sizes {
  int64_t batch, time, heads, dk, dv, size, group;  // size: L; group: chunks from one kept memory to the next
  REAL scale;                                        // of q
  int64_t chunks() const { return (time + size - 1) / size; }
  int64_t tasks() const { return batch * heads; }
};

// Chunks of one head of one row of tensors [B, T, H, D] and gates [N, B, H, L].
struct At {
  const Sizes& s;
  int64_t task, size;
  At(const Sizes& s, int64_t task) : s(s), task(task), size(s.size) {}
  int64_t index(int64_t c) const { return c * s.tasks() + task; }
  int64_t gate(int64_t c) const { return index(c) * size; }
  int64_t row(int64_t c, int64_t t) const {
    const int64_t step = c * size + t;
    return step < s.time ? (task / s.heads * s.time + step) * s.heads + task % s.heads : -1;
  }
};

struct Gates {
  const REAL *a, *M, *u, *w, *kept, *m;  // [N, B, H, L] but kept [N, B, H]
  const int64_t* document;
  Weights weights() const { return {a, M, m, document, nullptr, 0}; }
};

template <class In>
struct Forward {
  Sizes s;
  const In *q, *k, *v;  // [B, T, H, D]
  Gates g;
  const REAL *C0, *n0;  // [B, H, DK, DV], [B, H, DK]; null: an empty memory
  In* h;                // [B, T, H, DV]
  REAL *d, *C1, *n1;    // [N, B, H, L], [B, H, DK, DV], [B, H, DK]
  REAL *C_kept, *n_kept;  // [groups, B, H, ...] for the backward, without the first of an empty memory; or null

  using T = Item<In>;
  struct Space {
    Matrix<T> Q, K, Kw, V, A;
    Matrix<Word<T>> KT;
    Matrix<REAL> S, H, C, n;
    Paired<T> Kw2, V2, C2;
    Steps u, w, inverse, floor;
    explicit Space(const Sizes& s)
        : Q(s.size, s.dk), K(s.size, s.dk), Kw(s.size, s.dk), V(s.size, s.dv), A(s.size, s.size), KT(s.dk, s.size),
          S(s.size, s.size), H(s.size, s.dv), C(s.dk, s.dv), n(1, s.dk), Kw2(s.size, s.dk), V2(s.size, s.dv),
          C2(s.dk, s.dv), u(s.size), w(s.size), inverse(s.size), floor(s.size) {}
  };

  void operator()(int64_t task, Space& x) const {
    const int64_t L = s.size, dk = s.dk, dv = s.dv;
    const At at(s, task);
    const Weights weights = g.weights();
    Within within(weights, L);
    if (C0) {
      for (int64_t i = 0; i < dk; i++) std::memcpy(x.C[i], C0 + (task * dk + i) * dv, dv * sizeof(REAL));
      std::memcpy(x.n[0], n0 + task * dk, dk * sizeof(REAL));
    } else {
      x.n.zero();
    }
    for (int64_t c = 0; c < s.chunks(); c++) {
      const int64_t gate = at.gate(c);
      const bool empty = c == 0 && !C0;  // then x.C is not read
      if (C_kept && c % s.group == 0 && !empty) keep(at.index(c / s.group - !C0), x);
      fetch(at, q, c, dk, x.Q);
      fetch(at, k, c, dk, x.K);
      fetch(at, v, c, dv, x.V);
      x.V2.of(x.V, L);
      if (!empty) x.C2.of(x.C, dk);
      within.enter(gate);
      exps(g.u + gate, s.scale, L, x.u);
      exps(g.w + gate, 1, L, x.w);

      transpose<T>(x.K, L, dk, x.KT);
      product(C_LOWER, L, L, dk, rows_of(x.Q), x.KT, x.S);
      weigh(within, s.scale, x.S, x.A, d + gate);
      product(A_LOWER, L, dv, L, rows_of(x.A), x.V2, x.H);
      if (!empty) product(ALL, L, dv, dk, rows_of(x.Q), x.C2, x.H, {1, nullptr, x.u});
      if (g.m && !empty)
        for (int64_t t = 0; t < L; t++) d[gate + t] += x.u[t] * dot(x.n[0], x.Q[t], x.n.columns);
      inverses(g.m ? g.m + gate : nullptr, d + gate, L, x.inverse, x.floor);
      divide(at, c, dv, x.H, x.inverse, h);

      const REAL kept = std::exp(g.kept[at.index(c)]);
      scale_rows(x.K, x.w, L, x.Kw);
      x.Kw2.of(x.Kw, L);
      product(ALL, dk, dv, L, columns_of(x.Kw2), x.V2, x.C, {empty ? 0 : kept});
      if (g.m) add_rows(x.n, kept, x.w, x.K, L);
    }
    for (int64_t i = 0; i < dk; i++) std::memcpy(C1 + (task * dk + i) * dv, x.C[i], dv * sizeof(REAL));
    std::memcpy(n1 + task * dk, x.n[0], dk * sizeof(REAL));
  }

  void keep(int64_t at, Space& x) const {
    for (int64_t i = 0; i < s.dk; i++) std::memcpy(C_kept + (at * s.dk + i) * s.dv, x.C[i], s.dv * sizeof(REAL));
    std::memcpy(n_kept + at * s.dk, x.n[0], s.dk * sizeof(REAL));
  }
};

template <class In>
struct Backward {
  Sizes s;
  const In *q, *k, *v;
  Gates g;
  const In* h;
  const REAL *d, *C_kept, *n_kept;
  const In* dh;           // [B, T, H, DV]
  const REAL *dC1, *dn1;  // [B, H, DK, DV], [B, H, DK]; null: zeros
  In *dq, *dk_, *dv_;
  REAL *da, *dM, *du, *dw, *dkept, *dm;  // as Gates
  REAL *dC0, *dn0;  // null: the memory was empty at first

  using T = Item<In>;
  struct Space {
    Matrix<T> Q, K, V, D, A, dS, scaled;
    Matrix<Word<T>> KT, VT, dC;
    Matrix<REAL> S, dA, dQ, dK, dV, dCT, dn;
    std::vector<Matrix<REAL>> CT, n;  // of a group
    Paired<T> Q2, K2, D2, A2, dS2, scaled2, CT2, dCT2;
    Steps u, w, dd, inverse, floor, columns;
    explicit Space(const Sizes& s)
        : Q(s.size, s.dk), K(s.size, s.dk), V(s.size, s.dv), D(s.size, s.dv), A(s.size, s.size), dS(s.size, s.size),
          scaled(s.size, s.dk), KT(s.dk, s.size), VT(s.dv, s.size), dC(s.dk, s.dv), S(s.size, s.size),
          dA(s.size, s.size), dQ(s.size, s.dk), dK(s.size, s.dk), dV(s.size, s.dv), dCT(s.dv, s.dk), dn(1, s.dk),
          CT(std::min(s.group, s.chunks()), dCT), n(CT.size(), dn), Q2(s.size, s.dk), K2(s.size, s.dk),
          D2(s.size, s.dv), A2(s.size, s.size), dS2(s.size, s.size), scaled2(s.size, s.dk), CT2(s.dv, s.dk),
          dCT2(s.dv, s.dk), u(s.size), w(s.size), dd(s.size), inverse(s.size), floor(s.size), columns(s.size) {}
  };

  void operator()(int64_t task, Space& x) const {
    const int64_t L = s.size, dk = s.dk, dv = s.dv;
    const At at(s, task);
    const Weights weights = g.weights();
    Within within(weights, L);
    if (dC1) transpose(dC1 + task * dk * dv, dk, dv, dv, x.dCT[0], x.dCT.stride);
    else x.dCT.zero();
    if (dn1) std::memcpy(x.dn[0], dn1 + task * dk, dk * sizeof(REAL));
    else x.dn.zero();
    for (int64_t group = (s.chunks() - 1) / s.group; group >= 0; group--) {
      const int64_t first = group * s.group, last = std::min(first + s.group, s.chunks()) - 1;
      memories(at, group, first, last, x);
      for (int64_t c = last; c >= first; c--) {
        const int64_t gate = at.gate(c), columns = x.dCT.columns;
        Matrix<REAL>&CT = x.CT[c - first], &n = x.n[c - first];
        // Whether the memory at the chunk's start holds nothing, and whether nothing reads the one at its end.
        const bool empty = c == 0 && !dC0, unread = c == s.chunks() - 1 && !dC1 && !dn1;
        fetch(at, q, c, dk, x.Q);
        fetch(at, k, c, dk, x.K);
        fetch(at, v, c, dv, x.V);
        const REAL* m = g.m ? g.m + gate : nullptr;
        undivide(at, c, dv, dh, h, m, d + gate, x.inverse, x.floor, x.D, x.dd, m ? dm + gate : nullptr);
        within.enter(gate);
        exps(g.u + gate, s.scale, L, x.u);
        exps(g.w + gate, 1, L, x.w);

        transpose<T>(x.K, L, dk, x.KT);
        product(C_LOWER, L, L, dk, rows_of(x.Q), x.KT, x.S);
        transpose<T>(x.V, L, dv, x.VT);
        product(C_LOWER, L, L, dv, rows_of(x.D), x.VT, x.dA);
        unweigh(within, gate, s.scale, x.S, x.dA, x.dd, x.A, x.dS, x.columns, da, dM, nullptr);
        x.Q2.of(x.Q, L);
        x.K2.of(x.K, L);
        x.D2.of(x.D, L);
        x.A2.of(x.A, L);
        x.dS2.of(x.dS, L);

        if (empty) {
          std::fill_n(du + gate, L, REAL(0));
        } else {
          x.CT2.of(CT, dv);
          product(ALL, L, dk, dv, rows_of(x.D), x.CT2, x.dQ);
          for (int64_t t = 0; t < L; t++) {
            if (g.m) add(x.dQ[t], 1, x.dd[t], n[0], columns);
            du[gate + t] = x.u[t] * dot(x.dQ[t], x.Q[t], columns);
          }
        }
        product(A_LOWER, L, dk, L, rows_of(x.dS), x.K2, x.dQ, {REAL(empty ? 0 : 1), x.u});
        put(at, c, dk, x.dQ, dq);

        if (unread) {
          std::fill_n(dw + gate, L, REAL(0));
        } else {
          x.dCT2.of(x.dCT, dv);
          product(ALL, L, dk, dv, rows_of(x.V), x.dCT2, x.dK);
          for (int64_t t = 0; t < L; t++) {
            if (g.m) add(x.dK[t], 1, 1, x.dn[0], columns);
            dw[gate + t] = x.w[t] * dot(x.dK[t], x.K[t], columns);
          }
        }
        product(A_UPPER, L, dk, L, columns_of(x.dS2), x.Q2, x.dK, {REAL(unread ? 0 : 1), x.w});
        put(at, c, dk, x.dK, dk_);

        product(A_UPPER, L, dv, L, columns_of(x.A2), x.D2, x.dV);
        if (!unread) {
          transpose<T>(x.dCT, dv, dk, x.dC);
          product(ALL, L, dv, dk, rows_of(x.K), x.dC, x.dV, {1, nullptr, x.w});
        }
        put(at, c, dv, x.dV, dv_);

        dkept[at.index(c)] = 0;
        if (empty) continue;  // of this memory no gradient is wanted either
        const REAL kept = std::exp(g.kept[at.index(c)]);
        REAL through = g.m ? dot(x.dn[0], n[0], columns) : 0;
        for (int64_t j = 0; j < dv; j++) through += dot(x.dCT[j], CT[j], columns);
        dkept[at.index(c)] = kept * through;
        scale_rows(x.Q, x.u, L, x.scaled);
        x.scaled2.of(x.scaled, L);
        product(ALL, dv, dk, L, columns_of(x.D2), x.scaled2, x.dCT, {kept});
        if (g.m) {
          for (int64_t t = 0; t < L; t++) x.dd[t] *= x.u[t];
          add_rows(x.dn, kept, x.dd, x.Q, L);
        }
      }
    }
    if (!dC0) return;
    transpose(x.dCT[0], dv, dk, x.dCT.stride, dC0 + task * dk * dv, dv);
    std::memcpy(dn0 + task * dk, x.dn[0], dk * sizeof(REAL));
  }

  // The memories at the start of a group's chunks, from the one kept at its start.
  void memories(const At& at, int64_t group, int64_t first, int64_t last, Space& x) const {
    const int64_t L = s.size, dk = s.dk, dv = s.dv, kept_at = at.index(group - !dC0);
    if (group > 0 || dC0) {
      transpose(C_kept + kept_at * dk * dv, dk, dv, dv, x.CT[0][0], x.CT[0].stride);
      std::memcpy(x.n[0][0], n_kept + kept_at * dk, dk * sizeof(REAL));
    } else if (last > first) {
      x.CT[0].zero();
      x.n[0].zero();
    }
    for (int64_t c = first; c < last; c++) {
      const REAL kept = std::exp(g.kept[at.index(c)]);
      Matrix<REAL>&next = x.CT[c - first + 1], &n = x.n[c - first + 1];
      fetch(at, k, c, dk, x.K);
      fetch(at, v, c, dv, x.V);
      exps(g.w + at.gate(c), 1, L, x.w);
      scale_rows(x.K, x.w, L, x.scaled);
      x.scaled2.of(x.scaled, L);
      x.D2.of(x.V, L);
      next.lines = x.CT[c - first].lines;
      product(ALL, dv, dk, L, columns_of(x.D2), x.scaled2, next, {kept});
      n.lines = x.n[c - first].lines;
      if (g.m) add_rows(n, kept, x.w, x.K, L);
    }
  }
};

}  // namespace

extern "C" {

#define EXLSTM_MLSTM(NAME, IN)                                                                                         \
  void exlstm_mlstm_forward_##NAME(ParallelFor parallel_for, const Sizes* s, const IN* q, const IN* k, const IN* v,    \
                                   const Gates* g, const REAL* C0, const REAL* n0, IN* h, REAL* d, REAL* C1, REAL* n1, \
                                   REAL* C_kept, REAL* n_kept) {                                                       \
    run(Forward<IN>{*s, q, k, v, *g, C0, n0, h, d, C1, n1, C_kept, n_kept}, s->tasks(), parallel_for);                 \
  }                                                                                                                    \
  void exlstm_mlstm_backward_##NAME(ParallelFor parallel_for, const Sizes* s, const IN* q, const IN* k, const IN* v,   \
                                    const Gates* g, const IN* h, const REAL* d, const REAL* C_kept,                    \
                                    const REAL* n_kept, const IN* dh, const REAL* dC1, const REAL* dn1, IN* dq,        \
                                    IN* dk, IN* dv, REAL* da, REAL* dM, REAL* du, REAL* dw, REAL* dkept, REAL* dm,     \
                                    REAL* dC0, REAL* dn0) {                                                            \
    run(Backward<IN>{*s, q, k, v, *g, h, d, C_kept, n_kept, dh, dC1, dn1, dq, dk, dv, da, dM, du, dw, dkept, dm, dC0,  \
                     dn0},                                                                                             \
        s->tasks(), parallel_for);                                                                                     \
  }

EXLSTM_MLSTM(real, REAL)
EXLSTM_MLSTM(bfloat16, BFloat16)
}
