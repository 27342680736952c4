// Products of small matrices that lie in the cache: C = keep C + A B, register-blocked.

#pragma once

#include <type_traits>

#include "simd.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// Which part of a product is wanted or is not zero, for A or C lower triangular.
enum Part {
  ALL,
  A_LOWER,  // A[i, k] = 0 for k > i
  A_UPPER,  // A[i, k] = 0 for k < i
  C_LOWER,  // C[i, j] is wanted for j <= i alone
};

constexpr int ROWS = MOST_ROWS, PANEL = 4;  // a tile of C: ROWS x (PANEL vectors)

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t padded_rows(int64_t n) { return round_up(n, ROWS); }
inline int64_t padded_columns(int64_t n) { return round_up(n, LANES); }

// The sum of N lanes, by halves.
template <int N, class V>
inline REAL sum_of(V x) {
  if constexpr (N == 1) {
    return x[0];
  } else {
    typedef REAL Half __attribute__((vector_size(N / 2 * sizeof(REAL))));
    Half parts[2];
    std::memcpy(parts, &x, sizeof(parts));
    return sum_of<N / 2>(Half(parts[0] + parts[1]));
  }
}
inline REAL sum(Vec x) { return sum_of<LANES>(x); }

// Products go through k a word of A and of B at a time: a REAL or, where the processor multiplies bfloat16 and adds in
// float, a pair of neighbours along k.
struct __attribute__((may_alias)) Pair {
  BFloat16 first, second;
};
inline Bits load(const Pair* p) {
  Bits x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
inline void store(Pair* p, Bits x) { std::memcpy(p, &x, sizeof(x)); }

inline Vec multiply_add(Vec sum, REAL a, Vec b) { return sum + a * b; }
#if defined(__AVX512BF16__)
constexpr bool PAIRS = IS_FLOAT;
inline __m512bh as_pairs(Bits x) {  // by memcpy, as all casts here: this is compiled, if not used, for double as well
  __m512bh y{};
  std::memcpy(&y, &x, sizeof(x));
  return y;
}
inline Bits as_bits(__m512i x) {
  Bits y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}
inline Vec multiply_add(Vec sum, Pair a, Bits b) {
  int32_t word;
  std::memcpy(&word, &a, sizeof(word));
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(word), as_pairs(b));
}
// Vectors rounded to bfloat16, one after the other.
inline Bits rounded(Vec first, Vec second) {
  return as_bits((__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
}
// Words of the elements of two rows, those of REAL rounded; the second row is 0 if null.
inline Bits paired(const BFloat16* first, const BFloat16* second = nullptr) {
  const auto bits = [](const BFloat16* p) {
    return __builtin_convertvector(*reinterpret_cast<const BFloat16s*>(p), Bits);
  };
  return second ? bits(first) | bits(second) << 16 : bits(first);
}
inline Bits paired(const REAL* first, const REAL* second = nullptr) {
  const __m512i lane = _mm512_set_epi32(0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008,
                                        0x170007, 0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
  const __m512bh both = _mm512_cvtne2ps_pbh((__m512)(second ? load(second) : Vec{}), (__m512)load(first));
  return as_bits(_mm512_permutexvar_epi16(lane, (__m512i)both));
}
#else
constexpr bool PAIRS = false;
#endif

// What A and B of tensors of In are held as, and the word of a product of T.
template <class In>
using Item = std::conditional_t<PAIRS && std::is_same_v<In, BFloat16>, BFloat16, REAL>;
template <class T>
using Word = std::conditional_t<std::is_same_v<T, BFloat16>, Pair, REAL>;

// C = keep kept C + scale A B; kept and scale are one number a row, 1 if null.
struct Update {
  REAL keep = 0;
  const REAL *kept = nullptr, *scale = nullptr;
};

// Not inlined, and unrolled by order: else some callers' copies keep the sums in memory.
template <int VECTORS, class W>
__attribute__((noinline)) void product_tile(int64_t begin, int64_t end, const W* A, int64_t a_row, int64_t a_column,
                                            const W* B, int64_t b_row, REAL* C, int64_t c_row, const Update& update,
                                            int64_t row) {
  Vec sums[ROWS][VECTORS] = {};
  for (int64_t k = begin; k < end; k++) {
    decltype(load(B)) b[VECTORS];
    for (int j = 0; j < VECTORS; j++) b[j] = load(B + k * b_row + j * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const W a = A[r * a_row + k * a_column];
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; j++) sums[r][j] = multiply_add(sums[r][j], a, b[j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
    const REAL keep = update.kept ? update.keep * update.kept[row + r] : update.keep;
    const REAL scale = update.scale ? update.scale[row + r] : 1;
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) {
      REAL* c = C + r * c_row + j * LANES;
      store(c, update.keep == 0 ? scale * sums[r][j] : keep * load(c) + scale * sums[r][j]);
    }
  }
}

// C [M, N] = A [M, K] B [K, N], as `update` has it. Word (i, k) of A is A[i a_row + k a_column]; rows of B and C are
// consecutive. Rows up to padded_rows(M) and columns up to padded_columns(N) are read and written as well, and the
// second item of the last pair where K is odd.
template <class W>
inline void product(Part part, int64_t M, int64_t N, int64_t K, const W* A, int64_t a_row, int64_t a_column, const W* B,
                    int64_t b_row, REAL* C, int64_t c_row, const Update& update) {
  constexpr int64_t DEPTH = std::is_same_v<W, Pair> ? 2 : 1;
  static_assert(!PAIRS || ROWS % 2 == 0, "a tile of a triangular A begins with a whole pair");
  for (int64_t j = 0; j < N; j += PANEL * LANES)
    for (int64_t i = part == C_LOWER ? j / ROWS * ROWS : 0; i < M; i += ROWS) {
      const int64_t begin = part == A_UPPER ? i / DEPTH : 0;
      const int64_t end = ((part == A_LOWER && i + ROWS < K ? i + ROWS : K) + DEPTH - 1) / DEPTH;
      const int64_t columns = part == C_LOWER && i + ROWS < N ? i + ROWS - j : N - j;
      const W *a = A + i * a_row, *b = B + j;
      REAL* c = C + i * c_row + j;
      switch (columns > 3 * LANES ? 4 : columns > 2 * LANES ? 3 : columns > LANES ? 2 : 1) {
        case 4: product_tile<4>(begin, end, a, a_row, a_column, b, b_row, c, c_row, update, i); break;
        case 3: product_tile<3>(begin, end, a, a_row, a_column, b, b_row, c, c_row, update, i); break;
        case 2: product_tile<2>(begin, end, a, a_row, a_column, b, b_row, c, c_row, update, i); break;
        default: product_tile<1>(begin, end, a, a_row, a_column, b, b_row, c, c_row, update, i);
      }
    }
}

// LANES words of T from a row of T or, rounded, from one of REAL.
template <class T, class From>
inline auto words(const From* p) {
  if constexpr (std::is_same_v<T, From>)
    return load(reinterpret_cast<const Word<T>*>(p));
  else
    return rounded(load(p), load(p + LANES));
}

#if defined(__AVX512F__)
// Which lanes of rows a, b that lie STEP apart a block's transpose exchanges.
template <int STEP>
struct Exchange {
  int32_t low[16] = {}, high[16] = {};
  constexpr Exchange() {
    for (int lane = 0; lane < 16; lane++) {
      low[lane] = lane & STEP ? 16 + lane - STEP : lane;
      high[lane] = lane & STEP ? 16 + lane : lane + STEP;
    }
  }
};

template <int STEP>
inline void exchange(__m512i (&rows)[16]) {
  alignas(64) static constexpr Exchange<STEP> lanes;
  const __m512i low = _mm512_load_si512(lanes.low), high = _mm512_load_si512(lanes.high);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {
    if (i & STEP) continue;
    const __m512i a = rows[i], b = rows[i + STEP];
    rows[i] = _mm512_permutex2var_epi32(a, low, b);
    rows[i + STEP] = _mm512_permutex2var_epi32(a, high, b);
  }
}
#endif

// The transpose of LANES words of LANES rows.
template <class T, class From>
inline void transpose_block(const From* in, int64_t in_row, Word<T>* out, int64_t out_row) {
#if defined(__AVX512F__)
  if constexpr (IS_FLOAT) {
    __m512i rows[16];
    for (int i = 0; i < 16; i++) rows[i] = (__m512i)words<T>(in + i * in_row);
    exchange<1>(rows);
    exchange<2>(rows);
    exchange<4>(rows);
    exchange<8>(rows);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + i * out_row, rows[i]);
    return;
  }
#endif
  if constexpr (std::is_same_v<From, Word<T>>)
    for (int64_t j = 0; j < LANES; j++)
      for (int64_t i = 0; i < LANES; i++) out[j * out_row + i] = in[i * in_row + j];
}

// out [columns, rows] = in [rows, columns]^T
inline void transpose(const REAL* in, int64_t rows, int64_t columns, int64_t in_row, REAL* out, int64_t out_row) {
  for (int64_t i0 = 0; i0 < rows; i0 += LANES)
    for (int64_t j0 = 0; j0 < columns; j0 += LANES) {
      if (i0 + LANES <= rows && j0 + LANES <= columns) {
        transpose_block<REAL>(in + i0 * in_row + j0, in_row, out + j0 * out_row + i0, out_row);
        continue;
      }
      for (int64_t j = j0; j < columns && j < j0 + LANES; j++)
        for (int64_t i = i0; i < rows && i < i0 + LANES; i++) out[j * out_row + i] = in[i * in_row + j];
    }
}

}  // namespace
