// The sLSTM recurrence, forward and backward (exlstm/ops/slstm.py has the formulas).
//
// A task is one head and a tile of ROWS batch rows, and walks over the whole sequence by itself: rows and heads do not
// see each other, so tasks never wait. Within a step, the product of h_{t-1} with the recurrent weights is
// register-blocked over the rows of the tile and the four gates of LANES cells, so that the cell's update follows on
// the same registers. Weights are packed for that order: all loads are consecutive.

#include "simd.h"

namespace {

struct Shape {
  int64_t batch, time, heads, width;
  int64_t tiles() const { return (width + LANES - 1) / LANES; }
  int64_t padded() const { return tiles() * LANES; }
  // Into tensors [B, T, planes, H, D].
  int64_t at(int64_t b, int64_t t, int64_t planes, int64_t plane, int64_t h) const {
    return (((b * time + t) * planes + plane) * heads + h) * width;
  }
  int lanes(int64_t tile) const { return int(tile + 1 < tiles() ? LANES : width - tile * LANES); }
};

template <class In>
struct Forward {
  Shape shape;
  const In* x;            // [B, T, 4, H, D]
  const REAL* packed;     // [H, tiles, D, 4, LANES]
  const REAL* initial;    // [B, 4, H, D]: c, n, m, h
  const bool *mask, *reset;  // [B, T], or null
  In* out;                // [B, T, H, D]
  REAL* final;            // [B, 4, H, D]
  REAL *gates, *states;   // [B, T, 4, H, D] for the backward, or null

  template <int ROWS, int UNROLL>
  void tile(int64_t h, int64_t b0) const {
    const int64_t width = shape.width, padded = shape.padded(), plane = ROWS * padded;
    std::vector<REAL> buffer(5 * plane);  // c, n, m, h and the next h, each [ROWS, padded]
    REAL *c = buffer.data(), *n = c + plane, *m = n + plane, *hidden = m + plane, *next = hidden + plane;
    REAL* parts[4] = {c, n, m, hidden};
    for (int r = 0; r < ROWS; r++)
      for (int s = 0; s < 4; s++)
        std::memcpy(parts[s] + r * padded, initial + (((b0 + r) * 4 + s) * shape.heads + h) * width, width * sizeof(REAL));
    for (int64_t t = 0; t < shape.time; t++) {
      if (reset)
        for (int r = 0; r < ROWS; r++)
          if (reset[(b0 + r) * shape.time + t])
            for (REAL* part : {c, n, m, hidden}) std::memset(part + r * padded, 0, padded * sizeof(REAL));
      for (int64_t j = 0; j < shape.tiles(); j++) {
        const REAL* w = packed + (h * shape.tiles() + j) * width * 4 * LANES;
        Vec sums[UNROLL][ROWS][4] = {};
        int64_t k = 0;
        for (; k + UNROLL <= width; k += UNROLL)
          for (int u = 0; u < UNROLL; u++) accumulate<ROWS>(sums[u], hidden + k + u, padded, w + (k + u) * 4 * LANES);
        for (; k < width; k++) accumulate<ROWS>(sums[0], hidden + k, padded, w + k * 4 * LANES);
        for (int u = 1; u < UNROLL; u++)
          for (int r = 0; r < ROWS; r++)
            for (int g = 0; g < 4; g++) sums[0][r][g] += sums[u][r][g];
        for (int r = 0; r < ROWS; r++) cell(h, b0 + r, t, j, sums[0][r], r * padded + j * LANES, c, n, m, hidden, next);
      }
      std::swap(hidden, next);
    }
    parts[3] = hidden;
    for (int r = 0; r < ROWS; r++)
      for (int s = 0; s < 4; s++)
        std::memcpy(final + (((b0 + r) * 4 + s) * shape.heads + h) * width, parts[s] + r * padded, width * sizeof(REAL));
  }

