// One step of a whole model: an interpreter of a program, a flat array of instructions on registers that lie ready.
//
// A register holds a vector for each row of the batch. exlstm/ops/cpu/step.py makes programs and says what the operands
// of each instruction are. Rows that `mask` marks False go through the arithmetic, but leave all states as they are.

#include "step_memory.h"

namespace {

enum Opcode : int64_t {
  EMBED, LINEAR, SMALL_BLOCKS, NORM, CONV, GATE, MULTIPLY_ADD, SOFT_CAP, MLSTM, HMLSTM, SLSTM, ATTEND
};
enum Weights : int64_t { FULL, BFLOAT16, INT8 };
enum Activation : int64_t { SILU, GELU, SIGMOID };

struct Operand {
  void* at;     // null: left out
  int64_t row;  // elements from one row of the batch to the next
};

struct Instruction {
  int64_t opcode, sizes[5];
  double number;
  Operand operands[12];

  template <class T = REAL>
  T* at(int operand, int64_t b = 0) const {
    const Operand& x = operands[operand];
    return x.at ? static_cast<T*>(x.at) + b * x.row : nullptr;
  }
  int64_t row(int operand) const { return operands[operand].row; }
};

// The error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26), for float; that of the C library for double.
inline Vec erf(Vec x) {
  if (!IS_FLOAT) {
    for (int j = 0; j < LANES; j++) x[j] = std::erf(x[j]);
    return x;
  }
  const Vec size = absolute(x), t = (REAL)1 / ((REAL)1 + (REAL)0.3275911 * size);
  Vec p = all(1.061405429);
  p = p * t - (REAL)1.453152027;
  p = p * t + (REAL)1.421413741;
  p = p * t - (REAL)0.284496736;
  p = p * t + (REAL)0.254829592;
  const Vec y = (REAL)1 - p * t * exp(-size * size);
  return x < 0 ? -y : y;
}

inline Vec activate(int64_t kind, Vec x) {
  switch (kind) {
    case SILU: return x * sigmoid(x);
    case GELU: return (REAL)0.5 * x * ((REAL)1 + erf(x * (REAL)0.70710678118654752));
    default: return sigmoid(x);
  }
}

// y = x / deviation * weight for each of `heads` parts of a row; about the mean if `centred`, else about 0.
inline void norm(int64_t heads, int64_t width, bool centred, REAL eps, const REAL* x, const REAL* weight, REAL* y) {
  for (int64_t head = 0; head < heads; head++, x += width, weight += width, y += width) {
    Vec sums{}, squares{};
    if (centred)
      for (int64_t j = 0; j < width; j += LANES) sums += load(x + j, lanes_at(j, width));
    const REAL mean = total(sums) / width;
    for (int64_t j = 0; j < width; j += LANES) {
      Vec d = load(x + j, lanes_at(j, width)) - mean;
      for (int lane = lanes_at(j, width); lane < LANES; lane++) d[lane] = 0;
      squares += d * d;
    }
    const REAL scale = 1 / std::sqrt(total(squares) / width + eps);
    along(width, y, [&](int64_t j, int count) {
      return scale * (load(x + j, count) - mean) * load(weight + j, count);
    });
  }
}

// y = bias + the filters on the last inputs [kernel - 1, width], oldest first, and x, which then becomes the newest.
inline void conv(int64_t width, int64_t kernel, bool keep, const REAL* x, const REAL* weight, const REAL* bias,
                 REAL* past, REAL* y) {
  along(width, y, [&](int64_t j, int count) {
    Vec sum = load(bias + j, count) + load(weight + (kernel - 1) * width + j, count) * load(x + j, count);
    for (int64_t tap = 0; tap + 1 < kernel; tap++)
      sum += load(weight + tap * width + j, count) * load(past + tap * width + j, count);
    return sum;
  });
  if (keep && kernel > 1) {
    std::memmove(past, past + width, (kernel - 2) * width * sizeof(REAL));
    std::memcpy(past + (kernel - 2) * width, x, width * sizeof(REAL));
  }
}

struct Machine {
  ParallelFor parallel_for;
  int64_t batch;
  const bool* mask;  // [batch], or null

  bool kept(int64_t b) const { return !mask || mask[b]; }

  template <class W>
  void linear(const Instruction& op) const {
    Linear<W>{batch, op.sizes[0], op.sizes[1], op.sizes[2],
              op.at(0), op.at<const typename W::Word>(1), op.at(2), op.at(3), op.at(4), op.at(5),
              op.row(0), op.row(4), op.row(5), op.sizes[3]}.run(parallel_for);
  }

  // work(b, head) for all heads of the rows that are not masked.
  template <class Work>
  void heads(int64_t heads, int64_t cost, const Work& work) const {
    share(parallel_for, batch * heads, cost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        if (kept(i / heads)) work(i / heads, i % heads);
    });
  }

  static Heads inputs(const Instruction& op) {
    return {op.sizes[0], op.sizes[1], op.sizes[2], op.at(0), op.at(1), op.at(2), op.at(3), op.at(4), op.at(5),
            op.row(0), op.row(1), op.row(2), op.row(3), op.row(4), op.row(5)};
  }

