// The products of the chunkwise hierarchical mLSTM, forward and backward.
//
// A task is one head of one document, and walks over its chunks as one counts in binary: slot b holds the memory of
// the block of 2^b chunks that bit b of the chunk's number p stands for. Chunk p reads the slots of its set bits; its
// own memory then joins the slots of p's trailing ones, and is put into the slot after them. Each chunk so ends with
// exactly one new slot, which is all that the backward has to keep; it holds them transposed, as its products read
// them, and counts down.

#include "chunk.h"

namespace {

struct Sizes {
  int64_t documents, chunks, heads, dk, dv, size, depth, levels;  // size: L; depth: slots
  REAL scale;                                                     // of q
  int64_t tasks() const { return documents * heads; }
};

struct Gates {
  const REAL *a, *M, *m, *w;   // [M, H, L]
  const REAL* level;           // [M, H, L, levels]
  const REAL* u;               // [depth, M, H, L] of slot b at a step
  const REAL *older, *newer;   // [depth, M, H] of slot b and of what has been joined, where a chunk joins slot b
  const int64_t* step;         // [M, L] the step in [B * T], or -1
  const int64_t* first;        // [documents + 1] the first chunk of every document
  Weights weights(int64_t levels) const { return {a, M, m, nullptr, level, levels}; }
};

// Chunks of one head of one document.
struct At {
  const Sizes& s;
  const int64_t* step;
  int64_t head, first, last, size;
  At(const Sizes& s, const Gates& g, int64_t task)
      : s(s), step(g.step), head(task % s.heads), first(g.first[task / s.heads]),
        last(g.first[task / s.heads + 1] - 1), size(s.size) {}
  int64_t index(int64_t c) const { return c * s.heads + head; }
  int64_t index(int64_t b, int64_t c) const { return (b * s.chunks + c) * s.heads + head; }
  int64_t gate(int64_t c) const { return index(c) * size; }
  int64_t row(int64_t c, int64_t t) const {
    const int64_t at = step[c * size + t];
    return at < 0 ? -1 : at * s.heads + head;
  }
  bool full(int64_t c) const { return step[c * size + size - 1] >= 0; }  // else nothing follows it
};

inline int64_t trailing_ones(int64_t p) { return __builtin_ctzll(~uint64_t(p)); }

template <class In>
struct Forward {
  Sizes s;
  const In *q, *k, *v;    // [B, T, H, D]
  Gates g;
  In* h;                  // [B, T, H, DV]
  REAL *d;                // [M, H, L]
  REAL *C1, *n1;          // [documents, depth, H, DK, DV], [.., DK], zero: the slots after the last full chunk
  REAL *CT_kept, *n_kept; // [M, H, DV, padded DK], [M, H, padded DK] for the backward, or null

  void operator()(int64_t task) const {
    const int64_t L = s.size, dk = s.dk, dv = s.dv;
    Matrix Q(L, dk), Qu(L, dk), K(L, dk), Kw(L, dk), V(L, dv), KT(dk, L), S(L, L), H(L, dv), leaf(dk, dv), n(1, dk);
    std::vector<Matrix> C(s.depth, Matrix(dk, dv)), ns(s.depth, Matrix(1, dk));
    const At at(s, g, task);
    const Weights weights = g.weights(s.levels);
    for (int64_t c = at.first; c <= at.last; c++) {
      const int64_t gate = at.gate(c), p = c - at.first;
      fetch(at, q, c, dk, s.scale, Q, nullptr);
      fetch(at, k, c, dk, 1, K, &KT);
      fetch(at, v, c, dv, 1, V, nullptr);
      product(C_LOWER, L, L, dk, Q[0], Q.stride, 1, KT[0], KT.stride, S[0], S.stride, 0);
      weigh(weights, gate, L, S, nullptr, d + gate);
      product(A_LOWER, L, dv, L, S[0], S.stride, 1, V[0], V.stride, H[0], H.stride, 0);
      for (int64_t b = 0; p >> b; b++) {
        if (!(p >> b & 1)) continue;
        scale_rows(Q, g.u + at.index(b, c) * L, L, Qu);
        product(ALL, L, dv, dk, Qu[0], Qu.stride, 1, C[b][0], C[b].stride, H[0], H.stride, 1);
        for (int64_t t = 0; t < L; t++) d[gate + t] += dot(Qu[t], ns[b][0], Qu.stride);
      }
      divide(at, weights, c, dv, H, d + gate, h);
      if (!at.full(c)) continue;

      scale_rows(K, g.w + gate, L, Kw);
      product(ALL, dk, dv, L, Kw[0], 1, Kw.stride, V[0], V.stride, leaf[0], leaf.stride, 0);
      add(n[0], 0, 1, Kw[0], Kw.stride);
      for (int64_t t = 1; t < L; t++) add(n[0], 1, 1, Kw[t], Kw.stride);
      const int64_t free = trailing_ones(p);
      for (int64_t b = 0; b < free; b++) {
        const REAL older = std::exp(g.older[at.index(b, c)]), newer = std::exp(g.newer[at.index(b, c)]);
        for (int64_t i = 0; i < dk; i++) add(leaf[i], newer, older, C[b][i], leaf.stride);
        add(n[0], newer, older, ns[b][0], n.stride);
      }
      std::swap(C[free].data, leaf.data);
      ns[free].data = n.data;
      if (CT_kept) {
        REAL* kept = CT_kept + at.index(c) * dv * Q.stride;
        if (dk < Q.stride) std::memset(kept, 0, dv * Q.stride * sizeof(REAL));  // the padding is read as well
        transpose(C[free][0], dk, dv, C[free].stride, kept, Q.stride);
        std::memcpy(n_kept + at.index(c) * Q.stride, n[0], Q.stride * sizeof(REAL));
      }
    }
    const int64_t count = at.last - at.first + at.full(at.last);
    for (int64_t b = 0; b < s.depth; b++) {
      if (!(count >> b & 1)) continue;
      const int64_t slot = ((task / s.heads) * s.depth + b) * s.heads + at.head;
      for (int64_t i = 0; i < dk; i++) std::memcpy(C1 + (slot * dk + i) * dv, C[b][i], dv * sizeof(REAL));
      std::memcpy(n1 + slot * dk, ns[b][0], dk * sizeof(REAL));
    }
  }
};

template <class In>
struct Backward {
  Sizes s;
  const In *q, *k, *v;
  Gates g;
  const In* h;
  const REAL *d, *CT_kept, *n_kept;
  const In* dh;
  const REAL *dC1, *dn1;
  In *dq, *dk_, *dv_;                                    // zero where no step is present
  REAL *da, *dM, *dm, *dw, *dlevel, *du, *dolder, *dnewer;  // as Gates, the last three zero at first