  template <int ROWS>
  static inline void accumulate(Vec (&sums)[ROWS][4], const REAL* hidden, int64_t stride, const REAL* w) {
    const Vec w0 = load(w), w1 = load(w + LANES), w2 = load(w + 2 * LANES), w3 = load(w + 3 * LANES);
    for (int r = 0; r < ROWS; r++) {
      const REAL value = hidden[r * stride];
      sums[r][0] += value * w0;
      sums[r][1] += value * w1;
      sums[r][2] += value * w2;
      sums[r][3] += value * w3;
    }
  }

  inline void cell(int64_t h, int64_t b, int64_t t, int64_t j, const Vec* sums, int64_t at, REAL* c, REAL* n, REAL* m,
                   const REAL* hidden, REAL* next) const {
    const int lanes = shape.lanes(j);
    if (mask && !mask[b * shape.time + t]) {
      store(next + at, load(hidden + at));
      store(out + shape.at(b, t, 1, 0, h) + j * LANES, Vec{}, lanes);
    } else {
      Vec g[4];
      for (int s = 0; s < 4; s++) {
        g[s] = sums[s] + load(x + shape.at(b, t, 4, s, h) + j * LANES, lanes);
        if (gates) store(gates + shape.at(b, t, 4, s, h) + j * LANES, g[s], lanes);
      }
      const Vec before_n = load(n + at), kept = logsigmoid(g[1]) + load(m + at);
      const auto empty = before_n == 0;
      const Vec m_new = empty ? g[0] : larger(kept, g[0]);
      const Vec keep = empty ? Vec{} : exp(kept - m_new), write = exp(g[0] - m_new);
      const Vec c_new = keep * load(c + at) + write * tanh(g[2]), n_new = keep * before_n + write;
      const Vec h_new = sigmoid(g[3]) * c_new / n_new;
      store(c + at, c_new);
      store(n + at, n_new);
      store(m + at, m_new);
      store(next + at, h_new);
      store(out + shape.at(b, t, 1, 0, h) + j * LANES, h_new, lanes);
    }
    if (states) {
      const Vec now[4] = {load(c + at), load(n + at), load(m + at), load(next + at)};
      for (int s = 0; s < 4; s++) store(states + shape.at(b, t, 4, s, h) + j * LANES, now[s], lanes);
    }
  }
};

template <class In>
struct Backward {
  Shape shape;
  const REAL *gates, *states;  // [B, T, 4, H, D], of the forward
  const REAL* packed;          // [H, tiles, 4, padded D, LANES]
  const REAL* initial;         // [B, 4, H, D]
  const bool *mask, *reset;
  const In* grad_out;          // [B, T, H, D]
  const REAL* grad_final;      // [B, 4, H, D]
  REAL* grad_gates;            // [B, T, 4, H, D]
  REAL* grad_initial;          // [B, 4, H, D]

  template <int ROWS, int UNROLL>
  void tile(int64_t h, int64_t b0) const {
    const int64_t width = shape.width, padded = shape.padded(), plane = ROWS * padded;
    std::vector<REAL> buffer(8 * plane);  // gradients of c, n, m, h [ROWS, padded] each, of the gates [ROWS, 4, padded]
    REAL *grad = buffer.data(), *grad_g = grad + 4 * plane;
    for (int r = 0; r < ROWS; r++)
      for (int s = 0; s < 4; s++)
        std::memcpy(grad + s * plane + r * padded, grad_final + (((b0 + r) * 4 + s) * shape.heads + h) * width,
                    width * sizeof(REAL));
    for (int64_t t = shape.time - 1; t >= 0; t--) {
      for (int r = 0; r < ROWS; r++)
        for (int64_t j = 0; j < shape.tiles(); j++)
          cell(h, b0 + r, t, j, grad + r * padded + j * LANES, plane, grad_g + r * 4 * padded + j * LANES);
      REAL* grad_h = grad + 3 * plane;
      int64_t j = 0;
      for (; j + 4 <= shape.tiles(); j += 4) through_weights<ROWS, 4>(h, j, grad_g, grad_h);
      for (; j < shape.tiles(); j++) through_weights<ROWS, 1>(h, j, grad_g, grad_h);
      if (reset)
        for (int r = 0; r < ROWS; r++)
          if (reset[(b0 + r) * shape.time + t])
            for (int s = 0; s < 4; s++) std::memset(grad + s * plane + r * padded, 0, padded * sizeof(REAL));
    }
    for (int r = 0; r < ROWS; r++)
      for (int s = 0; s < 4; s++)
        std::memcpy(grad_initial + (((b0 + r) * 4 + s) * shape.heads + h) * width, grad + s * plane + r * padded,
                    width * sizeof(REAL));
  }

