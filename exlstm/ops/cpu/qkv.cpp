// Convolution, block-diagonal projections in blocks of 4 channels, and gates (exlstm/ops/reference/qkv.py has the
// formulas), forward and backward, in one walk over the inputs.
//
// A task is a piece of one batch row. It goes through its steps in blocks that stay in the first cache, and through a
// block by strips of W channels: all that a strip needs of its block of inputs, but for the gates, which sum over the
// channels, lies in the strip itself.

#include <type_traits>

#include "simd.h"

namespace {

constexpr int W = LANES < 4 ? 4 : LANES;  // channels of a strip
constexpr int STEPS = 32;                 // of a block
constexpr int MOST_TAPS = 8;

// W channels of one step. Where a vector register holds less than 4 numbers the compiler uses two.
typedef REAL Strip __attribute__((vector_size(W * sizeof(REAL))));
typedef REAL StripAnywhere __attribute__((vector_size(W * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

inline Strip get(const REAL* p) { return *reinterpret_cast<const StripAnywhere*>(p); }
inline void set(REAL* p, Strip x) { *reinterpret_cast<StripAnywhere*>(p) = x; }
inline Strip get(const BFloat16* p) {
  Strip x;
  for (int i = 0; i < W; i += LANES) {
    const Vec part = load(p + i);
    std::memcpy(reinterpret_cast<REAL*>(&x) + i, &part, sizeof(part));
  }
  return x;
}
// Get a strip of a row whose next one is soon to be got: rows are too far apart for the processor to foresee it.
template <class In>
inline Strip get_ahead(const In* p) {
  __builtin_prefetch(p + W, 0, 2);
  return get(p);
}
inline void set(BFloat16* p, Strip x) {
  for (int i = 0; i < W; i += LANES) {
    Vec part;
    std::memcpy(&part, reinterpret_cast<REAL*>(&x) + i, sizeof(part));
    store(p + i, part);
  }
}

// The i-th channel of every block of 4, in all of its places.
template <int I>
inline Strip spread(Strip x) {
  Strip y;
#if defined(__clang__)
  for (int j = 0; j < W; j++) y[j] = x[j / 4 * 4 + I];
#else
  typedef typename std::conditional<IS_FLOAT, int32_t, int64_t>::type Index;
  typedef Index Indices __attribute__((vector_size(W * sizeof(REAL))));
  Indices from;
  for (int j = 0; j < W; j++) from[j] = j / 4 * 4 + I;
  y = __builtin_shuffle(x, from);
#endif
  return y;
}

// Every block of 4 channels of x times its matrix, whose row i stands in w[i].
inline Strip through(Strip x, const Strip* w) {
  return spread<0>(x) * w[0] + spread<1>(x) * w[1] + spread<2>(x) * w[2] + spread<3>(x) * w[3];
}

inline Strip sigmoid_of(Strip x) {
  for (int i = 0; i < W; i += LANES) {
    Vec part;
    std::memcpy(&part, reinterpret_cast<REAL*>(&x) + i, sizeof(part));
    part = sigmoid(part);
    std::memcpy(reinterpret_cast<REAL*>(&x) + i, &part, sizeof(part));
  }
  return x;
}

inline REAL sum_of(Strip x) {
  REAL total = 0;
  for (int i = 0; i < W; i++) total += x[i];
  return total;
}

struct Sizes {
  int64_t batch, time, width, taps, gates, piece;  // piece: steps of a task
  int64_t pieces() const { return (time + piece - 1) / piece; }
  int64_t tasks() const { return batch * pieces(); }
};

template <class In>
struct Inputs {
  const In *x, *past;              // [B, T, N], [B, taps - 1, N]
  const REAL *conv, *bias;         // [taps, N], [N]
  const REAL *weights, *flipped;   // [3, 4 (in), N (out)] of q, k, v; and with in and out exchanged
  const REAL *gate_weight, *gate_bias;  // [G, 3 N], [G]
  const int64_t* reach;            // [B, T] or null

  // x from the step `begin` - taps + 1 on, a strip of it; of steps up to `end`.
  void window(const Sizes& s, int64_t b, int64_t begin, int64_t end, int64_t n, Strip* to) const {
    for (int64_t t = begin - s.taps + 1; t < end; t++, to++) {
      const In* row = t < 0 ? past + (b * (s.taps - 1) + t + s.taps - 1) * s.width : x + (b * s.time + t) * s.width;
      *to = get_ahead(row + n);
    }
  }

  int64_t first_tap(const Sizes& s, int64_t b, int64_t t) const {
    return reach ? std::max<int64_t>(0, s.taps - 1 - reach[b * s.time + t]) : 0;
  }
};

template <class In>
struct Forward {
  Sizes s;
  Inputs<In> in;
  In *c, *q, *k, *v;  // [B, T, N]
  REAL* gates;        // [B, T, G]

  void operator()(int64_t task) const {
    const int64_t b = task / s.pieces(), from = task % s.pieces() * s.piece, to = std::min(from + s.piece, s.time);
    std::vector<REAL> sums(STEPS * s.gates * W);
    for (int64_t begin = from; begin < to; begin += STEPS) {
      const int64_t end = std::min(begin + STEPS, to);
      std::fill(sums.begin(), sums.end(), REAL(0));
      for (int64_t n = 0; n < s.width; n += W) strip(b, begin, end, n, sums.data());
      for (int64_t t = begin; t < end; t++)
        for (int64_t g = 0; g < s.gates; g++)
          gates[(b * s.time + t) * s.gates + g] = in.gate_bias[g] + sum_of(get(&sums[((t - begin) * s.gates + g) * W]));
    }
  }

  void strip(int64_t b, int64_t begin, int64_t end, int64_t n, REAL* sums) const {
    Strip xs[STEPS + MOST_TAPS], made[3][STEPS], w[3][4], conv[MOST_TAPS];
    in.window(s, b, begin, end, n, xs);
    for (int j = 0; j < s.taps; j++) conv[j] = get(in.conv + j * s.width + n);
    for (int p = 0; p < 3; p++)
      for (int i = 0; i < 4; i++) w[p][i] = get(in.weights + (p * 4 + i) * s.width + n);
    const Strip bias = get(in.bias + n);
    for (int64_t t = begin; t < end; t++) {
      const int64_t i = t - begin, at = (b * s.time + t) * s.width + n;
      Strip y = bias;
      for (int64_t j = in.first_tap(s, b, t); j < s.taps; j++) y += conv[j] * xs[i + j];
      y *= sigmoid_of(y);
      set(c + at, y);
      set(q + at, made[0][i] = through(y, w[0]));
      set(k + at, made[1][i] = through(y, w[1]));
      set(v + at, made[2][i] = through(xs[i + s.taps - 1], w[2]));
    }
    for (int64_t g = 0; g < s.gates; g++) {
      const REAL* weight = in.gate_weight + g * 3 * s.width + n;
      const Strip wq = get(weight), wk = get(weight + s.width), wv = get(weight + 2 * s.width);
      for (int64_t i = 0; i < end - begin; i++) {
        REAL* sum = sums + (i * s.gates + g) * W;
        set(sum, get(sum) + made[0][i] * wq + made[1][i] * wk + made[2][i] * wv);
      }
    }
  }
};

// The steps of a task from the last block to the first, since an input is seen by the steps after it: `later` holds
// the gradients of the convolution at the taps - 1 steps after a block. A task begins with those after its piece.
template <class In>
struct Backward {
  Sizes s;
  Inputs<In> in;
  const In *q, *k, *v;               // [B, T, N], of the forward
  const In *dc, *dq, *dk, *dv;       // [B, T, N]
  const REAL* dgates;                // [B, T, G]
  In *dx, *dpast;                    // as x and past
  REAL *dconv, *dbias, *dweights;    // [tasks, taps, N], [tasks, N], [tasks, 3, 4, N], zero at first
  REAL* dgate_weight;                // [tasks, G, 3 N], zero at first

  void operator()(int64_t task) const {
    const int64_t b = task / s.pieces(), from = task % s.pieces() * s.piece, to = std::min(from + s.piece, s.time);
    std::vector<REAL> later((s.taps - 1) * s.width);
    const int64_t beyond = std::min(to + s.taps - 1, s.time);
    if (beyond > to)
      for (int64_t n = 0; n < s.width; n += W) {
        Strip ds[STEPS + MOST_TAPS] = {}, xs[STEPS + MOST_TAPS], made[3][STEPS];
        in.window(s, b, to, beyond, n, xs);
        convolution_gradient(b, to, beyond, n, xs, made, ds, task, false);
        for (int64_t j = 0; j < s.taps - 1; j++) set(later.data() + j * s.width + n, ds[j]);
      }
    for (int64_t begin = from + (to - 1 - from) / STEPS * STEPS; begin >= from; begin -= STEPS)
      for (int64_t n = 0; n < s.width; n += W)
        strip(b, begin, std::min(begin + STEPS, to), n, later.data() + n, task);
  }

  // ds: the gradient of the convolution's result at the steps of a block; made: those of q, k, v, what comes through
  // the gates included. The gradients of the weights that are met on the way are summed if `of_weights`.
  void convolution_gradient(int64_t b, int64_t begin, int64_t end, int64_t n, const Strip* xs, Strip (*made)[STEPS],
                            Strip* ds, int64_t task, bool of_weights) const {
    const int64_t count = end - begin, at = (b * s.time + begin) * s.width + n;
    const In* grads[3] = {dq + at, dk + at, dv + at};
    const In* values[3] = {q + at, k + at, v + at};
    // Copied together once: rows are a power of two apart, and so fall on few lines of the first cache.
    Strip value[3][STEPS];
    for (int p = 0; p < 3; p++)
      for (int64_t i = 0; i < count; i++) {
        made[p][i] = get_ahead(grads[p] + i * s.width);
        if (of_weights) value[p][i] = get_ahead(values[p] + i * s.width);
      }
    for (int64_t g = 0; g < s.gates; g++) {
      const REAL* d = dgates + (b * s.time + begin) * s.gates + g;
      for (int p = 0; p < 3; p++) {
        const int64_t place = (g * 3 + p) * s.width + n;
        const Strip w = get(in.gate_weight + place);
        for (int64_t i = 0; i < count; i++) made[p][i] += d[i * s.gates] * w;
        if (!of_weights) continue;
        REAL* sum = dgate_weight + task * s.gates * 3 * s.width + place;
        Strip total = get(sum);
        for (int64_t i = 0; i < count; i++) total += d[i * s.gates] * value[p][i];
        set(sum, total);
      }
    }
    Strip conv[MOST_TAPS], wq[4], wk[4];
    for (int j = 0; j < s.taps; j++) conv[j] = get(in.conv + j * s.width + n);
    for (int o = 0; o < 4; o++) {
      wq[o] = get(in.flipped + o * s.width + n);
      wk[o] = get(in.flipped + (4 + o) * s.width + n);
    }
    const Strip bias = get(in.bias + n);
    Strip total[2][4] = {};
    for (int64_t i = 0; i < count; i++) {
      Strip y = bias;
      for (int64_t j = in.first_tap(s, b, begin + i); j < s.taps; j++) y += conv[j] * xs[i + j];
      const Strip gate = sigmoid_of(y), c = y * gate;
      if (of_weights)
        for (int p = 0; p < 2; p++) {
          total[p][0] += spread<0>(c) * made[p][i];
          total[p][1] += spread<1>(c) * made[p][i];
          total[p][2] += spread<2>(c) * made[p][i];
          total[p][3] += spread<3>(c) * made[p][i];
        }
      const Strip to_c = get_ahead(dc + at + i * s.width) + through(made[0][i], wq) + through(made[1][i], wk);
      ds[i] = to_c * (gate + c * ((REAL)1 - gate));
    }
    if (!of_weights) return;
    for (int p = 0; p < 2; p++)
      for (int i = 0; i < 4; i++) accumulate(weight_sum(task, p, i, n), total[p][i]);
  }

  void strip(int64_t b, int64_t begin, int64_t end, int64_t n, REAL* later, int64_t task) const {
    const int64_t count = end - begin;
    Strip xs[STEPS + MOST_TAPS], ds[STEPS + MOST_TAPS], made[3][STEPS];
    in.window(s, b, begin, end, n, xs);
    convolution_gradient(b, begin, end, n, xs, made, ds, task, true);
    for (int64_t j = 0; j < s.taps - 1; j++) ds[count + j] = get(later + j * s.width);
    for (int64_t j = 0; j < s.taps - 1; j++) set(later + j * s.width, ds[j]);

    Strip conv[MOST_TAPS], wv[4], total[4] = {}, to_conv[MOST_TAPS] = {}, to_bias = {};
    for (int j = 0; j < s.taps; j++) conv[j] = get(in.conv + j * s.width + n);
    for (int o = 0; o < 4; o++) wv[o] = get(in.flipped + (8 + o) * s.width + n);
    for (int64_t i = 0; i < count; i++) {
      const Strip x = xs[i + s.taps - 1];
      total[0] += spread<0>(x) * made[2][i];
      total[1] += spread<1>(x) * made[2][i];
      total[2] += spread<2>(x) * made[2][i];
      total[3] += spread<3>(x) * made[2][i];
      to_bias += ds[i];
      for (int64_t j = in.first_tap(s, b, begin + i); j < s.taps; j++) to_conv[j] += ds[i] * xs[i + j];
      set(dx + (b * s.time + begin + i) * s.width + n, through(made[2][i], wv) + seen(b, begin + i, i, conv, ds));
    }
    for (int i = 0; i < 4; i++) accumulate(weight_sum(task, 2, i, n), total[i]);
    for (int j = 0; j < s.taps; j++) accumulate(dconv + (task * s.taps + j) * s.width + n, to_conv[j]);
    accumulate(dbias + task * s.width + n, to_bias);
    if (begin == 0)
      for (int64_t t = 1 - s.taps; t < 0; t++)
        set(dpast + (b * (s.taps - 1) + t + s.taps - 1) * s.width + n, seen(b, t, t, conv, ds));
  }

  // What the steps that see step t, ds[i] being its own gradient, give it. A step that does not exist gives 0.
  inline Strip seen(int64_t b, int64_t t, int64_t i, const Strip* conv, const Strip* ds) const {
    Strip total = {};
    for (int64_t j = 0; j < s.taps; j++) {
      const int64_t after = s.taps - 1 - j;
      if (t + after < 0 || t + after >= s.time || in.first_tap(s, b, t + after) > j) continue;
      total += conv[j] * ds[i + after];
    }
    return total;
  }

  REAL* weight_sum(int64_t task, int p, int i, int64_t n) const {
    return dweights + ((task * 3 + p) * 4 + i) * s.width + n;
  }
  static void accumulate(REAL* sum, Strip x) { set(sum, get(sum) + x); }
};

}  // namespace

extern "C" {

int64_t exlstm_qkv_strip() { return W; }
int64_t exlstm_qkv_taps() { return MOST_TAPS; }

#define EXLSTM_QKV(NAME, IN)                                                                                           \
  void exlstm_qkv_forward_##NAME(ParallelFor parallel_for, const Sizes* s, const Inputs<IN>* in, IN* c, IN* q, IN* k,  \
                                 IN* v, REAL* gates) {                                                                 \
    for_tasks(parallel_for, s->tasks(), Forward<IN>{*s, *in, c, q, k, v, gates});                                      \
  }                                                                                                                    \
  void exlstm_qkv_backward_##NAME(ParallelFor parallel_for, const Sizes* s, const Inputs<IN>* in, const IN* q,         \
                                  const IN* k, const IN* v, const IN* dc, const IN* dq, const IN* dk, const IN* dv,    \
                                  const REAL* dgates, IN* dx, IN* dpast, REAL* dconv, REAL* dbias, REAL* dweights,     \
                                  REAL* dgate_weight) {                                                                \
    for_tasks(parallel_for, s->tasks(),                                                                                \
              Backward<IN>{*s, *in, q, k, v, dc, dq, dk, dv, dgates, dx, dpast, dconv, dbias, dweights, dgate_weight});\
  }

EXLSTM_QKV(real, REAL)
EXLSTM_QKV(bfloat16, BFloat16)
}
