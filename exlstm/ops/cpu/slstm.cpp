// The sLSTM recurrence, forward and backward (exlstm/ops/slstm.py has the formulas).
//
// A task is one head and a tile of batch rows, and walks over the whole sequence by itself: rows and heads do not see
// each other, so tasks never wait. Within a step, the product of h_{t-1} with the recurrent weights is register-blocked
// over the rows of the tile and the four gates of LANES cells, so that the cell's update follows on the same registers.
// Weights are packed for that order: all loads are consecutive. For inputs in bfloat16, the operands of all products are
// rounded to it where the processor multiplies it (`Item`): half as much to load, twice as many products.
//
// For the backward the forward keeps only the states before every segment of steps. The backward runs a segment again
// in the cache, which takes less time than to write and read all gates and states of a long sequence in memory. From
// the same segment it adds up the gradient of the recurrent weights.

#include "product.h"

namespace {

enum { C, N, M, H };  // the planes of a state, [4, tile, padded D]

struct Shape {
  int64_t batch, time, heads, width, segment;  // segment: steps from one kept state to the next
  int64_t tiles() const { return (width + LANES - 1) / LANES; }
  int64_t padded() const { return tiles() * LANES; }
  int64_t segments() const { return (time + segment - 1) / segment; }
  // Into tensors [B, T, planes, H, D] and [.., B, 4, H, D].
  int64_t at(int64_t b, int64_t t, int64_t planes, int64_t plane, int64_t h) const {
    return (((b * time + t) * planes + plane) * heads + h) * width;
  }
  int64_t state(int64_t b, int64_t plane, int64_t h) const { return ((b * 4 + plane) * heads + h) * width; }
  int lanes(int64_t tile) const { return int(tile + 1 < tiles() ? LANES : width - tile * LANES); }
};

// The recurrence of a head and TILE rows from row b0 on.
template <class In>
struct Steps {
  Shape shape;
  using T = Item<In>;  // operands of products
  using W = Word<T>;
  static constexpr int64_t DEPTH = sizeof(W) / sizeof(T);

  const In* x;               // [B, T, 4, H, D]
  const W* packed;           // [H, tiles, words of D, 4, LANES]
  const bool *mask, *reset;  // [B, T], or null
  REAL forget_cap;           // of the pre-activations of forget gates, from above

  enum { KEEP, WRITE, Z, O, THROUGH_F, SHARE, SAVED };  // what the backward of a step needs, [SAVED, tile, padded D]

  template <int TILE>
  void enter(int64_t h, int64_t b0, const REAL* state, REAL* to) const {
    for (int s = 0; s < 4; s++)
      for (int r = 0; r < TILE; r++)
        std::memcpy(to + (s * TILE + r) * shape.padded(), state + shape.state(b0 + r, s, h),
                    shape.width * sizeof(REAL));
  }
  template <int TILE>
  void leave(int64_t h, int64_t b0, const REAL* state, REAL* to) const {
    for (int s = 0; s < 4; s++)
      for (int r = 0; r < TILE; r++)
        std::memcpy(to + shape.state(b0 + r, s, h), state + (s * TILE + r) * shape.padded(),
                    shape.width * sizeof(REAL));
  }

  bool masked(int64_t b, int64_t t) const { return mask && !mask[b * shape.time + t]; }
  bool emptied(int64_t b, int64_t t) const { return reset && reset[b * shape.time + t]; }

  // What the step reads of the state's h [TILE, padded D]: 0 where the state is emptied.
  template <int TILE, class To>
  void hidden(int64_t b0, int64_t t, const REAL* before, To* to) const {
    for (int r = 0; r < TILE; r++)
      for (int64_t j = 0; j < shape.padded(); j += LANES) {
        const REAL* from = before + (H * TILE + r) * shape.padded() + j;
        store(to + r * shape.padded() + j, emptied(b0 + r, t) ? Vec{} : load(from));
      }
  }

