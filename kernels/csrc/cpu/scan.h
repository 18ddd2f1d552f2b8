// The passes over one chunk and G vectors of channels. All scans are exclusive; a = e^-lam.
//
//   prefix  F_t = sum_{i<t} a^(t-1-i) x_i v_i    G the same without v        x_i = e^(k_i), relative to the chunk's scale
//   suffix  R_t = sum_{i>t} a^(i-1-t) x_i v_i    Q the same without v
//   y_t = (F_t + R_t + e^u x_t v_t) / (G_t + Q_t + e^u x_t)
#pragma once

#include "state.h"

namespace {

// The channels of a pass: their constants.
template <int G>
struct Lanes {
    Pack<G> decay, rest, bonus;  // a = decay + rest, e^u
    const float* powers;     // a^i of vector j at powers[(j * CHUNK + i) * LANES]
    int count;               // channels that exist

    INLINE static Pack<G> read(const float* p) { return get<G>(p); }

    // state = a state + x. A single float would have a wrong by up to 3e-8, and 64 times that at a chunk's end.
    INLINE void step(Pack<G>& state, Pack<G> x) const { state = decay * state + (rest * state + x); }

    INLINE Pack<G> power(int i) const {
        Pack<G> result;
        for (int j = 0; j < G; j++) result.part[j] = load(powers + (j * CHUNK + i) * LANES);
        return result;
    }
};

// Rows of a tensor: token t begins at base + t * stride.
template <class T>
struct Rows {
    T* base;
    int64_t stride;
    INLINE T* at(int64_t token) const { return base + token * stride; }
};

// One chunk's tokens: their rows, and those of the chunk that the pass comes to next, `after`, which is fetched
// meanwhile: memory and arithmetic then take their time together and not in turns.
struct Tokens {
    int n;
    int64_t row[CHUNK], after[CHUNK];
};

template <int G, class T>
INLINE void prefetch(const T* p) {
    for (int j = 0; j < Pack<G>::WIDTH * int(sizeof(T)); j += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(p) + j, 0, 2);
}

// Two sums over a chunk, seen from its end (prefix) and from its start (suffix).
template <int G>
struct Sums {
    Pack<G> prefix[2] = {}, suffix[2] = {};

    INLINE void add(const Lanes<G>& lanes, int i, int n, Pack<G> first, Pack<G> second) {
        Pack<G> to_end = lanes.power(n - 1 - i), to_start = lanes.power(i);
        prefix[0] += to_end * first;
        prefix[1] += to_end * second;
        suffix[0] += to_start * first;
        suffix[1] += to_start * second;
    }

    INLINE void write(float* state, int64_t channels, int count) const {
        put(state, prefix[0], count);
        put(state + channels, prefix[1], count);
        put(state + 3 * channels, suffix[0], count);
        put(state + 4 * channels, suffix[1], count);
    }
};

// The largest key of each channel.
template <int G, class T>
INLINE Pack<G> top_of(Rows<const T> k, const int64_t* row, int n, const Lanes<G>& lanes) {
    Pack<G> top = get<G>(k.at(row[0]), lanes.count);
    for (int i = 1; i < n; i++) top = maximum(top, get<G>(k.at(row[i]), lanes.count));
    return top;
}

template <int G, bool CLAMP, class T>
INLINE Sums<G> aggregate_scaled(Rows<const T> k, Rows<const T> v, const Tokens& tokens, const Lanes<G>& lanes,
                                Pack<G> scale, Pack<G>* top) {
    Sums<G> sums;
    Pack<G> next = get<G>(k.at(tokens.after[0]), lanes.count);
    for (int i = 0; i < tokens.n; i++) {
        next = maximum(next, get<G>(k.at(tokens.after[i]), lanes.count));
        Pack<G> key = get<G>(k.at(tokens.row[i]), lanes.count);
        Pack<G> x = exp2v(relative(CLAMP ? clamp(key) : key, scale));
        sums.add(lanes, i, tokens.n, x * get<G>(v.at(tokens.row[i]), lanes.count), x);
    }
    *top = next;
    return sums;
}

// P1: a chunk's own F, G, R, Q and scale, into its state. `top` is its largest key; out comes that of the chunk after.
template <int G, class T>
INLINE void aggregate(Rows<const T> k, Rows<const T> v, const Tokens& tokens, const Lanes<G>& lanes,
                      float* state, int64_t channels, Pack<G>* top) {
    Pack<G> scale = scale_of(*top);
    Sums<G> sums = UNLIKELY(any_extreme(scale)) ? aggregate_scaled<G, true>(k, v, tokens, lanes, scale, top)
                                                : aggregate_scaled<G, false>(k, v, tokens, lanes, scale, top);
    sums.write(state, channels, lanes.count);
    put(state + 6 * channels, scale, lanes.count);
}

// The scanned carries of a chunk, brought to one scale: that of its largest key or carry.
template <int G>
struct Carries {
    Pack<G> f, g, r, q, scale;
    bool clamped;