  void mlstm(const Instruction& op) const {
    const Heads all = inputs(op);
    const int64_t size = all.dk * all.dv;
    heads(all.heads, 2 * size, [&](int64_t b, int64_t head) {
      mlstm_head(all.of(b, head), op.at(6, b) + head * size, op.at(7, b) + head * all.dk, op.at(8, b) + head);
    });
  }

  void hmlstm(const Instruction& op) const {
    const Heads all = inputs(op);
    const int64_t levels = op.sizes[3], size = all.dk * all.dv;
    heads(all.heads, 8 * size, [&](int64_t b, int64_t head) {
      const int64_t slots = head * levels;
      hmlstm_head(all.of(b, head), op.at(6, b) + slots,
                  {levels, *op.at<int64_t>(11, b), op.at(7, b) + slots * size, op.at(8, b) + slots * all.dk,
                   op.at(9, b) + slots, op.at(10, b) + head});
    });
    for (int64_t b = 0; b < batch; b++)
      if (kept(b)) ++*op.at<int64_t>(11, b);
  }

  void slstm(const Instruction& op) const {
    const int64_t width = op.sizes[1];
    heads(op.sizes[0], 64 * width, [&](int64_t b, int64_t head) {
      const int64_t at = head * width;
      slstm_head(width, op.number, op.at(0, b) + 4 * at, op.at(1, b) + at, op.at(2, b) + at, op.at(3, b) + at,
                 op.at(4, b) + at);
    });
  }

  void attend(const Instruction& op) const {
    const int64_t count = op.sizes[0], width = op.sizes[1], slots = op.sizes[2];
    heads(count, 4 * slots * width, [&](int64_t b, int64_t head) {
      const int64_t at = head * width, first = *op.at<int64_t>(6, b);
      REAL *k = op.at(3, b) + at * slots, *v = op.at(4, b) + at * slots;
      const Ring ring{slots, width, first, k, v, op.at<bool>(5, b), op.at(7), op.at(8)};
      attend_head(ring, op.at(0, b) + at, op.at(1, b) + at, op.at(2, b) + at, op.at(9, b) + head * (slots + 1),
                  op.at(10, b) + at);
      if (slots) {
        std::memcpy(k + first * width, op.at(1, b) + at, width * sizeof(REAL));
        std::memcpy(v + first * width, op.at(2, b) + at, width * sizeof(REAL));
      }
    });
    for (int64_t b = 0; slots && b < batch; b++) {
      if (!kept(b)) continue;
      int64_t& first = *op.at<int64_t>(6, b);
      op.at<bool>(5, b)[first] = true;
      first = (first + 1) % slots;
    }
  }

  void row(const Instruction& op, int64_t b) const {
    const int64_t* sizes = op.sizes;
    const REAL *x = op.at(0, b), *other = op.at(1, b), number = op.number;
    REAL* y = op.at(op.opcode == CONV ? 4 : 2, b);
    switch (op.opcode) {
      case EMBED: std::memcpy(y, other + *op.at<int64_t>(0, b) * sizes[0], sizes[0] * sizeof(REAL)); return;
      case SMALL_BLOCKS:
        if (sizes[1] == 4) return small_blocks<4>(sizes[0], 4, x, other, y);
        return small_blocks<0>(sizes[0], sizes[1], x, other, y);
      case NORM: return norm(sizes[0], sizes[1], sizes[2], number, x, other, y);
      case CONV: return conv(sizes[0], sizes[1], kept(b), x, other, op.at(2), op.at(3, b), y);
      case GATE:
        return along(sizes[0], y, [&](int64_t j, int count) {
          const Vec a = activate(sizes[1], load(x + j, count));
          return other ? a * load(other + j, count) : a;
        });
      case MULTIPLY_ADD: {
        const REAL* weight = op.at(3);
        return along(sizes[0], y, [&](int64_t j, int count) {
          const Vec b = load(other + j, count);
          return load(x + j, count) + (weight ? load(weight + j, count) * b : b);
        });
      }
      case SOFT_CAP:
        return along(sizes[0], y, [&](int64_t j, int count) { return number * tanh(load(x + j, count) / number); });
    }
  }

  void run(const Instruction& op) const {
    switch (op.opcode) {
      case LINEAR:
        if (op.sizes[4] == INT8) return linear<Bytes>(op);
        if (op.sizes[4] == BFLOAT16) return linear<Halves>(op);
        return linear<Full>(op);
      case MLSTM: return mlstm(op);
      case HMLSTM: return hmlstm(op);
      case SLSTM: return slstm(op);
      case ATTEND: return attend(op);
      default:
        for (int64_t b = 0; b < batch; b++) row(op, b);
    }
  }
};

}  // namespace

extern "C" {

int64_t exlstm_lanes() { return LANES; }
int64_t exlstm_panel_vectors() { return PANEL_VECTORS; }

// Run a program once.
void exlstm_step(ParallelFor parallel_for, int64_t batch, const bool* mask, const Instruction* program, int64_t size) {
  const Machine machine{parallel_for, batch, mask};
  for (int64_t i = 0; i < size; i++) machine.run(program[i]);
}
}