  // The state after step t; h goes to `out`, if not null, and what the backward needs to `saved`, if not null.
  template <int TILE, int UNROLL>
  void step(int64_t h, int64_t b0, int64_t t, const REAL* before, const T* hidden, REAL* after, In* out,
            REAL* saved) const {
    const int64_t words = (shape.width + DEPTH - 1) / DEPTH, padded = shape.padded(), stride = padded / DEPTH;
    const W* read = reinterpret_cast<const W*>(hidden);
    for (int64_t j = 0; j < shape.tiles(); j++) {
      const W* w = packed + (h * shape.tiles() + j) * words * 4 * LANES;
      Vec sums[UNROLL][TILE][4] = {};
      int64_t k = 0;
      for (; k + UNROLL <= words; k += UNROLL)
        for (int u = 0; u < UNROLL; u++) accumulate<TILE>(sums[u], read + k + u, stride, w + (k + u) * 4 * LANES);
      for (; k < words; k++) accumulate<TILE>(sums[0], read + k, stride, w + k * 4 * LANES);
      for (int u = 1; u < UNROLL; u++)
        for (int r = 0; r < TILE; r++)
          for (int g = 0; g < 4; g++) sums[0][r][g] += sums[u][r][g];
      for (int r = 0; r < TILE; r++) {
        const int64_t at = r * padded + j * LANES;
        cell(h, b0 + r, t, j, sums[0][r], TILE * padded, before + at, after + at, out, saved ? saved + at : nullptr);
      }
    }
  }

  template <int TILE>
  static inline void accumulate(Vec (&sums)[TILE][4], const W* hidden, int64_t stride, const W* w) {
    const auto w0 = load(w), w1 = load(w + LANES), w2 = load(w + 2 * LANES), w3 = load(w + 3 * LANES);
    for (int r = 0; r < TILE; r++) {
      const W value = hidden[r * stride];
      sums[r][0] = multiply_add(sums[r][0], value, w0);
      sums[r][1] = multiply_add(sums[r][1], value, w1);
      sums[r][2] = multiply_add(sums[r][2], value, w2);
      sums[r][3] = multiply_add(sums[r][3], value, w3);
    }
  }

  inline void cell(int64_t h, int64_t b, int64_t t, int64_t j, const Vec* sums, int64_t plane, const REAL* before,
                   REAL* after, In* out, REAL* saved) const {
    const int lanes = shape.lanes(j);
    const bool fresh = emptied(b, t);
    In* to = out ? out + shape.at(b, t, 1, 0, h) + j * LANES : nullptr;
    if (masked(b, t)) {
      for (int s = 0; s < 4; s++) store(after + s * plane, fresh ? Vec{} : load(before + s * plane));
      if (to) store(to, Vec{}, lanes);
      return;
    }
    Vec g[4];
    for (int s = 0; s < 4; s++) g[s] = sums[s] + load(x + shape.at(b, t, 4, s, h) + j * LANES, lanes);
    const Vec n_before = fresh ? Vec{} : load(before + N * plane);
    const Vec kept = log_forget(g[1], forget_cap) + load(before + M * plane);
    const auto empty = n_before == 0;
    const Vec m = empty ? g[0] : larger(kept, g[0]);
    const Vec keep = empty ? Vec{} : exp(kept - m), write = exp(g[0] - m), z = tanh(g[2]), o = sigmoid(g[3]);
    const Vec c = keep * load(before + C * plane) + write * z, n = keep * n_before + write, hidden = o * c / n;
    store(after + C * plane, c);
    store(after + N * plane, n);
    store(after + M * plane, m);
    store(after + H * plane, hidden);
    if (to) store(to, hidden, lanes);
    if (!saved) return;
    // m is the larger of the two (half each where equal, as in torch.maximum), and i on an empty state.
    const Vec share = empty ? Vec{} : (kept > g[0] ? all(1) : (kept == g[0] ? all(0.5) : Vec{}));
    const Vec all_saved[SAVED] = {keep, write, z, o, g[1] > forget_cap ? Vec{} : sigmoid(-g[1]), share};
    for (int s = 0; s < SAVED; s++) store(saved + s * plane, all_saved[s]);
  }
};

template <class In>
struct Forward {
  using T = Item<In>;

  Steps<In> steps;
  const REAL* initial;  // [B, 4, H, D]
  In* out;              // [B, T, H, D]
  REAL *final, *kept;   // [B, 4, H, D], and [segments, B, 4, H, D] for the backward, or null