  // grad_h += grad_g R^T for TILES * LANES of the cells.
  template <int ROWS, int TILES>
  void through_weights(int64_t h, int64_t j, const REAL* grad_g, REAL* grad_h) const {
    const int64_t depth = 4 * shape.padded();
    const REAL* w = packed + (h * shape.tiles() + j) * depth * LANES;
    Vec sums[ROWS][TILES] = {};
    for (int64_t k = 0; k < depth; k++) {
      Vec weights[TILES];
      for (int i = 0; i < TILES; i++) weights[i] = load(w + (i * depth + k) * LANES);
      for (int r = 0; r < ROWS; r++) {
        const REAL value = grad_g[r * depth + k];
        for (int i = 0; i < TILES; i++) sums[r][i] += value * weights[i];
      }
    }
    for (int r = 0; r < ROWS; r++)
      for (int i = 0; i < TILES; i++) {
        REAL* p = grad_h + r * shape.padded() + (j + i) * LANES;
        store(p, load(p) + sums[r][i]);
      }
  }

  // The gradients of the gates and, but for the part through the gates, of the state before; `grad` is of that after.
  inline void cell(int64_t h, int64_t b, int64_t t, int64_t j, REAL* grad, int64_t plane, REAL* grad_g) const {
    const int64_t padded = shape.padded();
    const int lanes = shape.lanes(j);
    REAL* saved = grad_gates + shape.at(b, t, 4, 0, h) + j * LANES;
    const int64_t gate = shape.heads * shape.width;
    if (mask && !mask[b * shape.time + t]) {
      for (int s = 0; s < 4; s++) {
        store(grad_g + s * padded, Vec{});
        store(saved + s * gate, Vec{}, lanes);
      }
      return;
    }
    Vec g[4], now[4], before[3] = {};
    for (int s = 0; s < 4; s++) {
      g[s] = load(gates + shape.at(b, t, 4, s, h) + j * LANES, lanes);
      now[s] = load(states + shape.at(b, t, 4, s, h) + j * LANES, lanes);
    }
    if (!(reset && reset[b * shape.time + t]))
      for (int s = 0; s < 3; s++)
        before[s] = t ? load(states + shape.at(b, t - 1, 4, s, h) + j * LANES, lanes)
                      : load(initial + ((b * 4 + s) * shape.heads + h) * shape.width + j * LANES, lanes);
    if (lanes < LANES)  // no division by the 0 of lanes that are not there
      for (int i = lanes; i < LANES; i++) now[1][i] = 1;
    const Vec kept = logsigmoid(g[1]) + before[2], tanh_z = tanh(g[2]), sigmoid_o = sigmoid(g[3]);
    const auto empty = before[1] == 0;
    Vec keep = empty ? Vec{} : exp(kept - now[2]), write = exp(g[0] - now[2]);

    const Vec dh = load(grad + 3 * plane) + load(grad_out + shape.at(b, t, 1, 0, h) + j * LANES, lanes);
    const Vec dc = load(grad) + dh * sigmoid_o / now[1], dn = load(grad + plane) - dh * now[3] / now[1];
    Vec d_keep = (dc * before[0] + dn * before[1]) * keep, d_write = (dc * tanh_z + dn) * write;
    const Vec dm = load(grad + 2 * plane) - d_keep - d_write;
    // m is the larger of the two (half each where equal, as in torch.maximum), and i on an empty state.
    const Vec share = empty ? Vec{} : (kept > g[0] ? all(1) : (kept == g[0] ? all(0.5) : Vec{}));
    d_keep += dm * share;
    d_write += dm * ((REAL)1 - share);
    const Vec d[4] = {d_write, d_keep * sigmoid(-g[1]), dc * write * ((REAL)1 - tanh_z * tanh_z),
                      dh * now[3] * ((REAL)1 - sigmoid_o)};
    for (int s = 0; s < 4; s++) {
      store(grad_g + s * padded, d[s]);
      store(saved + s * gate, d[s], lanes);
    }
    store(grad, dc * keep);
    store(grad + plane, dn * keep);
    store(grad + 2 * plane, empty ? Vec{} : d_keep);
    store(grad + 3 * plane, Vec{});
  }
};

// Run tasks of a head and up to MOST_ROWS rows on torch's threads.
template <class Work>
void run(const Work& work, ParallelFor parallel_for) {
  struct Task { int64_t head, row; int rows; };
  std::vector<Task> tasks;
  const int64_t batch = work.shape.batch, tiles = (batch + MOST_ROWS - 1) / MOST_ROWS;
  for (int64_t h = 0; h < work.shape.heads; h++)
    for (int64_t i = 0, row = 0; i < tiles; i++) {
      const int rows = int((batch - row) / (tiles - i));
      tasks.push_back({h, row, rows});
      row += rows;
    }
  struct Context { const Work& work; const std::vector<Task>& tasks; } context{work, tasks};
  const auto some = [](int64_t begin, int64_t end, void* pointer) {
    const auto& [work, tasks] = *static_cast<Context*>(pointer);
    for (int64_t i = begin; i < end; i++) {
      const auto [head, row, rows] = tasks[i];
      switch (rows) {
        case 1: work.template tile<1, 4>(head, row); break;
        case 2: work.template tile<2, 2>(head, row); break;
        case 3: work.template tile<3, 1>(head, row); break;
#if defined(__AVX512F__) || !defined(__AVX__)
        case 4: work.template tile<4, 1>(head, row); break;
#endif
#if defined(__AVX512F__)
        case 5: work.template tile<5, 1>(head, row); break;
        case 6: work.template tile<6, 1>(head, row); break;
#endif
      }
    }
  };
  if (parallel_for)
    parallel_for(0, int64_t(tasks.size()), 1, some, &context);
  else
    some(0, int64_t(tasks.size()), &context);
}

}  // namespace

