// What every pass shares: chunks of tokens, their scale, and the weights a^i of their tokens.
#pragma once

#include "simd.h"

namespace {

constexpr int CHUNK = 64;
constexpr int STATE = 7;  // floats a chunk and channel: prefix F, G, exponent; suffix R, Q, exponent; the chunk's scale
constexpr float LOWEST = -1e6f;    // finite keys below count as this: beyond, float has no room left for a decay
constexpr float NOTHING = -1e9f;   // exponent of a state without any token

// Exponent E with 2^(k log2 e - E) <= 1 for all keys of a chunk whose largest is `top`.
INLINE Vec scale_of(Vec top) {
    Vec z = minimum(maximum(top, splat(LOWEST)), splat(-LOWEST)) * LOG2E;
    Vec whole = z + ROUND - ROUND;
    return whole + (Vec)((Bits)(whole < z) & (Bits)splat(1.0f));
}

// k log2 e - E without the rounding of the product, which at keys of 800 would be worth 1e-4.
INLINE Vec relative(Vec k, Vec scale) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return k * LOG2E - scale;
#else
    typedef double Wide __attribute__((vector_size(8 * LANES)));
    Wide z = __builtin_convertvector(k, Wide) * double(LOG2E) - __builtin_convertvector(scale, Wide);
    return __builtin_convertvector(z, Vec);
#endif
}

INLINE Vec clamp(Vec k) {
    Vec inside = minimum(maximum(k, splat(LOWEST)), splat(-LOWEST));
    return k == -__builtin_inff() ? k : inside;
}

// Whether the keys of chunks of this scale need `clamp`.
INLINE Bits extreme(Vec scale) {
    return (Bits)(scale <= LOWEST * LOG2E + 1.0f) | (Bits)(scale >= -LOWEST * LOG2E - 1.0f);
}

// clang-format off
template <int G> INLINE Pack<G> scale_of(Pack<G> a) EACH(scale_of(a.part[j]))
template <int G> INLINE Pack<G> clamp(Pack<G> a) EACH(clamp(a.part[j]))
template <int G> INLINE Pack<G> relative(Pack<G> a, Pack<G> b) EACH(relative(a.part[j], b.part[j]))
// clang-format on

template <int G>
INLINE bool any_extreme(Pack<G> scale) {
    Bits mask = extreme(scale.part[0]);
    for (int j = 1; j < G; j++) mask |= extreme(scale.part[j]);
    return any(mask);
}

}  // namespace