  template <int TILE, int UNROLL>
  void tile(int64_t h, int64_t b0) const {
    const Shape& shape = steps.shape;
    const int64_t plane = TILE * shape.padded();
    std::vector<REAL> buffer(8 * plane);  // the states before and after a step
    std::vector<T> hidden(plane);         // the former's h as the step reads it
    REAL *before = buffer.data(), *after = before + 4 * plane;
    steps.template enter<TILE>(h, b0, initial, before);
    for (int64_t t = 0; t < shape.time; t++) {
      if (kept && t % shape.segment == 0)
        steps.template leave<TILE>(h, b0, before, kept + t / shape.segment * shape.state(shape.batch, 0, 0));
      steps.template hidden<TILE>(b0, t, before, hidden.data());
      steps.template step<TILE, UNROLL>(h, b0, t, before, hidden.data(), after, out, nullptr);
      std::swap(before, after);
    }
    steps.template leave<TILE>(h, b0, before, final);
  }
};

template <class In>
struct Backward {
  using S = Steps<In>;
  using T = typename S::T;
  using W = typename S::W;
  static constexpr int64_t DEPTH = S::DEPTH;

  Steps<In> steps;
  const REAL* kept;        // [segments, B, 4, H, D], of the forward
  const W* transposed;     // [H, tiles, words of 4 x padded D, LANES]
  const In* grad_out;      // [B, T, H, D]
  const REAL* grad_final;  // [B, 4, H, D]
  In* grad_x;              // [B, T, 4, H, D]
  REAL* grad_initial;      // [B, 4, H, D]
  REAL* grad_r;            // [H, parts, padded_rows(D), 4, padded D], 0 at first; a part has tiles of rows of its own
  int64_t parts;

  template <int TILE, int UNROLL>
  void tile(int64_t h, int64_t b0, int64_t part) const {
    const Shape& shape = steps.shape;
    const int64_t width = shape.width, padded = shape.padded(), plane = TILE * padded, segment = shape.segment;
    // Of a segment: the states before and after its steps, what they save, h as they read it, gradients of their gates.
    std::vector<REAL> buffer((4 * (segment + 1) + S::SAVED * segment + 4) * plane);
    REAL *states = buffer.data(), *saved = states + 4 * (segment + 1) * plane;
    REAL* grad = saved + S::SAVED * segment * plane;
    std::vector<T> operands(5 * segment * plane + ROWS);
    T *grad_g = operands.data(), *hidden = grad_g + 4 * segment * plane;
    std::vector<W> hidden_words, grad_words;
    steps.template enter<TILE>(h, b0, grad_final, grad);
    for (int64_t s = shape.segments() - 1; s >= 0; s--) {
      const int64_t first = s * segment, count = std::min(segment, shape.time - first);
      steps.template enter<TILE>(h, b0, kept + s * shape.state(shape.batch, 0, 0), states);
      for (int64_t i = 0; i < count; i++) {
        const REAL* before = states + 4 * i * plane;
        steps.template hidden<TILE>(b0, first + i, before, hidden + i * plane);
        steps.template step<TILE, UNROLL>(h, b0, first + i, before, hidden + i * plane, states + 4 * (i + 1) * plane,
                                          nullptr, saved + S::SAVED * i * plane);
      }
      for (int64_t i = count - 1; i >= 0; i--) {
        T* grad_now = grad_g + 4 * i * plane;
        for (int r = 0; r < TILE; r++)
          for (int64_t j = 0; j < shape.tiles(); j++) {
            const int64_t at = r * padded + j * LANES;
            cell(h, b0 + r, first + i, j, plane, states + 4 * i * plane + at, saved + S::SAVED * i * plane + at,
                 grad + at, grad_now + r * 4 * padded + j * LANES);
          }
        REAL* grad_h = grad + H * plane;
        int64_t j = 0;
        for (; j + 4 <= shape.tiles(); j += 4) through_weights<TILE, 4>(h, j, grad_now, grad_h);
        for (; j < shape.tiles(); j++) through_weights<TILE, 1>(h, j, grad_now, grad_h);
        for (int r = 0; r < TILE; r++)
          if (steps.emptied(b0 + r, first + i))
            for (int p = 0; p < 4; p++) std::memset(grad + (p * TILE + r) * padded, 0, padded * sizeof(REAL));
      }
      const int64_t rows = count * TILE;
      product(ALL, width, 4 * padded, rows, by_row(hidden, rows, padded, hidden_words), 1, padded,
              by_row(grad_g, rows, 4 * padded, grad_words), 4 * padded,
              grad_r + (h * parts + part) * padded_rows(width) * 4 * padded, 4 * padded, {1});
    }
    steps.template leave<TILE>(h, b0, grad, grad_initial);
  }

