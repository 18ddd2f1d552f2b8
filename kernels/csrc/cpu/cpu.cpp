// Bi-WKV on CPUs, compiled once per instruction set (ISA): threads over chunks, so that one image uses all of them.

#include "biwkv.h"
#include "carry.h"
#include "constants.h"
#include "scan_backward.h"

namespace {

// A chunk of the batch: its image and its tokens, for a pass that goes `backwards` through the chunks or not.
struct Chunk {
    int64_t image;
    Tokens tokens;
    bool top_follows;  // whether tokens.after are exactly the tokens of the next chunk

    Chunk(const BiwkvCall& call, int64_t number, bool backwards) {
        int64_t per_image = chunks(call), first = number % per_image * CHUNK;
        image = number / per_image;
        tokens.n = int(smaller<int64_t>(CHUNK, call.length - first));
        fill(call, first, tokens.row);
        int64_t after = backwards ? larger<int64_t>(first - CHUNK, 0) : first + CHUNK;
        // A shorter chunk, or another image, is next: nothing is known of it.
        bool same = after + tokens.n <= call.length;
        fill(call, same ? after : first, tokens.after);
        top_follows = same && !backwards && tokens.n == CHUNK;
    }

    void fill(const BiwkvCall& call, int64_t step, int64_t* row_of) const {
        int64_t width = call.length / call.rows, column = step / call.rows, row = step % call.rows;
        for (int i = 0; i < tokens.n; i++) {
            row_of[i] = call.rows == 1 ? step + i : row * width + column;
            if (++row == call.rows) {
                row = 0;
                column++;
            }
        }
    }

