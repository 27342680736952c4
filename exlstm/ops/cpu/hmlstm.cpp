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

  using T = Item<In>;
  struct Space {
    Matrix<T> Q, K, Kw, V, A;
    Matrix<Word<T>> KT;
    Matrix<REAL> S, H, leaf, n;
    std::vector<Matrix<REAL>> C, ns;  // the slots
    std::vector<Paired<T>> C2;
    Paired<T> Kw2, V2;
    Steps u, w, inverse, floor;
    explicit Space(const Sizes& s)
        : Q(s.size, s.dk), K(s.size, s.dk), Kw(s.size, s.dk), V(s.size, s.dv), A(s.size, s.size), KT(s.dk, s.size),
          S(s.size, s.size), H(s.size, s.dv), leaf(s.dk, s.dv), n(1, s.dk), C(s.depth, leaf), ns(s.depth, n),
          C2(s.depth, Paired<T>(s.dk, s.dv)), Kw2(s.size, s.dk), V2(s.size, s.dv), u(s.size), w(s.size),
          inverse(s.size), floor(s.size) {}
  };

  void operator()(int64_t task, Space& x) const {
    const int64_t L = s.size, dk = s.dk, dv = s.dv, columns = x.n.columns;
    const At at(s, g, task);
    const Weights weights = g.weights(s.levels);
    Within within(weights, L);
    for (int64_t c = at.first; c <= at.last; c++) {
      const int64_t gate = at.gate(c), p = c - at.first;
      fetch(at, q, c, dk, x.Q);
      fetch(at, k, c, dk, x.K);
      fetch(at, v, c, dv, x.V);
      x.V2.of(x.V, L);
      within.enter(gate);
      transpose<T>(x.K, L, dk, x.KT);
      product(C_LOWER, L, L, dk, rows_of(x.Q), x.KT, x.S);
      weigh(within, s.scale, x.S, x.A, d + gate);
      product(A_LOWER, L, dv, L, rows_of(x.A), x.V2, x.H);
      for (int64_t b = 0; p >> b; b++) {
        if (!(p >> b & 1)) continue;
        exps(g.u + at.index(b, c) * L, s.scale, L, x.u);
        product(ALL, L, dv, dk, rows_of(x.Q), x.C2[b], x.H, {1, nullptr, x.u});
        for (int64_t t = 0; t < L; t++) d[gate + t] += x.u[t] * dot(x.ns[b][0], x.Q[t], columns);
      }
      inverses(g.m + gate, d + gate, L, x.inverse, x.floor);
      divide(at, c, dv, x.H, x.inverse, h);
      if (!at.full(c)) continue;

      exps(g.w + gate, 1, L, x.w);
      scale_rows(x.K, x.w, L, x.Kw);
      x.Kw2.of(x.Kw, L);
      product(ALL, dk, dv, L, columns_of(x.Kw2), x.V2, x.leaf);
      add_rows(x.n, 0, x.w, x.K, L);
      const int64_t free = trailing_ones(p);
      for (int64_t b = 0; b < free; b++) {
        const REAL older = std::exp(g.older[at.index(b, c)]), newer = std::exp(g.newer[at.index(b, c)]);
        for (int64_t i = 0; i < dk; i++) add(x.leaf[i], newer, older, x.C[b][i], x.leaf.columns);
        add(x.n[0], newer, older, x.ns[b][0], columns);
      }
      std::swap(x.C[free].lines, x.leaf.lines);
      std::swap(x.ns[free].lines, x.n.lines);
      x.C2[free].of(x.C[free], dk);
      if (CT_kept) {
        REAL* kept = CT_kept + at.index(c) * dv * columns;
        if (dk < columns) std::memset(kept, 0, dv * columns * sizeof(REAL));  // the padding is read as well
        transpose(x.C[free][0], dk, dv, x.C[free].stride, kept, columns);
        std::memcpy(n_kept + at.index(c) * columns, x.ns[free][0], columns * sizeof(REAL));
      }
    }
    const int64_t count = at.last - at.first + at.full(at.last);
    for (int64_t b = 0; b < s.depth; b++) {
      if (!(count >> b & 1)) continue;
      const int64_t slot = ((task / s.heads) * s.depth + b) * s.heads + at.head;
      for (int64_t i = 0; i < dk; i++) std::memcpy(C1 + (slot * dk + i) * dv, x.C[b][i], dv * sizeof(REAL));
      std::memcpy(n1 + slot * dk, x.ns[b][0], dk * sizeof(REAL));
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

  using T = Item<In>;
  struct Space {
    Matrix<T> Q, K, V, D, A, dS, scaled;
    Matrix<Word<T>> KT, VT, G2T;
    Matrix<REAL> S, dA, dQ, from_C, dK, dV, GT, gn;
    std::vector<Matrix<REAL>> dCT, dn;  // of the slots
    std::vector<Paired<T>> CT2;
    std::vector<int64_t> block;  // whose memories are in CT2
    Paired<T> Q2, K2, D2, A2, dS2, scaled2, GT2;
    Steps u, w, dd, inverse, floor, columns;
    explicit Space(const Sizes& s)
        : Q(s.size, s.dk), K(s.size, s.dk), V(s.size, s.dv), D(s.size, s.dv), A(s.size, s.size), dS(s.size, s.size),
          scaled(s.size, s.dk), KT(s.dk, s.size), VT(s.dv, s.size), G2T(s.dk, s.dv), S(s.size, s.size),
          dA(s.size, s.size), dQ(s.size, s.dk), from_C(s.size, s.dk), dK(s.size, s.dk), dV(s.size, s.dv),
          GT(s.dv, s.dk), gn(1, s.dk), dCT(s.depth, GT), dn(s.depth, gn), CT2(s.depth, Paired<T>(s.dv, s.dk)),
          block(s.depth), Q2(s.size, s.dk), K2(s.size, s.dk), D2(s.size, s.dv), A2(s.size, s.size),
          dS2(s.size, s.size), scaled2(s.size, s.dk), GT2(s.dv, s.dk), u(s.size), w(s.size), dd(s.size),
          inverse(s.size), floor(s.size), columns(s.size) {}
  };

  void operator()(int64_t task, Space& x) const {
    const int64_t L = s.size, dk = s.dk, dv = s.dv, columns = x.gn.columns;
    const At at(s, g, task);
    const Weights weights = g.weights(s.levels);
    Within within(weights, L);
    const int64_t count = at.last - at.first + at.full(at.last);
    std::fill(x.block.begin(), x.block.end(), -1);
    for (int64_t b = 0; b < s.depth; b++) {
      std::fill(x.dCT[b].lines.begin(), x.dCT[b].lines.end(), typename Matrix<REAL>::Line{});
      std::fill(x.dn[b].lines.begin(), x.dn[b].lines.end(), typename Matrix<REAL>::Line{});
      if (!(count >> b & 1)) continue;
      const int64_t slot = ((task / s.heads) * s.depth + b) * s.heads + at.head;
      transpose(dC1 + slot * dk * dv, dk, dv, dv, x.dCT[b][0], x.dCT[b].stride);
      std::memcpy(x.dn[b][0], dn1 + slot * dk, dk * sizeof(REAL));
    }
    for (int64_t c = at.last; c >= at.first; c--) {
      const int64_t gate = at.gate(c), p = c - at.first;
      fetch(at, q, c, dk, x.Q);
      fetch(at, k, c, dk, x.K);
      fetch(at, v, c, dv, x.V);
      undivide(at, c, dv, dh, h, g.m + gate, d + gate, x.inverse, x.floor, x.D, x.dd, dm + gate);
      within.enter(gate);

      transpose<T>(x.K, L, dk, x.KT);
      product(C_LOWER, L, L, dk, rows_of(x.Q), x.KT, x.S);
      transpose<T>(x.V, L, dv, x.VT);
      product(C_LOWER, L, L, dv, rows_of(x.D), x.VT, x.dA);
      unweigh(within, gate, s.scale, x.S, x.dA, x.dd, x.A, x.dS, x.columns, da, dM, dlevel);
      x.Q2.of(x.Q, L);
      x.K2.of(x.K, L);
      x.D2.of(x.D, L);
      x.A2.of(x.A, L);
      x.dS2.of(x.dS, L);
      product(A_LOWER, L, dk, L, rows_of(x.dS), x.K2, x.dQ);
      product(A_UPPER, L, dv, L, columns_of(x.A2), x.D2, x.dV);

      if (at.full(c)) {
        part(at, c, p, x);
        x.GT2.of(x.GT, dv);
        transpose<T>(x.GT, dv, dk, x.G2T);
        exps(g.w + gate, 1, L, x.w);
        product(ALL, L, dk, dv, rows_of(x.V), x.GT2, x.dK);
        REAL leaf = 0;
        for (int64_t t = 0; t < L; t++) {
          add(x.dK[t], 1, 1, x.gn[0], columns);
          leaf += dw[gate + t] = x.w[t] * dot(x.dK[t], x.K[t], columns);
        }
        product(A_UPPER, L, dk, L, columns_of(x.dS2), x.Q2, x.dK, {1, x.w});
        product(ALL, L, dv, dk, rows_of(x.K), x.G2T, x.dV, {1, nullptr, x.w});
        // What has been joined below slot b consists of this chunk and the slots before b.
        for (int64_t b = 0; b < trailing_ones(p); b++) {
          dnewer[at.index(b, c)] = leaf;
          leaf += dolder[at.index(b, c)];
        }
      } else {
        product(A_UPPER, L, dk, L, columns_of(x.dS2), x.Q2, x.dK);
        std::memset(dw + gate, 0, L * sizeof(REAL));
      }

      for (int64_t b = 0; p >> b; b++) {
        if (!(p >> b & 1)) continue;
        const int64_t block = at.index(at.first + ((p >> b) << b) - 1);
        if (x.block[b] != block) x.CT2[b].of(CT_kept + block * dv * columns, columns, dv);
        x.block[b] = block;
        exps(g.u + at.index(b, c) * L, s.scale, L, x.u);
        product(ALL, L, dk, dv, rows_of(x.D), x.CT2[b], x.from_C);
        for (int64_t t = 0; t < L; t++) {
          add(x.from_C[t], 1, x.dd[t], n_kept + block * columns, columns);
          du[at.index(b, c) * L + t] = x.u[t] * dot(x.from_C[t], x.Q[t], columns);
          add(x.dQ[t], 1, x.u[t], x.from_C[t], columns);
        }
        scale_rows(x.Q, x.u, L, x.scaled);
        x.scaled2.of(x.scaled, L);
        product(ALL, dv, dk, L, columns_of(x.D2), x.scaled2, x.dCT[b], {1});
        for (int64_t t = 0; t < L; t++) x.u[t] *= x.dd[t];
        add_rows(x.dn[b], 1, x.u, x.Q, L);
      }
      put(at, c, dk, x.dQ, dq);
      put(at, c, dk, x.dK, dk_);
      put(at, c, dv, x.dV, dv_);
    }
  }

  // Undo the joining at the end of chunk c: the gradients of the slots that it joined, and of its own memory.
  void part(const At& at, int64_t c, int64_t p, Space& x) const {
    const int64_t free = trailing_ones(p), columns = x.gn.columns;
    std::swap(x.GT.lines, x.dCT[free].lines);
    std::swap(x.gn.lines, x.dn[free].lines);
    std::fill(x.dCT[free].lines.begin(), x.dCT[free].lines.end(), typename Matrix<REAL>::Line{});
    std::fill(x.dn[free].lines.begin(), x.dn[free].lines.end(), typename Matrix<REAL>::Line{});
    for (int64_t b = free - 1; b >= 0; b--) {
      const int64_t block = at.index(c - (int64_t(1) << b));
      const REAL older = std::exp(g.older[at.index(b, c)]), newer = std::exp(g.newer[at.index(b, c)]);
      REAL through = dot(x.gn[0], n_kept + block * columns, columns);
      for (int64_t j = 0; j < s.dv; j++) {
        through += dot(x.GT[j], CT_kept + (block * s.dv + j) * columns, columns);
        add(x.dCT[b][j], 0, older, x.GT[j], columns);
        add(x.GT[j], newer, 0, x.GT[j], columns);
      }
      dolder[at.index(b, c)] = older * through;
      add(x.dn[b][0], 0, older, x.gn[0], columns);
      add(x.gn[0], newer, 0, x.gn[0], columns);
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
