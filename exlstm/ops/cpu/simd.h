// Vectors of REAL by the extensions of GCC and Clang, and what the kernels do with them. Plain C++17.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <cmath>
#include <vector>

#include "parallel.h"

#ifndef REAL
#define REAL float
#endif

#if defined(__AVX512F__)
constexpr int BYTES = 64, MOST_ROWS = 6;
#elif defined(__AVX__)
constexpr int BYTES = 32, MOST_ROWS = 3;
#else
constexpr int BYTES = 16, MOST_ROWS = 4;
#endif
constexpr int LANES = BYTES / sizeof(REAL);

typedef REAL Vec __attribute__((vector_size(BYTES)));
typedef REAL VecAnywhere __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

namespace {

struct BFloat16 { uint16_t bits; };

inline REAL widen(REAL x) { return x; }
inline REAL widen(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void narrow(REAL x, REAL& out) { out = x; }
inline void narrow(REAL x, BFloat16& out) {
  float value = float(x);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  // Round to nearest even; a NaN keeps a bit of its payload.
  out.bits = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline Vec load(const REAL* p) { return *reinterpret_cast<const VecAnywhere*>(p); }
inline void store(REAL* p, Vec x) { *reinterpret_cast<VecAnywhere*>(p) = x; }
inline Vec all(REAL x) { return Vec{} + x; }

// A vector of bfloat16, by the steps of `widen` and `narrow`.
typedef uint16_t BFloat16s __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef float Floats __attribute__((vector_size(LANES * 4)));
inline Vec load(const BFloat16* p) {
  const Bits bits = __builtin_convertvector(*reinterpret_cast<const BFloat16s*>(p), Bits) << 16;
  Floats value;
  std::memcpy(&value, &bits, sizeof(value));
  return __builtin_convertvector(value, Vec);
}
inline void store(BFloat16* p, Vec x) {
  const Floats value = __builtin_convertvector(x, Floats);
  Bits bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *reinterpret_cast<BFloat16s*>(p) = __builtin_convertvector(value != value ? Bits{} + 0x7fc0 : rounded, BFloat16s);
}

// The first `count` lanes, the others 0; from and to tensors, whose rows need not be whole vectors.
template <class T>
inline Vec load(const T* p, int count) {
  if (count == LANES) return load(p);
  Vec x{};
  for (int j = 0; j < count; j++) x[j] = widen(p[j]);
  return x;
}
inline Vec load(const REAL* p, int count) {
  if (count == LANES) return load(p);
  Vec x{};
  for (int j = 0; j < count; j++) x[j] = p[j];
  return x;
}
template <class T>
inline void store(T* p, Vec x, int count) {
  if (count == LANES) return store(p, x);
  for (int j = 0; j < count; j++) narrow(x[j], p[j]);
}
inline void store(REAL* p, Vec x, int count) {
  if (count == LANES) return store(p, x);
  for (int j = 0; j < count; j++) p[j] = x[j];
}

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline Vec absolute(Vec x) { return x < 0 ? -x : x; }

#define IS_FLOAT (sizeof(REAL) == 4)

inline Vec exp(Vec x) {
  if (!IS_FLOAT) {
    for (int j = 0; j < LANES; j++) x[j] = std::exp(x[j]);
    return x;
  }
  // 2^n e^r with |r| <= log(2) / 2; 0 where the result would be subnormal, finite up to the largest float.
  typedef int32_t Int __attribute__((vector_size(LANES * 4)));
  typedef float Float __attribute__((vector_size(LANES * 4)));
  Vec y = x > (REAL)88.3 ? all(88.3) : (x < (REAL)-87.3 ? all(-87.3) : x);
  const REAL magic = 12582912;  // 1.5 * 2^23: adding it rounds to an integer
  Vec n = (y * (REAL)1.44269504088896341 + magic) - magic;
  Vec r = y - n * (REAL)0.693359375 - n * (REAL)-2.12194440e-4;
  Vec p = all(1.9875691500e-4);
  p = p * r + (REAL)1.3981999507e-3;
  p = p * r + (REAL)8.3334519073e-3;
  p = p * r + (REAL)4.1665795894e-2;
  p = p * r + (REAL)1.6666665459e-1;
  p = p * r + (REAL)5.0000001201e-1;
  p = p * r * r + r + (REAL)1;
  Int bits = (__builtin_convertvector(n, Int) + 127) << 23;
  Float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  p = p * __builtin_convertvector(scale, Vec);
  return x < (REAL)-87.3 ? Vec{} : p;
}

// log(1 + exp(-|x|)), by log(1 + u) = 2 atanh(u / (2 + u)) with u in (0, 1].
inline Vec softplus_of_minus_abs(Vec x) {
  if (!IS_FLOAT) {
    for (int j = 0; j < LANES; j++) x[j] = std::log1p(std::exp(-std::fabs(x[j])));
    return x;
  }
  Vec u = exp(-absolute(x)), s = u / (u + (REAL)2), q = s * s;
  Vec p = all(1.0 / 15);
  p = p * q + (REAL)(1.0 / 13);
  p = p * q + (REAL)(1.0 / 11);
  p = p * q + (REAL)(1.0 / 9);
  p = p * q + (REAL)(1.0 / 7);
  p = p * q + (REAL)(1.0 / 5);
  p = p * q + (REAL)(1.0 / 3);
  return 2 * (s + s * q * p);
}

inline Vec logsigmoid(Vec x) { return (x < 0 ? x : Vec{}) - softplus_of_minus_abs(x); }
inline Vec log_forget(Vec f, REAL cap) { return logsigmoid(f > cap ? all(cap) : f); }
inline Vec sigmoid(Vec x) { return (REAL)1 / ((REAL)1 + exp(-x)); }

inline Vec tanh(Vec x) {
  if (!IS_FLOAT) {
    for (int j = 0; j < LANES; j++) x[j] = std::tanh(x[j]);
    return x;
  }
  Vec e = exp((REAL)-2 * absolute(x)), large = ((REAL)1 - e) / ((REAL)1 + e), q = x * x;
  Vec p = all(62.0 / 2835);  // the series near 0, where the quotient cancels
  p = p * q - (REAL)(17.0 / 315);
  p = p * q + (REAL)(2.0 / 15);
  p = p * q - (REAL)(1.0 / 3);
  return absolute(x) < (REAL)0.25 ? x + x * q * p : (x < 0 ? -large : large);
}

}  // namespace
