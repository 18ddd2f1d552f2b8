// P2: sums of chunks become carries, in double, for both directions. Vectorised by the compiler over channels.
#pragma once

#include <math.h>

#include "state.h"

namespace {

// 2^n for whole n, 0 below the smallest normal number.
INLINE double power_of_two(double n) {
    double shifted = larger(-1023.0, smaller(1023.0, n)) + 6755399441055744.0;  // 1.5 * 2^52 rounds to a whole number
    int64_t bits;
    std::memcpy(&bits, &shifted, 8);
    bits = (bits + 1023) << 52;
    double power;
    std::memcpy(&power, &bits, 8);
    return power;
}

// Exponent of x >= 0 as a whole number, about -1023 for 0.
INLINE double exponent_of(double x) {
    int64_t bits;
    std::memcpy(&bits, &x, 8);
    return double(bits >> 52) - 1023.0;
}

// A running pair of sums, one per channel: (first, second) * 2^exponent.
struct Running {
    Buffer<double> first, second, exponent;
    explicit Running(int64_t channels) : first(channels), second(channels), exponent(channels) {
        for (int64_t c = 0; c < channels; c++) exponent[c] = NOTHING;
    }
};

// state[0..2] of one chunk: out goes its own (first, second) at `scale`, in comes what was carried to it. `over` is
// a^n. BY_SECOND: second is a sum of weights, which alone decides the exponent.
template <bool BY_SECOND>
void carry_chunk(Running& run, float* state, const float* scale, const double* over, int64_t channels) {
    double* __restrict first = run.first.data();
    double* __restrict second = run.second.data();
    double* __restrict exponent = run.exponent.data();
    constexpr double NONE = NOTHING;
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
        double own_first = state[c], own_second = state[channels + c], own_scale = scale[c];
        double size = BY_SECOND ? own_second : fabs(own_first) + fabs(own_second);
        double own = size > 0 ? own_scale : NONE;
        state[c] = float(first[c]);
        state[channels + c] = float(second[c]);
        state[2 * channels + c] = float(exponent[c]);
        double top = larger(exponent[c], own);
        double kept = over[c] * power_of_two(exponent[c] - top), added = power_of_two(own - top);
        double a = first[c] * kept + own_first * added, b = second[c] * kept + own_second * added;
        double magnitude = BY_SECOND ? b : fabs(a) + fabs(b);
        double shift = exponent_of(magnitude), back = power_of_two(-shift);
        first[c] = a * back;
        second[c] = b * back;
        exponent[c] = magnitude > 0 ? top + shift : NONE;
    }
}

// All chunks of one image in one direction; `width` floats a chunk and channel, the suffix's from the fourth on.
// over(chunk) gives a^n for it.
template <bool BY_SECOND, class Over>
void scan_carries_of(float* memory, int64_t chunks, int width, bool suffix, int64_t channels, Over over) {
    Running run(channels);
    for (int64_t i = 0; i < chunks; i++) {
        int64_t number = suffix ? chunks - 1 - i : i;
        float* chunk = memory + number * width * channels;
        float* state = chunk + (suffix ? 3 : 0) * channels;
        // Backward's chunks carry an exponent for each direction, forward's one for both.
        const float* scale = width == STATE ? chunk + 6 * channels : state + 2 * channels;
        carry_chunk<BY_SECOND>(run, state, scale, over(number), channels);
    }
}

}  // namespace
