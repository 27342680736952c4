// Products of small matrices that lie in the cache: C = keep C + A B, register-blocked.

#pragma once

#include "simd.h"

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

template <int VECTORS>
inline void product_tile(int64_t begin, int64_t end, const REAL* A, int64_t a_row, int64_t a_column, const REAL* B,
                         int64_t b_row, REAL* C, int64_t c_row, REAL keep) {
  Vec sums[ROWS][VECTORS];
  for (int r = 0; r < ROWS; r++)
    for (int j = 0; j < VECTORS; j++) sums[r][j] = keep == 0 ? Vec{} : keep * load(C + r * c_row + j * LANES);
  for (int64_t k = begin; k < end; k++) {
    Vec b[VECTORS];
    for (int j = 0; j < VECTORS; j++) b[j] = load(B + k * b_row + j * LANES);
    for (int r = 0; r < ROWS; r++) {
      const REAL a = A[r * a_row + k * a_column];
      for (int j = 0; j < VECTORS; j++) sums[r][j] += a * b[j];
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int j = 0; j < VECTORS; j++) store(C + r * c_row + j * LANES, sums[r][j]);
}

// C [M, N] = keep C + A [M, K] B [K, N]. Element (i, k) of A is A[i a_row + k a_column]; rows of B and C are
// consecutive. Rows up to padded_rows(M) and columns up to padded_columns(N) are read and written as well.
inline void product(Part part, int64_t M, int64_t N, int64_t K, const REAL* A, int64_t a_row, int64_t a_column,
                    const REAL* B, int64_t b_row, REAL* C, int64_t c_row, REAL keep) {
  for (int64_t j = 0; j < N; j += PANEL * LANES)
    for (int64_t i = part == C_LOWER ? j / ROWS * ROWS : 0; i < M; i += ROWS) {
      const int64_t begin = part == A_UPPER ? i : 0, end = part == A_LOWER && i + ROWS < K ? i + ROWS : K;
      const int64_t columns = part == C_LOWER && i + ROWS < N ? i + ROWS - j : N - j;
      const REAL *a = A + i * a_row, *b = B + j;
      REAL* c = C + i * c_row + j;
      switch (columns > 3 * LANES ? 4 : columns > 2 * LANES ? 3 : columns > LANES ? 2 : 1) {
        case 4: product_tile<4>(begin, end, a, a_row, a_column, b, b_row, c, c_row, keep); break;
        case 3: product_tile<3>(begin, end, a, a_row, a_column, b, b_row, c, c_row, keep); break;
        case 2: product_tile<2>(begin, end, a, a_row, a_column, b, b_row, c, c_row, keep); break;
        default: product_tile<1>(begin, end, a, a_row, a_column, b, b_row, c, c_row, keep);
      }
    }
}

inline REAL sum(Vec x) {
  REAL total = 0;
  for (int j = 0; j < LANES; j++) total += x[j];
  return total;
}

// out [columns, rows] = in [rows, columns]^T
inline void transpose(const REAL* in, int64_t rows, int64_t columns, int64_t in_row, REAL* out, int64_t out_row) {
  constexpr int64_t BLOCK = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += BLOCK)
    for (int64_t j0 = 0; j0 < columns; j0 += BLOCK)
      for (int64_t j = j0; j < columns && j < j0 + BLOCK; j++)
        for (int64_t i = i0; i < rows && i < i0 + BLOCK; i++) out[j * out_row + i] = in[i * in_row + j];
}

}  // namespace
