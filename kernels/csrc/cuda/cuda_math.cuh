// The two arithmetics of the CUDA kernels. Both hold pairs of sums, (F, G) = sum of a^d (x v, x) for the states and
// (A, B) = sum of a^d (alpha, beta) for backward, where a = e^-lam, x = e^k, alpha = dy / D, beta = alpha y.
//
//   Fast    float; all sums of a chunk are relative to one integer power of two, 2^scale
//   Robust  double; every sum has an integer exponent and is renormalised at every token: right for any input
//
// This is CUDA for nvcc and NVRTC (no host headers), and C++ for the emulation in tests/gpu.
#pragma once

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define SEPARATE static __device__ __noinline__
#define SHARED __shared__
#else
#define DEVICE inline
#define SEPARATE static
#define SHARED static
#endif

namespace {

typedef long long i64;

constexpr int CHUNK = 64;
constexpr int THREADS = 128;
constexpr int NOTHING = -(1 << 30);   // exponent of a sum without any token
constexpr float LOG2E = 1.44269504f, LOG2E_REST = 1.92596299e-8f;
constexpr double LOG2E_EXACT = 1.4426950408889634;
constexpr float LOWEST = 1e6f;        // keys beyond +-this count as this: float has no room for a decay there
constexpr float FLOAT_MAX = 3.402823466e38f;

#ifdef __CUDACC__
DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
DEVICE float exp2_approx(float x) { return exp2f(x); }
DEVICE float reciprocal(float x) { return 1.0f / x; }
#endif

#define HIDDEN __int_as_float(0xff800000)  // -inf, the key of a token that no other sees

DEVICE float sigmoid(float x) { return reciprocal(1.0f + exp2_approx(-x * LOG2E)); }

// A key within +-LOWEST; -inf, which hides a token, and NaN stay.
DEVICE float bounded(float key) { return key >= -FLOAT_MAX ? fminf(fmaxf(key, -LOWEST), LOWEST) : key; }

// Exponent E with 2^(k log2 e - E) <= 1 for all keys of a chunk whose largest is `top`.
DEVICE int scale_of(float top) { return int(ceilf(fminf(fmaxf(top, -LOWEST), LOWEST) * LOG2E)); }

// 2^n; 0 below the smallest normal number.
DEVICE float power_of_two(int n) { return __int_as_float((max(-127, min(127, n)) + 127) << 23); }
DEVICE double power_of_two_wide(i64 n) {
    return __hiloint2double((int(max(i64(-1023), min(i64(1023), n))) + 1023) << 20, 0);
}

// mantissa * 2^exponent, the mantissa in [1, 2).
struct Power {
    double mantissa;
    int exponent;
};

DEVICE Power exp2_wide(double x) {
    double whole = floor(x);
    return {exp2(x - whole), int(whole)};
}

DEVICE Power square(Power x) {
    double product = x.mantissa * x.mantissa;
    bool large = product >= 2.0;
    return {large ? product * 0.5 : product, 2 * x.exponent + large};
}

// e^(-lam n), from a lam whose decay over the whole sequence still has an exponent.
DEVICE Power decay_over(float lam, i64 n, i64 length) {
    double limit = 1e8 / double(length + 4 * CHUNK);
    return exp2_wide(-fmin(fmax(double(lam) * LOG2E_EXACT, -limit), limit) * double(n));
}

// (first, second) * 2^exponent.
struct Wide {
    double first, second;
    int exponent;
};

// With the exponent of `size`: of both sums, or of the second alone.
DEVICE Wide normal(Wide x, double size) {
    if (size == 0.0) return {0.0, 0.0, NOTHING};
    int shift = ((__double2hiint(size) >> 20) & 0x7ff) - 1023;
    double back = power_of_two_wide(-shift);
    return {x.first * back, x.second * back, x.exponent + shift};
}

// older * decay + newer, not renormalised.
DEVICE Wide sum_of(Wide older, Power decay, Wide newer) {
    int aged = older.exponent + decay.exponent, top = max(aged, newer.exponent);
    double kept = decay.mantissa * power_of_two_wide(aged - top), added = power_of_two_wide(newer.exponent - top);
    return {older.first * kept + newer.first * added, older.second * kept + newer.second * added, top};
}

struct Fast {
    typedef float Real;
    typedef float Weight;  // e^k 2^-scale
    struct Sum {
        float first, second;
    };
    struct Share {
        float alpha, y;
    };
    struct Stored {
        float first, second;
        int exponent;
    };

    float decay, step, bonus, scale;  // a, a over a group of tokens, e^u

    DEVICE void set(float lam, float u, int group, i64 length, int exponent) {
        (void)length;
        double a = exp(-double(lam)), power = a;
        for (int i = 1; i < group; i *= 2) power *= power;
        decay = float(a), step = float(power), bonus = float(exp(double(u))), scale = float(exponent);
    }

    DEVICE static Sum zero() { return {0.0f, 0.0f}; }
    DEVICE static Sum pair(float first, float second) { return {first, second}; }
    DEVICE Weight weight(float key) const {
        float k = bounded(key);
        return exp2_approx(fmaf(k, LOG2E_REST, fmaf(k, LOG2E, -scale)));
    }
    DEVICE static Sum token(Weight x, float v) { return {x * v, x}; }
    DEVICE static Sum token(Share s) { return {s.alpha, s.alpha * s.y}; }

