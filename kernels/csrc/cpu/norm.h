// RMSNorm without its gain.
#pragma once

#include <math.h>

#include "simd.h"

namespace {

// 1 / sqrt(mean(x^2) + epsilon) of `width` channels, a multiple of LANES.
INLINE Vec norm_of(const float* x, int64_t width, float epsilon) {
    Vec squares = {};
    for (int64_t c = 0; c < width; c += LANES) {
        Vec part = load(x + c);
        squares += part * part;
    }
    return splat(1.0f / sqrtf(total(squares) / float(width) + epsilon));
}

}  // namespace
