// The constants of all channels, padded to whole vectors.
#pragma once

#include <math.h>

#include "scan.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

struct Constants {
    int64_t channels, groups;
    Buffer<float> decay, rest, bonus, powers;
    Buffer<double> over;  // a^n over a whole chunk

    Constants(int64_t channels, int64_t length, const double* lam, const double* u)
        : channels(channels),
          groups((channels + LANES - 1) / LANES),
          decay(groups * LANES),
          rest(groups * LANES),
          bonus(groups * LANES),
          powers(groups * LANES * CHUNK),
          over(channels) {
        // A short sequence may decay faster than a whole chunk could.
        int n = int(smaller<int64_t>(CHUNK, length));
        for (int64_t c = 0; c < channels; c++) {
            double step = exp(-lam[c]), power = 1.0;
            decay[c] = float(step);
            rest[c] = float(step - double(decay[c]));
            bonus[c] = float(exp(u[c]));
            over[c] = exp(-lam[c] * CHUNK);
            float* own = powers.data() + (c / LANES) * CHUNK * LANES + c % LANES;
            for (int i = 0; i < n; i++, power *= step) own[i * LANES] = float(power);
        }
    }

    template <int G>
    Lanes<G> lanes(int64_t group) const {
        int64_t at = group * LANES;
        return {get<G>(decay.data() + at), get<G>(rest.data() + at), get<G>(bonus.data() + at), powers.data() + at * CHUNK,
                int(smaller<int64_t>(G * LANES, channels - at))};
    }

    // `work(lanes, first channel)` for all channels, two vectors at a time where there are two.
    template <class Work>
    void for_lanes(Work work) const {
        int64_t group = 0;
        for (; (group + 2) * LANES <= channels; group += 2) work(lanes<2>(group), group * LANES);
        for (; group < groups; group++) work(lanes<1>(group), group * LANES);
    }
};

}  // namespace
