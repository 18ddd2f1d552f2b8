// Backward over one chunk: alpha = gy / D and beta = alpha y, scanned like keys and values.
#pragma once

#include "scan.h"

namespace {

constexpr int ADJOINT = 6;  // floats a chunk and channel: prefix PA, PB, exponent; suffix SA, SB, exponent

template <class T>
struct Tensors {
    Rows<const T> k, v, r, grad;
    Rows<T> gk, gv, gr;
};

template <int G>
struct Share {
    Pack<G> y, alpha, beta;

    // From the sums of one token and the gradient of y. Where no key is in sight, y is 0 and has no gradient.
    INLINE Share(Pack<G> numerator, Pack<G> weight, Pack<G> grad) {
        Pack<G> inverse = where_positive(weight, reciprocal(at_least(weight, NO_WEIGHT)));
        y = numerator * inverse;
        alpha = grad * inverse;
        beta = alpha * y;
    }
};

// B1: a chunk's own sums of alpha and beta, in both directions. They carry the exponent -scale.
template <int G, bool GATE, bool CLAMP, class T>
INLINE void adjoint_sums(const Tensors<T>& at, const Tokens& tokens, const Lanes<G>& lanes,
                         const Carries<G>& carry, float* adjoint, int64_t channels) {
    alignas(64) Tile<G> x, r, q;
    suffix_pass<G, CLAMP>(at.k, at.v, tokens, lanes, carry, x, r, q);
    Pack<G> f = carry.f, g = carry.g;
    Sums<G> sums;
    for (int i = 0; i < tokens.n; i++) {
        prefetch<G>(at.v.at(tokens.after[i]));
        prefetch<G>(at.grad.at(tokens.after[i]));
        Pack<G> e = get<G>(x[i]), ev = e * get<G>(at.v.at(tokens.row[i]), lanes.count);
        Pack<G> grad = get<G>(at.grad.at(tokens.row[i]), lanes.count);
        if (GATE) grad *= sigmoid(get<G>(at.r.at(tokens.row[i]), lanes.count));
        Share<G> own(lanes.bonus * ev + (f + get<G>(r[i])), lanes.bonus * e + (g + get<G>(q[i])), grad);
        sums.add(lanes, i, tokens.n, own.alpha, own.beta);
        lanes.step(f, ev);
        lanes.step(g, e);
    }
    sums.write(adjoint, channels, lanes.count);
    put(adjoint + 2 * channels, -carry.scale, lanes.count);
    put(adjoint + 5 * channels, -carry.scale, lanes.count);
}

// The scanned sums of alpha and beta around a chunk, in units of 2^-scale.
template <int G>
struct Around {
    Pack<G> pa, pb, sa, sb;

    INLINE Around(const float* adjoint, int64_t channels, int count, Pack<G> scale) {
        Pack<G> before = power_of_two(get<G>(adjoint + 2 * channels, count) + scale);
        Pack<G> after = power_of_two(get<G>(adjoint + 5 * channels, count) + scale);
        pa = get<G>(adjoint, count) * before;
        pb = get<G>(adjoint + channels, count) * before;
        sa = get<G>(adjoint + 3 * channels, count) * after;
        sb = get<G>(adjoint + 4 * channels, count) * after;
    }
};

// B3: gradients of a chunk's tokens; gives the chunk's part of g_lam (without its factor) and of g_u.
//
//   g_v = x TA + s    g_k = v x TA - x TB + s (v - y)    s = e^u x alpha, TA = PA + SA without the token itself
template <int G, bool GATE, bool CLAMP, class T>
INLINE void gradients(const Tensors<T>& at, const Tokens& tokens, const Lanes<G>& lanes,
                      const Carries<G>& carry, Around<G> around, Pack<G>* lam, Pack<G>* u) {
    alignas(64) Tile<G> x, r, q, y, alpha, pa, pb;
    suffix_pass<G, CLAMP>(at.k, at.v, tokens, lanes, carry, x, r, q);
    Pack<G> f = carry.f, g = carry.g, crossed = {}, bonus = {};
    for (int i = 0; i < tokens.n; i++) {
        prefetch<G>(at.v.at(tokens.after[i]));
        prefetch<G>(at.grad.at(tokens.after[i]));
        Pack<G> e = get<G>(x[i]), ev = e * get<G>(at.v.at(tokens.row[i]), lanes.count);
        Pack<G> sum = get<G>(r[i]), weight = get<G>(q[i]);
        Pack<G> incoming = get<G>(at.grad.at(tokens.row[i]), lanes.count), grad = incoming, gate = {};
        if (GATE) {
            gate = sigmoid(get<G>(at.r.at(tokens.row[i]), lanes.count));
            grad *= gate;
        }
        Share<G> own(lanes.bonus * ev + (f + sum), lanes.bonus * e + (g + weight), grad);
        if (GATE) put(at.gr.at(tokens.row[i]), incoming * own.y * (gate - gate * gate), lanes.count);
        crossed += sum * around.pa - weight * around.pb;
        put(y[i], own.y);
        put(alpha[i], own.alpha);
        put(pa[i], around.pa);
        put(pb[i], around.pb);
        put(r[i], f);
        put(q[i], g);
        lanes.step(around.pa, own.alpha);
        lanes.step(around.pb, own.beta);
        lanes.step(f, ev);
        lanes.step(g, e);
    }
    for (int i = tokens.n - 1; i >= 0; i--) {
        Pack<G> e = get<G>(x[i]), v = get<G>(at.v.at(tokens.row[i]), lanes.count);
        Pack<G> own = get<G>(alpha[i]), mean = get<G>(y[i]);
        crossed += get<G>(r[i]) * around.sa - get<G>(q[i]) * around.sb;
        Pack<G> gv = e * (get<G>(pa[i]) + around.sa), gb = e * (get<G>(pb[i]) + around.sb);
        Pack<G> self = lanes.bonus * e * own, self_key = self * (v - mean);
        bonus += self_key;
        put(at.gv.at(tokens.row[i]), gv + self, lanes.count);
        put(at.gk.at(tokens.row[i]), v * gv - gb + self_key, lanes.count);
        lanes.step(around.sa, own);
        lanes.step(around.sb, own * mean);
    }
    *lam = crossed;
    *u = bonus;
}

}  // namespace