    // The sums one token, and one group of tokens, further on.
    DEVICE Sum advance(Sum s, Sum x) const { return {fmaf(decay, s.first, x.first), fmaf(decay, s.second, x.second)}; }
    DEVICE Sum join(Sum s, Sum x) const { return {fmaf(step, s.first, x.first), fmaf(step, s.second, x.second)}; }

    // Between memory, where sums have exponents, and the chunk's scale; `sign` -1 for sums of alpha and beta.
    DEVICE Sum receive(Stored s, int sign) const {
        float power = power_of_two(s.exponent - sign * int(scale));
        return {s.first * power, s.second * power};
    }
    DEVICE Stored stored(Sum s, int sign) const { return {s.first, s.second, sign * int(scale)}; }

    // y and alpha of a token between its prefix and suffix states. Where no key is in sight both are 0.
    DEVICE Share share(Sum f, Sum r, Weight x, float v, float grad) const {
        float own = bonus * x, sum = fmaf(own, v, f.first + r.first), weight = own + (f.second + r.second);
        float inverse = weight == 0.0f ? 0.0f : reciprocal(weight);
        return {grad * inverse, sum * inverse};
    }
    DEVICE float self(Weight x, Share s) const { return bonus * x * s.alpha; }
    DEVICE Sum pull(Weight x, Sum p, Sum s) const { return {x * (p.first + s.first), x * (p.second + s.second)}; }
    DEVICE float cross(Sum f, Sum s) const { return f.first * s.first - f.second * s.second; }
    DEVICE float crossed(float sum) const { return -decay * sum; }
};

struct Robust {
    typedef double Real;
    typedef Wide Sum;
    struct Weight {
        double mantissa;
        int exponent;
    };
    struct Share {
        double alpha, y;
        int exponent;
    };
    typedef Fast::Stored Stored;

    Power decay, step, bonus;

    DEVICE void set(float lam, float u, int group, i64 length, int exponent) {
        (void)exponent;
        decay = decay_over(lam, 1, length), step = decay_over(lam, group, length);
        bonus = exp2_wide(fmin(fmax(double(u), -double(LOWEST)), double(LOWEST)) * LOG2E_EXACT);
    }

    DEVICE static Sum zero() { return {0.0, 0.0, NOTHING}; }
    DEVICE static Sum pair(double first, double second) { return {first, second, 0}; }
    DEVICE static Wide renormal(Wide x) { return normal(x, fabs(x.first) + fabs(x.second)); }
    DEVICE Weight weight(float key) const {
        if (key < -FLOAT_MAX) return {0.0, NOTHING};
        Power x = exp2_wide(double(bounded(key)) * LOG2E_EXACT);
        return {x.mantissa, x.exponent};
    }
    DEVICE static Sum token(Weight x, float v) { return {x.mantissa * double(v), x.mantissa, x.exponent}; }
    DEVICE static Sum token(Share s) { return {s.alpha, s.alpha * s.y, s.alpha == 0.0 ? NOTHING : s.exponent}; }
    DEVICE Sum advance(Sum s, Sum x) const { return renormal(sum_of(s, decay, x)); }
    DEVICE Sum join(Sum s, Sum x) const { return renormal(sum_of(s, step, x)); }
    DEVICE Sum receive(Stored s, int) const { return {double(s.first), double(s.second), s.exponent}; }
    DEVICE Stored stored(Sum s, int) const { return {float(s.first), float(s.second), s.exponent}; }

    DEVICE Share share(Sum f, Sum r, Weight x, float v, float grad) const {
        int own = x.exponent + bonus.exponent, top = max(max(f.exponent, r.exponent), own);
        double before = power_of_two_wide(f.exponent - top), after = power_of_two_wide(r.exponent - top);
        double self = x.mantissa * bonus.mantissa * power_of_two_wide(own - top);
        double sum = f.first * before + r.first * after + self * double(v);
        double weight = f.second * before + r.second * after + self;
        if (weight == 0.0) return {0.0, 0.0, NOTHING};
        return {double(grad) / weight, sum / weight, -top};
    }
    // Products of sums are of the size of the gradients, whatever their factors are.
    DEVICE double self(Weight x, Share s) const {
        return x.mantissa * bonus.mantissa * s.alpha * power_of_two_wide(i64(x.exponent) + bonus.exponent + s.exponent);
    }
    DEVICE Sum pull(Weight x, Sum p, Sum s) const {
        double before = x.mantissa * power_of_two_wide(i64(x.exponent) + p.exponent);
        double after = x.mantissa * power_of_two_wide(i64(x.exponent) + s.exponent);
        return {p.first * before + s.first * after, p.second * before + s.second * after, 0};
    }
    DEVICE double cross(Sum f, Sum s) const {
        double power = decay.mantissa * power_of_two_wide(i64(f.exponent) + s.exponent + decay.exponent);
        return (f.first * s.first - f.second * s.second) * power;
    }
    DEVICE double crossed(double sum) const { return -sum; }
};

}  // namespace