  void operator()(int64_t task) const {
    const int64_t L = s.size, dk = s.dk, dv = s.dv;
    Matrix Q(L, dk), K(L, dk), V(L, dv), KT(dk, L), VT(dv, L), S(L, L), E(L, L), dA(L, L), D(L, dv), scaled(L, dk),
        from_C(L, dk), dQ(L, dk), dK(L, dk), dKw(L, dk), dV(L, dv), G(dk, dv), GT(dv, dk), gn(1, dk);
    std::vector<Matrix> dCT(s.depth, Matrix(dv, dk)), dn(s.depth, Matrix(1, dk));
    std::vector<REAL> dd(L);
    const At at(s, g, task);
    const Weights weights = g.weights(s.levels);
    const int64_t stride = Q.stride, count = at.last - at.first + at.full(at.last);
    for (int64_t b = 0; b < s.depth; b++) {
      if (!(count >> b & 1)) continue;
      const int64_t slot = ((task / s.heads) * s.depth + b) * s.heads + at.head;
      transpose(dC1 + slot * dk * dv, dk, dv, dv, dCT[b][0], stride);
      std::memcpy(dn[b][0], dn1 + slot * dk, dk * sizeof(REAL));
    }
    for (int64_t c = at.last; c >= at.first; c--) {
      const int64_t gate = at.gate(c), p = c - at.first;
      fetch(at, q, c, dk, s.scale, Q, nullptr);
      fetch(at, k, c, dk, 1, K, &KT);
      fetch(at, v, c, dv, 1, V, &VT);
      undivide(at, weights, c, dv, dh, h, d + gate, D, dd.data(), dm);

      product(C_LOWER, L, L, dk, Q[0], stride, 1, KT[0], KT.stride, S[0], S.stride, 0);
      weigh(weights, gate, L, S, &E, nullptr);
      product(C_LOWER, L, L, dv, D[0], D.stride, 1, VT[0], VT.stride, dA[0], dA.stride, 0);
      unweigh(weights, gate, L, S, E, dA, dd.data(), da, dM, dlevel);  // dA becomes the gradient of q k^T
      product(A_LOWER, L, dk, L, dA[0], dA.stride, 1, K[0], stride, dQ[0], stride, 0);
      product(A_UPPER, L, dk, L, dA[0], 1, dA.stride, Q[0], stride, dK[0], stride, 0);
      product(A_UPPER, L, dv, L, S[0], 1, S.stride, D[0], D.stride, dV[0], D.stride, 0);

      if (at.full(c)) {
        part(at, c, p, dCT, dn, GT, gn);
        product(ALL, L, dk, dv, V[0], V.stride, 1, GT[0], stride, dKw[0], stride, 0);
        REAL leaf = 0;
        for (int64_t t = 0; t < L; t++) {
          const REAL w = std::exp(g.w[gate + t]);
          add(dKw[t], 1, 1, gn[0], stride);
          leaf += dw[gate + t] = w * dot(dKw[t], K[t], stride);
          add(dK[t], 1, w, dKw[t], stride);
        }
        transpose(GT[0], dv, dk, stride, G[0], G.stride);
        scale_rows(K, g.w + gate, L, scaled);
        product(ALL, L, dv, dk, scaled[0], stride, 1, G[0], G.stride, dV[0], dV.stride, 1);
        // What has been joined below slot b consists of this chunk and the slots before b.
        for (int64_t b = 0; b < trailing_ones(p); b++) {
          dnewer[at.index(b, c)] = leaf;
          leaf += dolder[at.index(b, c)];
        }
      } else {
        std::memset(dw + gate, 0, L * sizeof(REAL));
      }

      for (int64_t t = 0; t < L; t++) add(dQ[t], s.scale, 0, dQ[t], stride);
      for (int64_t b = 0; p >> b; b++) {
        if (!(p >> b & 1)) continue;
        const int64_t block = at.index(at.first + ((p >> b) << b) - 1);
        const REAL* u = g.u + at.index(b, c) * L;
        product(ALL, L, dk, dv, D[0], D.stride, 1, CT_kept + block * dv * stride, stride, from_C[0], stride, 0);
        for (int64_t t = 0; t < L; t++) {
          const REAL weight = std::exp(u[t]);
          add(from_C[t], 1, dd[t], n_kept + block * stride, stride);
          du[at.index(b, c) * L + t] = weight * dot(from_C[t], Q[t], stride);
          add(dQ[t], 1, weight * s.scale, from_C[t], stride);
        }
        scale_rows(Q, u, L, scaled);
        product(ALL, dv, dk, L, D[0], 1, D.stride, scaled[0], stride, dCT[b][0], stride, 1);
        for (int64_t t = 0; t < L; t++) add(dn[b][0], 1, dd[t], scaled[t], stride);
      }
      put(at, c, dk, dQ, dq);
      put(at, c, dk, dK, dk_);
      put(at, c, dv, dV, dv_);
    }
  }

