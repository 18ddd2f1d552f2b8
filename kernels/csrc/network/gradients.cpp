// The products of a BRWKV layer around its operator, with gradients, on tiles of 64 tokens: what torch would write to
// memory between norm, product, gate and sum stays in the first caches, and backward computes it again.
//
//   project   p = norm(x) W                                                       the packed receptance, keys and values
//   finish    h = x + z W_O,  out = h + (sigmoid(n R) * (relu(n K)^2 V)) O,  n = norm(h)
//
// With f = 1 / sqrt(mean(x^2) + eps) and n = f x, a gradient g of n is f (g - n mean(g n)) in x. The norms' gains are
// multiplied into the weights.

#include "../cpu/biwkv.h"
#include "gemm.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

constexpr int TILE = 64;
constexpr int TILES_IN_FLOAT = 32;  // that are summed before they are added to a double

// The gradient of a weight, (k, n), from one thread.
struct WeightSum {
    int64_t size;
    Buffer<float> part;
    Buffer<double> whole;

    explicit WeightSum(int64_t size) : size(size), part(size), whole(size) {}

    void flush() {
        for (int64_t i = 0; i < size; i++) {
            whole[i] += part[i];
            part[i] = 0;
        }
    }
};

// n = f x for `n` rows; the factors are kept.
INLINE void normalise_rows(const float* x, int n, int64_t width, float epsilon, float* out, float* factor) {
    for (int i = 0; i < n; i++) {
        Vec f = norm_of(x + i * width, width, epsilon);
        factor[i] = f[0];
        for (int64_t c = 0; c < width; c += LANES) store(out + i * width + c, load(x + i * width + c) * f);
    }
}

// add + f (g - n mean(g n)), of rows.
INLINE void norm_gradient(const float* grad, const float* normed, const float* factor, const float* add, int n,
                          int64_t width, float* out) {
    for (int i = 0; i < n; i++) {
        const float *g = grad + i * width, *x = normed + i * width;
        Vec dot = {};
        for (int64_t c = 0; c < width; c += LANES) dot += load(g + c) * load(x + c);
        Vec mean = splat(total(dot) / float(width)), f = splat(factor[i]);
        for (int64_t c = 0; c < width; c += LANES)
            store(out + i * width + c, load(add + i * width + c) + f * (load(g + c) - load(x + c) * mean));
    }
}

// `work(thread, first row, rows)` for every tile, each thread its own share of them, in order.
template <class Make>
void for_tiles(int64_t rows, int64_t threads, Make make) {
    int64_t tiles = (rows + TILE - 1) / TILE, share = (tiles + threads - 1) / threads;
#pragma omp parallel for schedule(static) num_threads(int(threads)) if (threads > 1)
    for (int64_t thread = 0; thread < threads; thread++) {
        auto work = make(thread);
        for (int64_t tile = thread * share; tile < smaller(tiles, (thread + 1) * share); tile++)
            work(tile * TILE, int(smaller<int64_t>(TILE, rows - tile * TILE)));
    }
}

struct ProjectForward {
    const ProjectCall& call;
    Buffer<float> normed;
    float factor[TILE];

    ProjectForward(const ProjectCall& call) : call(call), normed(TILE * call.channels) {}

    void operator()(int64_t first, int n) {
        int64_t width = call.channels;
        normalise_rows(call.x + first * width, n, width, call.epsilon, normed.data(), factor);
        product(normed.data(), width, n, call.weight, call.columns, int(call.columns), int(width),
                call.out + first * call.columns, call.columns);
    }
};

struct ProjectBackward {
    const ProjectCall& call;
    double* g_weight;
    Buffer<float> normed, gradient;
    WeightSum sum;
    float factor[TILE];
    int tiles = 0;

    ProjectBackward(const ProjectCall& call, int64_t thread)
        : call(call),
          g_weight(call.g_weight + thread * call.channels * call.columns),
          normed(TILE * call.channels),
          gradient(TILE * call.channels),
          sum(call.channels * call.columns) {}

    ~ProjectBackward() {
        sum.flush();
        memcpy(g_weight, sum.whole.data(), sum.size * sizeof(double));
    }