    INLINE Carries(const float* state, int64_t channels, int count) {
        Pack<G> before = get<G>(state + 2 * channels, count), after = get<G>(state + 5 * channels, count);
        Pack<G> own = get<G>(state + 6 * channels, count);
        scale = maximum(own, maximum(before, after));
        Pack<G> down = power_of_two(before - scale), up = power_of_two(after - scale);
        f = get<G>(state, count) * down;
        g = get<G>(state + channels, count) * down;
        r = get<G>(state + 3 * channels, count) * up;
        q = get<G>(state + 4 * channels, count) * up;
        clamped = any_extreme(own);
    }
};

template <int G>
INLINE Carries<G> carries_of(const Lanes<G>& lanes, const float* state, int64_t channels) {
    return Carries<G>(state, channels, lanes.count);
}

template <int G>
using Tile = float[CHUNK][Pack<G>::WIDTH];

// The suffix half of a chunk, from its last token: x, and R and Q before each token.
template <int G, bool CLAMP, class T>
INLINE void suffix_pass(Rows<const T> k, Rows<const T> v, const Tokens& tokens, const Lanes<G>& lanes,
                        const Carries<G>& carry, Tile<G>& x, Tile<G>& r, Tile<G>& q) {
    Pack<G> sum = carry.r, weight = carry.q;
    for (int i = tokens.n - 1; i >= 0; i--) {
        prefetch<G>(k.at(tokens.after[i]));
        Pack<G> key = get<G>(k.at(tokens.row[i]), lanes.count);
        Pack<G> e = exp2v(relative(CLAMP ? clamp(key) : key, carry.scale));
        Pack<G> ev = e * get<G>(v.at(tokens.row[i]), lanes.count);
        put(x[i], e);
        put(r[i], sum);
        put(q[i], weight);
        lanes.step(sum, ev);
        lanes.step(weight, e);
    }
}

// The smallest weight that tokens within reach can have is far above; where there is none, y is 0 / this.
constexpr float NO_WEIGHT = 1e-30f;

// P3: y of a chunk, times sigmoid(r) where GATE, through put_y(token, y).
template <bool GATE, bool CLAMP, int G, class T, class Put>
INLINE void output(Rows<const T> k, Rows<const T> v, Rows<const T> gate, const Tokens& tokens,
                   const Lanes<G>& lanes, const Carries<G>& carry, Put put_y) {
    alignas(64) Tile<G> x, r, q;
    suffix_pass<G, CLAMP>(k, v, tokens, lanes, carry, x, r, q);
    Pack<G> f = carry.f, g = carry.g;
    for (int i = 0; i < tokens.n; i++) {
        prefetch<G>(v.at(tokens.after[i]));
        Pack<G> e = get<G>(x[i]), ev = e * get<G>(v.at(tokens.row[i]), lanes.count);
        Pack<G> numerator = lanes.bonus * ev + (f + get<G>(r[i])), weight = lanes.bonus * e + (g + get<G>(q[i]));
        Pack<G> y = numerator * reciprocal(at_least(weight, NO_WEIGHT));
        if (GATE) y *= sigmoid(get<G>(gate.at(tokens.row[i]), lanes.count));
        put_y(tokens.row[i], y);
        lanes.step(f, ev);
        lanes.step(g, e);
    }
}

}  // namespace