extern "C" {

int64_t exlstm_lanes() { return LANES; }

#define EXLSTM_SLSTM(NAME, IN)                                                                                         \
  void exlstm_slstm_forward_##NAME(ParallelFor parallel_for, int64_t batch, int64_t time, int64_t heads,               \
                                   int64_t width, const IN* x, const REAL* packed, const REAL* initial,                \
                                   const bool* mask, const bool* reset, IN* out, REAL* final, REAL* gates,             \
                                   REAL* states) {                                                                     \
    run(Forward<IN>{{batch, time, heads, width}, x, packed, initial, mask, reset, out, final, gates, states},          \
        parallel_for);                                                                                                 \
  }                                                                                                                    \
  void exlstm_slstm_backward_##NAME(ParallelFor parallel_for, int64_t batch, int64_t time, int64_t heads,              \
                                    int64_t width, const REAL* gates, const REAL* states, const REAL* packed,          \
                                    const REAL* initial, const bool* mask, const bool* reset, const IN* grad_out,      \
                                    const REAL* grad_final, REAL* grad_gates, REAL* grad_initial) {                    \
    run(Backward<IN>{{batch, time, heads, width}, gates, states, packed, initial, mask, reset, grad_out, grad_final,   \
                     grad_gates, grad_initial},                                                                        \
        parallel_for);                                                                                                 \
  }

EXLSTM_SLSTM(real, REAL)
EXLSTM_SLSTM(bfloat16, BFloat16)
}