    void operator()(int64_t first, int n) {
        int64_t width = call.channels, columns = call.columns;
        const float* grad = call.grad + first * columns;
        normalise_rows(call.x + first * width, n, width, call.epsilon, normed.data(), factor);
        product<true, true>(normed.data(), width, int(width), grad, columns, int(columns), n, sum.part.data(), columns);
        product(grad, columns, n, call.weight_back, width, int(width), int(columns), gradient.data(), width);
        norm_gradient(gradient.data(), normed.data(), factor, call.g_residual + first * width, n, width,
                      call.g_x + first * width);
        if (++tiles % TILES_IN_FLOAT == 0) sum.flush();
    }
};

// One tile of `finish`, up to the gate.
struct Mixed {
    const FinishCall& call;
    Buffer<float> h, normed, hidden, squared, value, gate, gated;
    float factor[TILE];

    explicit Mixed(const FinishCall& call)
        : call(call),
          h(TILE * call.channels),
          normed(TILE * call.channels),
          hidden(TILE * call.hidden),
          squared(TILE * call.hidden),
          value(TILE * call.channels),
          gate(TILE * call.channels),
          gated(TILE * call.channels) {}

    void compute(int64_t first, int n) {
        int64_t width = call.channels, hidden_width = call.hidden;
        int columns = int(width);
        memcpy(h.data(), call.x + first * width, n * width * sizeof(float));
        product<true>(call.z + first * call.mixed, call.mixed, n, call.mix_out, width, columns, int(call.mixed), h.data(),
                      width);
        normalise_rows(h.data(), n, width, call.epsilon, normed.data(), factor);
        product(normed.data(), width, n, call.key, hidden_width, int(hidden_width), columns, hidden.data(), hidden_width);
        for (int64_t i = 0; i < n * hidden_width; i += LANES) {
            Vec key = maximum(Vec{}, load(hidden.data() + i));
            store(hidden.data() + i, key);
            store(squared.data() + i, key * key);
        }
        product(normed.data(), width, n, call.receptance, width, columns, columns, gate.data(), width);
        product(squared.data(), hidden_width, n, call.value, width, columns, int(hidden_width), value.data(), width);
        for (int64_t i = 0; i < n * width; i += LANES) {
            Vec open = sigmoid(load(gate.data() + i));
            store(gate.data() + i, open);
            store(gated.data() + i, open * load(value.data() + i));
        }
    }
};

struct FinishForward : Mixed {
    using Mixed::Mixed;

    void operator()(int64_t first, int n) {
        int64_t width = call.channels;
        float* out = call.out + first * width;
        compute(first, n);
        memcpy(out, h.data(), n * width * sizeof(float));
        product<true>(gated.data(), width, n, call.channel_out, width, int(width), int(width), out, width);
    }
};

struct FinishBackward : Mixed {
    double* gradients;
    Buffer<float> g_value, g_gate, g_hidden, g_normed;
    WeightSum mix_out, receptance, key, value_out, channel_out;
    int tiles = 0;

    FinishBackward(const FinishCall& call, int64_t thread)
        : Mixed(call),
          gradients(call.g_weights + thread * call.channels * (call.mixed + 2 * call.channels + 2 * call.hidden)),
          g_value(TILE * call.channels),
          g_gate(TILE * call.channels),
          g_hidden(TILE * call.hidden),
          g_normed(TILE * call.channels),
          mix_out(call.mixed * call.channels),
          receptance(call.channels * call.channels),
          key(call.channels * call.hidden),
          value_out(call.hidden * call.channels),
          channel_out(call.channels * call.channels) {}

    template <class Each>
    void each_sum(Each each) {
        each(mix_out);
        each(receptance);
        each(key);
        each(value_out);
        each(channel_out);
    }

    ~FinishBackward() {
        each_sum([&](WeightSum& sum) {
            sum.flush();
            memcpy(gradients, sum.whole.data(), sum.size * sizeof(double));
            gradients += sum.size;
        });
    }

