// Norm of every head, skip and output gate, forward and backward (exlstm/ops/reference/gated_norm.py has the formulas).
// A task is a piece of the steps; what a head needs lies in the first cache.

#include "simd.h"

namespace {

struct Sizes {
  int64_t steps, heads, width, piece, gate_row;  // piece: steps of a task; gate_row: from one step's gate to the next's
  int64_t sigmoid;                               // else SiLU
  REAL eps;
  int64_t channels() const { return heads * width; }
  int64_t tasks() const { return (steps + piece - 1) / piece; }
};

template <class In>
struct Inputs {
  const In *h, *gate;              // [steps, H, D]
  const REAL *weight, *skip;       // [H, D]; skip and c: or null
  const In* c;                     // [steps, H, D]
};

inline int lanes(const Sizes& s, int64_t j) { return int(std::min<int64_t>(LANES, s.width - j)); }
inline REAL sum(Vec x) {
  REAL total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
}
inline Vec first_lanes(Vec x, int count) {
  for (int i = count; i < LANES; i++) x[i] = 0;
  return x;
}

// Mean and inverse deviation of a head.
template <class In>
inline void moments(const Sizes& s, const In* h, REAL& mean, REAL& inverse) {
  Vec total{};
  for (int64_t j = 0; j < s.width; j += LANES) total += load(h + j, lanes(s, j));
  mean = sum(total) / s.width;
  Vec squares{};
  for (int64_t j = 0; j < s.width; j += LANES) {
    const Vec x = first_lanes(load(h + j, lanes(s, j)) - mean, lanes(s, j));
    squares += x * x;
  }
  inverse = 1 / std::sqrt(sum(squares) / s.width + s.eps);
}

template <class In>
struct Forward {
  Sizes s;
  Inputs<In> in;
  In* out;  // [steps, H, D]

  void operator()(int64_t task) const {
    for (int64_t t = task * s.piece; t < std::min((task + 1) * s.piece, s.steps); t++)
      for (int64_t first = 0; first < s.channels(); first += s.width) {
        const int64_t at = t * s.channels() + first;
        REAL mean, inverse;
        moments(s, in.h + at, mean, inverse);
        for (int64_t j = 0; j < s.width; j += LANES) {
          const int count = lanes(s, j);
          Vec y = (load(in.h + at + j, count) - mean) * inverse * load(in.weight + first + j, count);
          if (in.c) y += load(in.skip + first + j, count) * load(in.c + at + j, count);
          const Vec z = load(in.gate + t * s.gate_row + first + j, count), open = sigmoid(z);
          store(out + at + j, y * (s.sigmoid ? open : z * open), count);
        }
      }
  }
};

template <class In>
struct Backward {
  Sizes s;
  Inputs<In> in;
  const In* dout;          // [steps, H, D]
  In *dh, *dgate, *dc;     // [steps, H, D]; dc: or null
  REAL *dweight, *dskip;   // [tasks, H, D], zero at first; dskip: or null

  void operator()(int64_t task) const {
    std::vector<REAL> through(s.width + LANES), normed(s.width + LANES);
    for (int64_t t = task * s.piece; t < std::min((task + 1) * s.piece, s.steps); t++)
      for (int64_t first = 0; first < s.channels(); first += s.width) {
        const int64_t at = t * s.channels() + first, sums = task * s.channels() + first;
        REAL mean, inverse;
        moments(s, in.h + at, mean, inverse);
        Vec total{}, product{};
        for (int64_t j = 0; j < s.width; j += LANES) {
          const int count = lanes(s, j);
          const Vec x = first_lanes((load(in.h + at + j, count) - mean) * inverse, count);
          const Vec weight = load(in.weight + first + j, count), d = load(dout + at + j, count);
          const Vec z = load(in.gate + t * s.gate_row + first + j, count), open = sigmoid(z);
          const Vec dy = d * (s.sigmoid ? open : z * open);
          Vec y = x * weight;
          if (in.c) {
            const Vec c = load(in.c + at + j, count), skip = load(in.skip + first + j, count);
            y += skip * c;
            store(dc + at + j, dy * skip, count);
            store(dskip + sums + j, load(dskip + sums + j, count) + dy * c, count);
          }
          const Vec slope = open * ((REAL)1 - open);
          store(dgate + at + j, d * y * (s.sigmoid ? slope : open + z * slope), count);
          store(dweight + sums + j, load(dweight + sums + j, count) + dy * x, count);
          store(&through[j], dy * weight);
          store(&normed[j], x);
          total += dy * weight;
          product += dy * weight * x;
        }
        const REAL mean_d = sum(total) / s.width, mean_dx = sum(product) / s.width;
        for (int64_t j = 0; j < s.width; j += LANES)
          store(dh + at + j, (load(&through[j]) - mean_d - load(&normed[j]) * mean_dx) * inverse, lanes(s, j));
      }
  }
};

}  // namespace

extern "C" {

#define EXLSTM_GATED_NORM(NAME, IN)                                                                                    \
  void exlstm_gated_norm_forward_##NAME(ParallelFor parallel_for, const Sizes* s, const Inputs<IN>* in, IN* out) {     \
    for_tasks(parallel_for, s->tasks(), Forward<IN>{*s, *in, out});                                                    \
  }                                                                                                                    \
  void exlstm_gated_norm_backward_##NAME(ParallelFor parallel_for, const Sizes* s, const Inputs<IN>* in,               \
                                         const IN* dout, IN* dh, IN* dgate, IN* dc, REAL* dweight, REAL* dskip) {      \
    for_tasks(parallel_for, s->tasks(), Backward<IN>{*s, *in, dout, dh, dgate, dc, dweight, dskip});                   \
  }

EXLSTM_GATED_NORM(real, REAL)
EXLSTM_GATED_NORM(bfloat16, BFloat16)
}
