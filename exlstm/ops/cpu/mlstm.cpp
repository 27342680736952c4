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
  const REAL *C0, *n0;  // [B, H, DK, DV], [B, H, DK]
  In* h;                // [B, T, H, DV]
  REAL *d, *C1, *n1;    // [N, B, H, L], [B, H, DK, DV], [B, H, DK]
  REAL *C_kept, *n_kept;  // [groups, B, H, ...] for the backward, or null

  void operator()(int64_t task) const {
    const int64_t L = s.size, dk = s.dk, dv = s.dv;
    Matrix Q(L, dk), K(L, dk), Kw(L, dk), V(L, dv), KT(dk, L), S(L, L), H(L, dv), C(dk, dv), n(1, dk);
    std::vector<REAL> sums(L);
    const At at(s, task);
    const Weights weights = g.weights();
    for (int64_t i = 0; i < dk; i++) std::memcpy(C[i], C0 + (task * dk + i) * dv, dv * sizeof(REAL));
    std::memcpy(n[0], n0 + task * dk, dk * sizeof(REAL));
    for (int64_t c = 0; c < s.chunks(); c++) {
      const int64_t gate = at.gate(c);
      if (C_kept && c % s.group == 0) keep(at.index(c / s.group), C, n);
      fetch(at, q, c, dk, s.scale, Q, nullptr);
      fetch(at, k, c, dk, 1, K, &KT);
      fetch(at, v, c, dv, 1, V, nullptr);
      product(C_LOWER, L, L, dk, Q[0], Q.stride, 1, KT[0], KT.stride, S[0], S.stride, 0);
      weigh(weights, gate, L, S, nullptr, sums.data());
      product(A_LOWER, L, dv, L, S[0], S.stride, 1, V[0], V.stride, H[0], H.stride, 0);
      scale_rows(Q, g.u + gate, L, Q);
      product(ALL, L, dv, dk, Q[0], Q.stride, 1, C[0], C.stride, H[0], H.stride, 1);
      if (g.m)
        for (int64_t t = 0; t < L; t++) d[gate + t] = sums[t] + dot(Q[t], n[0], Q.stride);
      divide(at, weights, c, dv, H, d + gate, h);
      const REAL kept = std::exp(g.kept[at.index(c)]);
      scale_rows(K, g.w + gate, L, Kw);
      product(ALL, dk, dv, L, Kw[0], 1, Kw.stride, V[0], V.stride, C[0], C.stride, kept);
      if (g.m) {
        add(n[0], kept, 1, Kw[0], Kw.stride);
        for (int64_t t = 1; t < L; t++) add(n[0], 1, 1, Kw[t], Kw.stride);
      }
    }
    for (int64_t i = 0; i < dk; i++) std::memcpy(C1 + (task * dk + i) * dv, C[i], dv * sizeof(REAL));
    std::memcpy(n1 + task * dk, n[0], dk * sizeof(REAL));
  }

  void keep(int64_t at, Matrix& C, Matrix& n) const {
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
    const At at(s, task);
    const Weights weights = g.weights();
    transpose(dC1 + task * dk * dv, dk, dv, dv, dCT[0], dCT.stride);
    std::memcpy(dn[0], dn1 + task * dk, dk * sizeof(REAL));
    for (int64_t group = (s.chunks() - 1) / s.group; group >= 0; group--) {
      const int64_t first = group * s.group, last = std::min(first + s.group, s.chunks()) - 1;
      memories(at, group, first, last, K, V, Vw, scaled, CT, n);
      for (int64_t c = last; c >= first; c--) {
        const int64_t gate = at.gate(c);
        Matrix &Cc = CT[c - first], &nc = n[c - first];
        fetch(at, q, c, dk, s.scale, Q, nullptr);
        fetch(at, k, c, dk, 1, K, &KT);
        fetch(at, v, c, dv, 1, V, &VT);
        undivide(at, weights, c, dv, dh, h, d + gate, D, dd.data(), dm);

        product(C_LOWER, L, L, dk, Q[0], Q.stride, 1, KT[0], KT.stride, S[0], S.stride, 0);
        weigh(weights, gate, L, S, &E, nullptr);
        product(C_LOWER, L, L, dv, D[0], D.stride, 1, VT[0], VT.stride, dA[0], dA.stride, 0);
        unweigh(weights, gate, L, S, E, dA, dd.data(), da, dM, nullptr);  // dA becomes the gradient of q k^T

        product(ALL, L, dk, dv, D[0], D.stride, 1, Cc[0], Cc.stride, from_C[0], from_C.stride, 0);
        product(A_LOWER, L, dk, L, dA[0], dA.stride, 1, K[0], K.stride, dQ[0], dQ.stride, 0);
        for (int64_t t = 0; t < L; t++) {
          const REAL u = std::exp(g.u[gate + t]);
          if (g.m) add(from_C[t], 1, dd[t], nc[0], from_C.stride);
          du[gate + t] = u * dot(from_C[t], Q[t], Q.stride);
          add(dQ[t], s.scale, u * s.scale, from_C[t], dQ.stride);
        }
        put(at, c, dk, dQ, dq);

        product(A_UPPER, L, dk, L, dA[0], 1, dA.stride, Q[0], Q.stride, dK[0], dK.stride, 0);
        product(ALL, L, dk, dv, V[0], V.stride, 1, dCT[0], dCT.stride, dKw[0], dKw.stride, 0);
        for (int64_t t = 0; t < L; t++) {
          const REAL w = std::exp(g.w[gate + t]);
          if (g.m) add(dKw[t], 1, 1, dn[0], dKw.stride);
          dw[gate + t] = w * dot(dKw[t], K[t], K.stride);
          add(dK[t], 1, w, dKw[t], dK.stride);
        }
        put(at, c, dk, dK, dk_);

        transpose(dCT[0], dv, dk, dCT.stride, dC[0], dC.stride);
        scale_rows(K, g.w + gate, L, scaled);
        product(A_UPPER, L, dv, L, S[0], 1, S.stride, D[0], D.stride, dV[0], dV.stride, 0);
        product(ALL, L, dv, dk, scaled[0], scaled.stride, 1, dC[0], dC.stride, dV[0], dV.stride, 1);
        put(at, c, dv, dV, dv_);

        const REAL kept = std::exp(g.kept[at.index(c)]);
        REAL through = g.m ? dot(dn[0], nc[0], dn.stride) : 0;
        for (int64_t j = 0; j < dv; j++) through += dot(dCT[j], Cc[j], dCT.stride);
        dkept[at.index(c)] = kept * through;
        scale_rows(Q, g.u + gate, L, scaled);
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
  void memories(const At& at, int64_t group, int64_t first, int64_t last, Matrix& K, Matrix& V, Matrix& Vw, Matrix& Kw,
                std::vector<Matrix>& CT, std::vector<Matrix>& n) const {
    const int64_t dk = s.dk, dv = s.dv, kept_at = at.index(group);
    transpose(C_kept + kept_at * dk * dv, dk, dv, dv, CT[0][0], CT[0].stride);
    std::memcpy(n[0][0], n_kept + kept_at * dk, dk * sizeof(REAL));
    for (int64_t c = first; c < last; c++) {
      const REAL kept = std::exp(g.kept[at.index(c)]);
      const REAL* w = g.w + at.gate(c);
      Matrix &now = CT[c - first], &next = CT[c - first + 1];
      fetch(at, k, c, dk, 1, K, nullptr);
      fetch(at, v, c, dv, 1, V, nullptr);
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
};

}  // namespace

extern "C" {

#define EXLSTM_MLSTM(NAME, IN)                                                                                         \
  void exlstm_mlstm_forward_##NAME(ParallelFor parallel_for, const Sizes* s, const IN* q, const IN* k, const IN* v,    \
                                   const Gates* g, const REAL* C0, const REAL* n0, IN* h, REAL* d, REAL* C1, REAL* n1, \
                                   REAL* C_kept, REAL* n_kept) {                                                       \
    run(Forward<IN>{*s, q, k, v, *g, C0, n0, h, d, C1, n1, C_kept, n_kept}, s->tasks(), parallel_for);                             \
  }                                                                                                                    \
  void exlstm_mlstm_backward_##NAME(ParallelFor parallel_for, const Sizes* s, const IN* q, const IN* k, const IN* v,   \
                                    const Gates* g, const IN* h, const REAL* d, const REAL* C_kept,                    \
                                    const REAL* n_kept, const IN* dh, const REAL* dC1, const REAL* dn1, IN* dq,        \
                                    IN* dk, IN* dv, REAL* da, REAL* dM, REAL* du, REAL* dw, REAL* dkept, REAL* dm,     \
                                    REAL* dC0, REAL* dn0) {                                                            \
    run(Backward<IN>{*s, q, k, v, *g, h, d, C_kept, n_kept, dh, dC1, dn1, dq, dk, dv, da, dM, du, dw, dkept, dm, dC0,  \
                     dn0},                                                                                             \
        s->tasks(), parallel_for);                                                                                                 \
  }

EXLSTM_MLSTM(real, REAL)
EXLSTM_MLSTM(bfloat16, BFloat16)
}