    void operator()(int64_t first, int n) {
        int64_t width = call.channels, hidden_width = call.hidden, mixed = call.mixed;
        int columns = int(width), inner = int(hidden_width);
        const float *grad = call.grad + first * width, *z = call.z + first * mixed;
        float* g_h = call.g_residual + first * width;
        compute(first, n);
        product<true, true>(gated.data(), width, columns, grad, width, columns, n, channel_out.part.data(), width);
        product(grad, width, n, call.channel_out_back, width, columns, columns, g_value.data(), width);
        for (int64_t i = 0; i < n * width; i += LANES) {
            Vec g = load(g_value.data() + i), open = load(gate.data() + i);
            store(g_value.data() + i, g * open);
            store(g_gate.data() + i, g * load(value.data() + i) * (open - open * open));
        }
        product<true, true>(squared.data(), hidden_width, inner, g_value.data(), width, columns, n,
                            value_out.part.data(), width);
        product(g_value.data(), width, n, call.value_back, hidden_width, inner, columns, g_hidden.data(), hidden_width);
        for (int64_t i = 0; i < n * hidden_width; i += LANES)
            store(g_hidden.data() + i, load(g_hidden.data() + i) * 2.0f * load(hidden.data() + i));
        product<true, true>(normed.data(), width, columns, g_hidden.data(), hidden_width, inner, n, key.part.data(),
                            hidden_width);
        product<true, true>(normed.data(), width, columns, g_gate.data(), width, columns, n, receptance.part.data(),
                            width);
        product(g_hidden.data(), hidden_width, n, call.key_back, width, columns, inner, g_normed.data(), width);
        product<true>(g_gate.data(), width, n, call.receptance_back, width, columns, columns, g_normed.data(), width);
        norm_gradient(g_normed.data(), normed.data(), factor, grad, n, width, g_h);
        product<true, true>(z, mixed, int(mixed), g_h, width, columns, n, mix_out.part.data(), width);
        product(g_h, width, n, call.mix_out_back, mixed, int(mixed), columns, call.g_z + first * mixed, mixed);
        if (++tiles % TILES_IN_FLOAT == 0) each_sum([](WeightSum& sum) { sum.flush(); });
    }
};

struct NormForward {
    const NormCall& call;

    void operator()(int64_t first, int n) {
        int64_t width = call.channels;
        for (int64_t i = first; i < first + n; i++) {
            Vec f = norm_of(call.x + i * width, width, call.epsilon);
            for (int64_t c = 0; c < width; c += LANES)
                store(call.out + i * width + c, load(call.x + i * width + c) * f * load(call.gain + c));
        }
    }
};

struct NormBackward {
    const NormCall& call;
    double* g_gain;
    WeightSum sum;
    int tiles = 0;

    NormBackward(const NormCall& call, int64_t thread)
        : call(call), g_gain(call.g_gain + thread * call.channels), sum(call.channels) {}

    ~NormBackward() {
        sum.flush();
        memcpy(g_gain, sum.whole.data(), sum.size * sizeof(double));
    }

    void operator()(int64_t first, int n) {
        int64_t width = call.channels;
        for (int64_t i = first; i < first + n; i++) {
            const float *x = call.x + i * width, *grad = call.grad + i * width;
            Vec f = norm_of(x, width, call.epsilon), dot = {};
            for (int64_t c = 0; c < width; c += LANES) {
                Vec product = load(grad + c) * load(x + c) * f;
                store(sum.part.data() + c, load(sum.part.data() + c) + product);
                dot += product * load(call.gain + c);
            }
            Vec mean = splat(total(dot) / float(width));
            for (int64_t c = 0; c < width; c += LANES)
                store(call.g_x + i * width + c, f * (load(grad + c) * load(call.gain + c) - load(x + c) * f * mean));
        }
        if (++tiles % TILES_IN_FLOAT == 0) sum.flush();
    }
};

}  // namespace

extern "C" void JOIN(norm_forward, ISA)(const NormCall* call) {
    for_tiles(call->rows, call->threads, [&](int64_t) { return NormForward{*call}; });
}

extern "C" void JOIN(norm_backward, ISA)(const NormCall* call) {
    for_tiles(call->rows, call->threads, [&](int64_t thread) { return NormBackward(*call, thread); });
}

extern "C" void JOIN(project_forward, ISA)(const ProjectCall* call) {
    for_tiles(call->rows, call->threads, [&](int64_t) { return ProjectForward(*call); });
}

extern "C" void JOIN(project_backward, ISA)(const ProjectCall* call) {
    for_tiles(call->rows, call->threads, [&](int64_t thread) { return ProjectBackward(*call, thread); });
}

extern "C" void JOIN(finish_forward, ISA)(const FinishCall* call) {
    for_tiles(call->rows, call->threads, [&](int64_t) { return FinishForward(*call); });
}

extern "C" void JOIN(finish_backward, ISA)(const FinishCall* call) {
    for_tiles(call->rows, call->threads, [&](int64_t thread) { return FinishBackward(*call, thread); });
}