  // Rows as words of a product along them: themselves, or pairs of one and the next.
  static const W* by_row(const T* in, int64_t rows, int64_t columns, std::vector<W>& words) {
    if constexpr (DEPTH == 1) {
      return in;
    } else {
      words.resize((rows + 1) / 2 * columns + ROWS);
      for (int64_t i = 0; i < rows; i += 2)
        for (int64_t j = 0; j < columns; j += LANES) {
          const T* row = in + i * columns + j;
          store(words.data() + i / 2 * columns + j, paired(row, i + 1 < rows ? row + columns : nullptr));
        }
      return words.data();
    }
  }

  // grad_h += grad_g R^T for TILES * LANES of the cells.
  template <int TILE, int TILES>
  void through_weights(int64_t h, int64_t j, const T* grad_g, REAL* grad_h) const {
    const int64_t padded = steps.shape.padded(), words = 4 * padded / DEPTH;
    const W* w = transposed + (h * steps.shape.tiles() + j) * words * LANES;
    const W* grad = reinterpret_cast<const W*>(grad_g);
    Vec sums[TILE][TILES] = {};
    for (int64_t k = 0; k < words; k++) {
      decltype(load(w)) weights[TILES];
      for (int i = 0; i < TILES; i++) weights[i] = load(w + (i * words + k) * LANES);
      for (int r = 0; r < TILE; r++) {
        const W value = grad[r * words + k];
        for (int i = 0; i < TILES; i++) sums[r][i] = multiply_add(sums[r][i], value, weights[i]);
      }
    }
    for (int r = 0; r < TILE; r++)
      for (int i = 0; i < TILES; i++) {
        REAL* p = grad_h + r * padded + (j + i) * LANES;
        store(p, load(p) + sums[r][i]);
      }
  }