    static int64_t chunks(const BiwkvCall& call) { return (call.length + CHUNK - 1) / CHUNK; }
};

template <class T>
Rows<T> rows_of(const TensorArg& tensor, int64_t image, int64_t channel) {
    return {static_cast<T*>(tensor.data) + image * tensor.batch_stride + channel, tensor.row_stride};
}

float* state_of(const BiwkvCall& call, int64_t number) { return call.states + number * STATE * call.channels; }
float* adjoint_of(const BiwkvCall& call, int64_t number) { return call.adjoints + number * ADJOINT * call.channels; }

// `work(number)` for every chunk of the batch, from the last to the first where `backwards`: what a pass read last
// is what the next finds in the cache.
template <class Work>
void for_chunks(const BiwkvCall& call, bool backwards, Work work) {
    int64_t total = call.batch * Chunk::chunks(call);
#pragma omp parallel for schedule(static) num_threads(int(call.threads)) if (call.threads > 1)
    for (int64_t i = 0; i < total; i++) work(backwards ? total - 1 - i : i);
    // Equal shares of a static schedule are mirror images, so each thread meets its own chunks again.
}

// P2 over `memory`, `width` floats a chunk and channel; prefix and suffix are independent.
template <bool BY_SECOND>
void scan_carries(const BiwkvCall& call, const Constants& constants, float* memory, int width) {
    int64_t per_image = Chunk::chunks(call);
#pragma omp parallel for schedule(static) num_threads(int(call.threads)) if (call.threads > 1)
    for (int64_t job = 0; job < 2 * call.batch; job++)
        scan_carries_of<BY_SECOND>(memory + job / 2 * per_image * width * call.channels, per_image, width, job % 2,
                                   call.channels, [&](int64_t) { return constants.over.data(); });
}

template <class T>
void aggregate_all(const BiwkvCall& call, const Constants& constants) {
    int64_t total = call.batch * Chunk::chunks(call);
    int64_t threads = call.threads, share = (total + threads - 1) / threads;
#pragma omp parallel for schedule(static) num_threads(int(threads)) if (threads > 1)
    for (int64_t thread = 0; thread < threads; thread++) {
        Buffer<float> tops(constants.groups * LANES);
        bool known = false;
        for (int64_t number = thread * share; number < smaller(total, (thread + 1) * share); number++) {
            Chunk chunk(call, number, false);
            constants.for_lanes([&](const auto& lanes, int64_t channel) {
                auto k = rows_of<const T>(call.k, chunk.image, channel), v = rows_of<const T>(call.v, chunk.image, channel);
                auto top = known ? lanes.read(tops.data() + channel) : top_of(k, chunk.tokens.row, chunk.tokens.n, lanes);
                aggregate(k, v, chunk.tokens, lanes, state_of(call, number) + channel, call.channels, &top);
                put(tops.data() + channel, top);
            });
            known = chunk.top_follows;
        }
    }
    scan_carries<true>(call, constants, call.states, STATE);
}

// Results larger than this go past the caches.
constexpr int64_t STREAMED_BYTES = 8 << 20;

bool streams(const BiwkvCall& call) {
    auto whole = [](const TensorArg& t) {
        return reinterpret_cast<uintptr_t>(t.data) % 64 == 0 && t.batch_stride % 16 == 0 && t.row_stride % 16 == 0;
    };
    return !call.half && call.channels % 16 == 0 && whole(call.y) &&
           call.batch * call.length * call.channels * 4 >= STREAMED_BYTES;
}

template <bool GATE, class T, int G>
INLINE void output_lanes(const BiwkvCall& call, const Chunk& chunk, const Lanes<G>& lanes, int64_t channel,
                         const float* state, bool streamed) {
    Rows<const T> k = rows_of<const T>(call.k, chunk.image, channel), v = rows_of<const T>(call.v, chunk.image, channel);
    Rows<const T> gate = GATE ? rows_of<const T>(call.r, chunk.image, channel) : k;
    Rows<T> y = rows_of<T>(call.y, chunk.image, channel);
    Carries<G> carry(state + channel, call.channels, lanes.count);
    auto keep = [&](int64_t token, Pack<G> x) { put(y.at(token), x, lanes.count); };
    auto pass_by = [&](int64_t token, Pack<G> x) { stream(reinterpret_cast<float*>(y.at(token)), x); };
    if (UNLIKELY(carry.clamped))
        output<GATE, true>(k, v, gate, chunk.tokens, lanes, carry, keep);
    else if (streamed)
        output<GATE, false>(k, v, gate, chunk.tokens, lanes, carry, pass_by);
    else
        output<GATE, false>(k, v, gate, chunk.tokens, lanes, carry, keep);
}

template <bool GATE, class T>
void output_all(const BiwkvCall& call, const Constants& constants) {
    bool streamed = streams(call);
    for_chunks(call, true, [&](int64_t number) {
        Chunk chunk(call, number, true);
        constants.for_lanes([&](const auto& lanes, int64_t channel) {
            output_lanes<GATE, T>(call, chunk, lanes, channel, state_of(call, number), streamed);
        });
        if (streamed) stream_end();
    });
}

template <bool GATE, class T>
Tensors<T> tensors_of(const BiwkvCall& call, int64_t image, int64_t channel) {
    Tensors<T> at{};
    at.k = rows_of<const T>(call.k, image, channel);
    at.v = rows_of<const T>(call.v, image, channel);
    at.grad = rows_of<const T>(call.grad, image, channel);
    at.gk = rows_of<T>(call.gk, image, channel);
    at.gv = rows_of<T>(call.gv, image, channel);
    if (GATE) {
        at.r = rows_of<const T>(call.r, image, channel);
        at.gr = rows_of<T>(call.gr, image, channel);
    }
    return at;
}

template <bool GATE, bool CLAMP, int G, class T>
INLINE void gradients_lanes(const BiwkvCall& call, const Tensors<T>& at, const Chunk& chunk, const Lanes<G>& lanes,
                            const Carries<G>& carry, int64_t number, int64_t channel) {
    Around<G> around(adjoint_of(call, number) + channel, call.channels, lanes.count, carry.scale);
    Pack<G> lam, u;
    gradients<G, GATE, CLAMP>(at, chunk.tokens, lanes, carry, around, &lam, &u);
    double* partial = call.partials + number * 2 * call.channels + channel;
    for (int c = 0; c < lanes.count; c++) {
        partial[c] = lam.part[c / LANES][c % LANES];
        partial[call.channels + c] = u.part[c / LANES][c % LANES];
    }
}

// One pass of backward over the lanes of a chunk: B1 where FIRST, else B3.
template <bool FIRST, bool GATE, class T, int G>
INLINE void backward_lanes(const BiwkvCall& call, const Chunk& chunk, const Lanes<G>& lanes, int64_t number,
                           int64_t channel) {
    Tensors<T> at = tensors_of<GATE, T>(call, chunk.image, channel);
    Carries<G> carry(state_of(call, number) + channel, call.channels, lanes.count);
    float* adjoint = adjoint_of(call, number) + channel;
    if (FIRST && carry.clamped)
        adjoint_sums<G, GATE, true>(at, chunk.tokens, lanes, carry, adjoint, call.channels);
    else if (FIRST)
        adjoint_sums<G, GATE, false>(at, chunk.tokens, lanes, carry, adjoint, call.channels);
    else if (carry.clamped)
        gradients_lanes<GATE, true>(call, at, chunk, lanes, carry, number, channel);
    else
        gradients_lanes<GATE, false>(call, at, chunk, lanes, carry, number, channel);
}

template <bool FIRST, bool GATE, class T>
void backward_pass(const BiwkvCall& call, const Constants& constants) {
    for_chunks(call, !FIRST, [&](int64_t number) {
        Chunk chunk(call, number, !FIRST);
        constants.for_lanes([&](const auto& lanes, int64_t channel) {
            backward_lanes<FIRST, GATE, T>(call, chunk, lanes, number, channel);
        });
    });
    if (FIRST) scan_carries<false>(call, constants, call.adjoints, ADJOINT);
}

// Sums in the order of the chunks, so that the number of threads does not matter.
void reduce(const BiwkvCall& call) {
    int64_t total = call.batch * Chunk::chunks(call), channels = call.channels;
    Buffer<double> sums(2 * channels);
    for (int64_t i = 0; i < total; i++)
        for (int64_t c = 0; c < 2 * channels; c++) sums[c] += call.partials[i * 2 * channels + c];
    for (int64_t c = 0; c < channels; c++) {
        // A single token has no distances, and e^-lam is then of any size.
        call.g_lam[c] = sums[c] == 0.0 ? 0.0 : -exp(-call.lam[c]) * sums[c];
        call.g_u[c] = sums[channels + c];
    }
}

template <class T>
void forward(const BiwkvCall& call) {
    Constants constants(call.channels, call.length, call.lam, call.u);
    aggregate_all<T>(call, constants);
    call.r.data ? output_all<true, T>(call, constants) : output_all<false, T>(call, constants);
}

template <bool GATE, class T>
void backward(const BiwkvCall& call) {
    Constants constants(call.channels, call.length, call.lam, call.u);
    backward_pass<true, GATE, T>(call, constants);
    backward_pass<false, GATE, T>(call, constants);
    reduce(call);
}

}  // namespace

extern "C" void JOIN(biwkv_forward, ISA)(const BiwkvCall* call) { call->half ? forward<bf16>(*call) : forward<float>(*call); }

extern "C" void JOIN(biwkv_backward, ISA)(const BiwkvCall* call) {
    if (call->half)
        call->r.data ? backward<true, bf16>(*call) : backward<false, bf16>(*call);
    else
        call->r.data ? backward<true, float>(*call) : backward<false, float>(*call);
}