  // Undo the joining at the end of chunk c: the gradients of the slots that it joined, and of its own memory.
  void part(const At& at, int64_t c, int64_t p, std::vector<Matrix>& dCT, std::vector<Matrix>& dn, Matrix& GT,
            Matrix& gn) const {
    const int64_t free = trailing_ones(p), stride = GT.stride;
    std::swap(GT.data, dCT[free].data);
    std::swap(gn.data, dn[free].data);
    std::fill(dCT[free].data.begin(), dCT[free].data.end(), REAL(0));
    std::fill(dn[free].data.begin(), dn[free].data.end(), REAL(0));
    for (int64_t b = free - 1; b >= 0; b--) {
      const int64_t block = at.index(c - (int64_t(1) << b));
      const REAL older = std::exp(g.older[at.index(b, c)]), newer = std::exp(g.newer[at.index(b, c)]);
      REAL through = dot(gn[0], n_kept + block * stride, stride);
      for (int64_t j = 0; j < s.dv; j++) {
        through += dot(GT[j], CT_kept + (block * s.dv + j) * stride, stride);
        add(dCT[b][j], 0, older, GT[j], stride);
        add(GT[j], newer, 0, GT[j], stride);
      }
      dolder[at.index(b, c)] = older * through;
      add(dn[b][0], 0, older, gn[0], stride);
      add(gn[0], newer, 0, gn[0], stride);
    }
  }
};

}  // namespace

extern "C" {

#define EXLSTM_HMLSTM(NAME, IN)                                                                                        \
  void exlstm_hmlstm_forward_##NAME(ParallelFor parallel_for, const Sizes* s, const IN* q, const IN* k, const IN* v,   \
                                    const Gates* g, IN* h, REAL* d, REAL* C1, REAL* n1, REAL* CT_kept, REAL* n_kept) { \
    run(Forward<IN>{*s, q, k, v, *g, h, d, C1, n1, CT_kept, n_kept}, s->tasks(), parallel_for);                        \
  }                                                                                                                    \
  void exlstm_hmlstm_backward_##NAME(ParallelFor parallel_for, const Sizes* s, const IN* q, const IN* k, const IN* v,  \
                                     const Gates* g, const IN* h, const REAL* d, const REAL* CT_kept,                  \
                                     const REAL* n_kept, const IN* dh, const REAL* dC1, const REAL* dn1, IN* dq,       \
                                     IN* dk, IN* dv, REAL* da, REAL* dM, REAL* dm, REAL* dw, REAL* dlevel, REAL* du,   \
                                     REAL* dolder, REAL* dnewer) {                                                     \
    run(Backward<IN>{*s, q, k, v, *g, h, d, CT_kept, n_kept, dh, dC1, dn1, dq, dk, dv, da, dM, dm, dw, dlevel, du,     \
                     dolder, dnewer},                                                                                  \
        s->tasks(), parallel_for);                                                                                     \
  }

EXLSTM_HMLSTM(real, REAL)
EXLSTM_HMLSTM(bfloat16, BFloat16)

int64_t exlstm_hmlstm_lanes() { return LANES; }
}