  // The gradients of the gates and, but for the part through the gates, of the state before; `grad` is of that after.
  inline void cell(int64_t h, int64_t b, int64_t t, int64_t j, int64_t plane, const REAL* before, const REAL* saved,
                   REAL* grad, T* grad_g) const {
    const Shape& shape = steps.shape;
    const int lanes = shape.lanes(j);
    Vec d[4] = {};
    if (!steps.masked(b, t)) {
      const REAL* after = before + 4 * plane;
      const Vec n = load(after + N * plane), hidden = load(after + H * plane), keep = load(saved + S::KEEP * plane),
                write = load(saved + S::WRITE * plane), z = load(saved + S::Z * plane), o = load(saved + S::O * plane),
                share = load(saved + S::SHARE * plane);
      const Vec dh = load(grad + H * plane) + load(grad_out + shape.at(b, t, 1, 0, h) + j * LANES, lanes);
      const Vec through = dh / n, dc = load(grad + C * plane) + through * o;
      const Vec dn = load(grad + N * plane) - through * hidden;
      // On an empty state keep is 0, whatever is left of the state before it was emptied.
      Vec d_keep = (dc * load(before + C * plane) + dn * load(before + N * plane)) * keep;
      Vec d_write = (dc * z + dn) * write;
      const Vec dm = load(grad + M * plane) - d_keep - d_write;
      d_keep += dm * share;
      d_write += dm * ((REAL)1 - share);
      d[0] = d_write;
      d[1] = d_keep * load(saved + S::THROUGH_F * plane);
      d[2] = dc * write * ((REAL)1 - z * z);
      d[3] = dh * hidden * ((REAL)1 - o);
      store(grad + C * plane, dc * keep);
      store(grad + N * plane, dn * keep);
      store(grad + M * plane, d_keep);
      store(grad + H * plane, Vec{});
    }
    for (int s = 0; s < 4; s++) {
      store(grad_g + s * shape.padded(), d[s]);
      store(grad_x + shape.at(b, t, 4, s, h) + j * LANES, d[s], lanes);
    }
  }
};

// Call work(constant rows, constant unroll, first row) for tile i of `tiles` that share `batch` rows.
template <class Work>
inline void with_tile(int64_t batch, int64_t tiles, int64_t i, const Work& work) {
  const int64_t begin = batch * i / tiles, rows = batch * (i + 1) / tiles - begin;
  const auto call = [&](auto tile, auto unroll) { work(tile, unroll, begin); };
#define EXLSTM_TILE(ROWS, UNROLL)                                                                      \
  case ROWS:                                                                                           \
    return call(std::integral_constant<int, ROWS>(), std::integral_constant<int, UNROLL>())
  switch (rows) {
    EXLSTM_TILE(1, 4);
    EXLSTM_TILE(2, 2);
    EXLSTM_TILE(3, 1);
#if defined(__AVX512F__) || !defined(__AVX__)
    EXLSTM_TILE(4, 1);
#endif
#if defined(__AVX512F__)
    EXLSTM_TILE(5, 1);
    EXLSTM_TILE(6, 1);
#endif
  }
}

// Run the tiles of all heads on torch's threads; those of a part one after the other.
template <class Work>
void run(const Shape& shape, int64_t parts, const Work& work, ParallelFor parallel_for) {
  const int64_t tiles = (shape.batch + MOST_ROWS - 1) / MOST_ROWS;
  for_tasks(parallel_for, shape.heads * parts, [&](int64_t task) {
    for (int64_t i = task % parts; i < tiles; i += parts)
      with_tile(shape.batch, tiles, i, [&](auto tile, auto unroll, int64_t row) {
        work(tile, unroll, task / parts, row, task % parts);
      });
  });
}

}  // namespace

extern "C" {

int64_t exlstm_lanes() { return LANES; }
int64_t exlstm_rows() { return ROWS; }
int64_t exlstm_pairs() { return PAIRS; }

#define EXLSTM_SLSTM(NAME, IN)                                                                                         \
  void exlstm_slstm_forward_##NAME(ParallelFor parallel_for, const Shape* shape, double forget_cap, const IN* x,       \
                                   const Steps<IN>::W* packed, const bool* mask, const bool* reset, const REAL* initial,       \
                                   IN* out, REAL* final, REAL* kept) {                                                 \
    const Steps<IN> steps{*shape, x, packed, mask, reset, (REAL)forget_cap};                                           \
    const Forward<IN> forward{steps, initial, out, final, kept};                                                       \
    run(*shape, (shape->batch + ROWS - 1) / ROWS, [&](auto tile, auto unroll, int64_t head, int64_t row, int64_t) {    \
      forward.template tile<tile, unroll>(head, row);                                                                  \
    }, parallel_for);                                                                                                  \
  }                                                                                                                    \
  void exlstm_slstm_backward_##NAME(ParallelFor parallel_for, const Shape* shape, double forget_cap, const IN* x,      \
                                    const Steps<IN>::W* packed, const bool* mask, const bool* reset, const REAL* kept, \
                                    const Steps<IN>::W* transposed, const IN* grad_out, const REAL* grad_final,        \
                                    IN* grad_x, REAL* grad_initial, REAL* grad_r, int64_t parts) {                     \
    const Steps<IN> steps{*shape, x, packed, mask, reset, (REAL)forget_cap};                                           \
    const Backward<IN> backward{steps, kept, transposed, grad_out, grad_final, grad_x, grad_initial, grad_r, parts};   \
    run(*shape, parts, [&](auto tile, auto unroll, int64_t head, int64_t row, int64_t part) {                          \
      backward.template tile<tile, unroll>(head, row, part);                                                           \
    }, parallel_for);                                                                                                  \
  }

EXLSTM_SLSTM(real, REAL)
EXLSTM_SLSTM(bfloat16, BFloat16)
}
