// Bi-WKV on GPUs: three passes forward, and three backward, over chunks of 64 tokens.
//
//   sums       every chunk's own sums            adjoints   every chunk's own sums of alpha and beta
//   carry      what reaches each chunk           carry      what reaches each chunk
//   output     y                                 gradients  of k, v, r, and each chunk's share of those of lam and u
//                                                reduce     the shares, in a fixed order
//
// A block takes one chunk and 32 channels (or 8, one by one); every input is read from memory once a pass, into registers. `output` and
// `gradients` go through the chunks backwards: what the pass before read last is what the L2 cache still holds.

#include "cuda_tile.cuh"

namespace {

// A thread's tokens. Constants are read from shared memory when needed: registers are scarce.
template <class M, class S>
struct Tokens {
    const M* constants;
    typename M::Weight x[S::N][S::VEC];
    float v[S::N][S::VEC];

    // Once the block has its constants.
    DEVICE void set(const Memory<M, S>& memory, const Slice<S>& slice, const float (&k)[S::N][S::VEC]) {
        constants = memory.math + slice.lane();
#pragma unroll
        for (int j = 0; j < S::VEC; j++) {
            const M math = constants[j];
#pragma unroll
            for (int i = 0; i < S::N; i++) x[i][j] = math.weight(k[i][j]);
        }
    }

    DEVICE typename M::Sum token(int i, int j) const { return M::token(x[i][j], v[i][j]); }

    DEVICE void own_sums(typename M::Sum (&before)[S::VEC], typename M::Sum (&after)[S::VEC]) const {
#pragma unroll
        for (int j = 0; j < S::VEC; j++) {
            const M math = constants[j];
            before[j] = after[j] = M::zero();
#pragma unroll
            for (int i = 0; i < S::N; i++) {
                before[j] = math.advance(before[j], token(i, j));
                after[j] = math.advance(after[j], token(S::N - 1 - i, j));
            }
        }
    }
};

// The largest key of each channel of the chunk gives the scale; of use in the first CHANNELS threads.
template <class S>
DEVICE int own_scale(unsigned char* memory, const Slice<S>& slice, const float (&k)[S::N][S::VEC]) {
    float* tops = reinterpret_cast<float*>(memory + sizeof(Fast) * S::CHANNELS);
#pragma unroll
    for (int j = 0; j < S::VEC; j++) {
        float top = k[0][j];
#pragma unroll
        for (int i = 1; i < S::N; i++) top = fmaxf(top, k[i][j]);
        tops[slice.group() * S::CHANNELS + slice.lane() + j] = top;
    }
    __syncthreads();
    if (threadIdx.x >= S::CHANNELS) return 0;
    float top = tops[threadIdx.x];
#pragma unroll
    for (int i = 1; i < S::GROUPS; i++) top = fmaxf(top, tops[i * S::CHANNELS + threadIdx.x]);
    return scale_of(top);
}

template <class M>
constexpr bool FAST = false;
template <>
constexpr bool FAST<Fast> = true;

// Whether there is anything left for Robust.
template <class M, class S, class T>
DEVICE bool sums(const Call& call, const Place& at, int first, unsigned char* bytes) {
    Memory<M, S>& memory = *reinterpret_cast<Memory<M, S>*>(bytes);
    Slice<S> slice(call, at, first);
    Line<S> line(call, first);
    Tokens<M, S> tokens;
    float k[S::N][S::VEC];
    slice.template load<T>(call.k, k, HIDDEN);
    slice.template load<T>(call.v, tokens.v, 0.0f);
    int scale = FAST<M> ? own_scale<S>(bytes, slice, k) : 0;
    bool mixed = prepare(memory, call, first, scale);
    if (!FAST<M> && !mixed) return false;
    tokens.set(memory, slice, k);
    typename M::Sum before[S::VEC], after[S::VEC];
    tokens.own_sums(before, after);
    share_sums(memory, slice, before, after);
    if (!line.active) return mixed;
    if (FAST<M> && line.direction == 0)
        call.states[(i64(at.index) * STATE + SCALE) * call.channels + line.channel] = __int_as_float(scale);
    if (!mixed || safe(call, line.channel) == FAST<M>)
        line.write(call.states, STATE, call, at, memory.math[line.lane].stored(total(memory, line), 1));
    return mixed;
}

template <class M, class S, class T>
DEVICE bool output(const Call& call, const Place& at, int first, unsigned char* bytes) {
    Memory<M, S>& memory = *reinterpret_cast<Memory<M, S>*>(bytes);
    Slice<S> slice(call, at, first);
    Line<S> line(call, first);
    Tokens<M, S> tokens;
    float k[S::N][S::VEC], gate[S::N][S::VEC];
    slice.template load<T>(call.k, k, HIDDEN);
    slice.template load<T>(call.v, tokens.v, 0.0f);
    if (call.r.data) slice.template load<T>(call.r, gate, 0.0f);
    Fast::Stored carried = line.read(call.states, STATE, call, at);
    bool mixed = prepare(memory, call, first, read_scale<S>(call, at, first));
    if (!FAST<M> && !mixed) return false;
    tokens.set(memory, slice, k);
    typename M::Sum before[S::VEC], after[S::VEC];
    tokens.own_sums(before, after);
    reach(memory, slice, line, memory.math[line.lane].receive(carried, 1), before, after);
    typename M::Real y[S::N][S::VEC];
#pragma unroll
    for (int j = 0; j < S::VEC; j++) {
        const M math = tokens.constants[j];
        typename M::Sum suffix[S::N];
#pragma unroll
        for (int i = S::N - 1; i >= 0; i--) {
            suffix[i] = after[j];
            after[j] = math.advance(after[j], tokens.token(i, j));
        }
#pragma unroll
        for (int i = 0; i < S::N; i++) {
            y[i][j] = math.share(before[j], suffix[i], tokens.x[i][j], tokens.v[i][j], 0.0f).y;
            if (call.r.data) y[i][j] *= sigmoid(gate[i][j]);
            before[j] = math.advance(before[j], tokens.token(i, j));
        }
    }
    slice.template store<T>(call.y, y, answers_for<FAST<M>, S>(call, slice.channel, mixed));
    return mixed;
}

// What `adjoints` and `gradients` both compute of a tile: states around each token, alpha and y.
template <class M, class S, class T>
struct Backward {
    Memory<M, S>& memory;
    Slice<S> slice;
    Line<S> line;
    Tokens<M, S> tokens;
    typename M::Sum prefix[S::N][S::VEC];  // states before each token
    typename M::Share share[S::N][S::VEC];
    typename M::Sum before[S::VEC], after[S::VEC];  // own sums of alpha and beta
    bool mixed;

    DEVICE Backward(const Call& call, const Place& at, int first, unsigned char* bytes)
        : memory(*reinterpret_cast<Memory<M, S>*>(bytes)), slice(call, at, first), line(call, first) {}

    // WITH_R: write the gradient of r. False where there is nothing to do.
    template <bool WITH_R>
    DEVICE bool run(const Call& call, const Place& at, int first) {
        float k[S::N][S::VEC], grad[S::N][S::VEC], gate[S::N][S::VEC];
        slice.template load<T>(call.k, k, HIDDEN);
        slice.template load<T>(call.v, tokens.v, 0.0f);
        slice.template load<T>(call.grad, grad, 0.0f);
        if (call.r.data) slice.template load<T>(call.r, gate, 0.0f);
        Fast::Stored carried = line.read(call.states, STATE, call, at);
        mixed = prepare(memory, call, first, read_scale<S>(call, at, first));
        if (!FAST<M> && !mixed) return false;
        tokens.set(memory, slice, k);
        tokens.own_sums(before, after);
        reach(memory, slice, line, memory.math[line.lane].receive(carried, 1), before, after);
        typename M::Real g_r[S::N][S::VEC];
#pragma unroll
        for (int j = 0; j < S::VEC; j++) {
            const M math = tokens.constants[j];
            typename M::Sum suffix[S::N];
            rest(j) = after[j];
#pragma unroll
            for (int i = S::N - 1; i >= 0; i--) {
                suffix[i] = after[j];
                after[j] = math.advance(after[j], tokens.token(i, j));
            }
#pragma unroll
            for (int i = 0; i < S::N; i++) {
                float open = call.r.data ? sigmoid(gate[i][j]) : 1.0f;
                prefix[i][j] = before[j];
                share[i][j] = math.share(before[j], suffix[i], tokens.x[i][j], tokens.v[i][j], grad[i][j] * open);
                g_r[i][j] = grad[i][j] * open * (1.0f - open) * share[i][j].y;
                before[j] = math.advance(before[j], tokens.token(i, j));
            }
        }
        if (WITH_R && call.r.data)
            slice.template store<T>(call.gr, g_r, answers_for<FAST<M>, S>(call, slice.channel, mixed));
        own_sums();
        return true;
    }

    // The state after the last token.
    DEVICE typename M::Sum& rest(int j) { return memory.own[slice.group()][slice.lane() / S::VEC].part[j]; }

    DEVICE void own_sums() {
#pragma unroll
        for (int j = 0; j < S::VEC; j++) {
            const M math = tokens.constants[j];
            before[j] = after[j] = M::zero();
#pragma unroll
            for (int i = 0; i < S::N; i++) {
                before[j] = math.advance(before[j], math.token(share[i][j]));
                after[j] = math.advance(after[j], math.token(share[S::N - 1 - i][j]));
            }
        }
    }
};

template <class M, class S, class T>
DEVICE bool adjoints(const Call& call, const Place& at, int first, unsigned char* bytes) {
    Backward<M, S, T> tile(call, at, first, bytes);
    if (!tile.template run<false>(call, at, first)) return false;
    share_sums(tile.memory, tile.slice, tile.before, tile.after);
    if (tile.line.active && (!tile.mixed || safe(call, tile.line.channel) == FAST<M>)) {
        typename M::Stored stored = tile.memory.math[tile.line.lane].stored(total(tile.memory, tile.line), -1);
        tile.line.write(call.adjoints, ADJOINT, call, at, stored);
    }
    return tile.mixed;
}

//   g_v = x A + s    g_k = v x A - x B + s (v - y)    s = e^u x alpha;  A, B of the tokens on both sides
//   g_lam = -a sum(F A' - G B' + R A - Q B), A' from the suffix, A from the prefix    g_u = sum s (v - y)
template <class M, class S, class T>
DEVICE bool gradients(const Call& call, const Place& at, int first, unsigned char* bytes) {
    Backward<M, S, T> tile(call, at, first, bytes);
    tile.line.start_read(tile.memory.fetched, call.adjoints, ADJOINT, call, at);
    if (!tile.template run<true>(call, at, first)) return false;
    Fast::Stored carried = tile.line.end_read(tile.memory.fetched);
    reach(tile.memory, tile.slice, tile.line, tile.memory.math[tile.line.lane].receive(carried, -1), tile.before,
          tile.after);
    typename M::Real crossed[S::VEC], bonus[S::VEC];
    typename M::Real g_k[S::N][S::VEC], g_v[S::N][S::VEC];
#pragma unroll
    for (int j = 0; j < S::VEC; j++) {
        const M math = tile.tokens.constants[j];
        typename M::Sum reached[S::N], rest = tile.rest(j);
#pragma unroll
        for (int i = 0; i < S::N; i++) {
            reached[i] = tile.before[j];
            tile.before[j] = math.advance(tile.before[j], math.token(tile.share[i][j]));
        }
        crossed[j] = bonus[j] = 0;
#pragma unroll
        for (int i = S::N - 1; i >= 0; i--) {
            typename M::Real v = tile.tokens.v[i][j], self = math.self(tile.tokens.x[i][j], tile.share[i][j]);
            typename M::Real self_key = self * (v - tile.share[i][j].y);
            typename M::Sum pull = math.pull(tile.tokens.x[i][j], reached[i], tile.after[j]);
            g_v[i][j] = pull.first + self;
            g_k[i][j] = v * pull.first - pull.second + self_key;
            bonus[j] += self_key;
            crossed[j] += math.cross(rest, reached[i]) + math.cross(tile.prefix[i][j], tile.after[j]);
            rest = math.advance(rest, tile.tokens.token(i, j));
            tile.after[j] = math.advance(tile.after[j], math.token(tile.share[i][j]));
        }
    }
    unsigned mine = answers_for<FAST<M>, S>(call, tile.slice.channel, tile.mixed);
    tile.slice.template store<T>(call.gk, g_k, mine);
    tile.slice.template store<T>(call.gv, g_v, mine);
#pragma unroll
    for (int j = 0; j < S::VEC; j++)
        tile.before[j] = M::pair(tile.tokens.constants[j].crossed(crossed[j]), bonus[j]), tile.after[j] = M::zero();
    share_sums(tile.memory, tile.slice, tile.before, tile.after);
    if (tile.line.active && (!tile.mixed || safe(call, tile.line.channel) == FAST<M>)) {
        double sum = 0.0;
        for (int i = 0; i < S::GROUPS; i++) {
            typename M::Sum part = tile.memory.sum(0, i, tile.line.lane);
            sum += tile.line.direction ? part.second : part.first;
        }
        call.partials[(i64(at.index) * 2 + tile.line.direction) * call.channels + tile.line.channel] = sum;
    }
    return tile.mixed;
}

// Sums of chunks, in place, become what reaches each chunk. A block takes four channels of one image and direction, a
// thread a segment of chunks; segments are joined by a scan across the block.
constexpr int CARRY_LANES = 4, CARRY_SEGMENTS = 256, CARRY_BATCH = 4;

struct CarryLine {
    float* memory;
    i64 stride, channels;
    int chunks;
    bool suffix, by_second;

    DEVICE float* at(int chunk) const { return memory + (suffix ? chunks - 1 - chunk : chunk) * stride; }
    DEVICE double size(Wide x) const { return by_second ? x.second : fabs(x.first) + fabs(x.second); }
    DEVICE Wide merge(Wide older, Power decay, Wide newer) const {
        Wide sum = sum_of(older, decay, newer);
        return normal(sum, size(sum));
    }
    DEVICE Wide read(int chunk) const {
        const float* p = at(chunk);
        Wide own = {p[0], p[channels], __float_as_int(p[2 * channels])};
        if (size(own) == 0.0) own.exponent = NOTHING;
        return own;
    }

    // Runs over the chunks from `first` to `last`; WRITE: leaves in each what came to it.
    template <bool WRITE>
    DEVICE Wide run(Wide sum, Power over, int first, int last) const {
        for (int start = first; start < last; start += CARRY_BATCH) {
            Wide own[CARRY_BATCH];
#pragma unroll
            for (int i = 0; i < CARRY_BATCH; i++)
                own[i] = start + i < last ? read(start + i) : Wide{0.0, 0.0, NOTHING};
#pragma unroll
            for (int i = 0; i < CARRY_BATCH; i++) {
                if (start + i >= last) break;
                if (WRITE) {
                    float* p = at(start + i);
                    p[0] = float(sum.first), p[channels] = float(sum.second), p[2 * channels] = __int_as_float(sum.exponent);
                }
                sum = merge(sum, over, own[i]);
            }
        }
        return sum;
    }
};

DEVICE void carry(const Call& call, float* memory, int width, bool by_second) {
    SHARED Wide shared[CARRY_SEGMENTS][CARRY_LANES];
    unsigned tiles = ((unsigned)call.channels + CARRY_LANES - 1) / CARRY_LANES;
    unsigned tile = blockIdx.x / 2 % tiles, image = blockIdx.x / 2 / tiles;
    int lane = threadIdx.x % CARRY_LANES, segment = threadIdx.x / CARRY_LANES, segments = blockDim.x / CARRY_LANES;
    int channel = int(tile) * CARRY_LANES + lane, chunks = int((call.length + CHUNK - 1) / CHUNK);
    bool inside = channel < call.channels, suffix = blockIdx.x % 2;
    CarryLine line{memory + (i64(image) * chunks * width + (suffix ? 3 : 0)) * call.channels + channel,
                   width * call.channels, call.channels, chunks, suffix, by_second};
    int share = (chunks + segments - 1) / segments, first = segment * share;
    int last = inside ? min(first + share, chunks) : first;
    float lam = call.lam[inside ? channel : 0];
    Power over = decay_over(lam, CHUNK, call.length), span = decay_over(lam, i64(CHUNK) * share, call.length);
    Wide sum = line.run<false>({0.0, 0.0, NOTHING}, over, first, last);
    shared[segment][lane] = sum;
    // A short segment is the last: what it hands on, no other uses.
    for (int distance = 1; distance < segments; distance *= 2, span = square(span)) {
        __syncthreads();
        Wide older = segment >= distance ? shared[segment - distance][lane] : Wide{0.0, 0.0, NOTHING};
        __syncthreads();
        sum = line.merge(older, span, sum);
        shared[segment][lane] = sum;
    }
    __syncthreads();
    line.run<true>(segment ? shared[segment - 1][lane] : Wide{0.0, 0.0, NOTHING}, over, first, last);
}

// A block takes eight columns of the partial sums.
constexpr int REDUCE_LANES = 8, REDUCE_THREADS = 1024;

DEVICE void reduce(const Call& call) {
    SHARED double shared[REDUCE_THREADS];
    i64 columns = 2 * call.channels, rows = call.batch * ((call.length + CHUNK - 1) / CHUNK);
    i64 column = i64(blockIdx.x) * REDUCE_LANES + threadIdx.x % REDUCE_LANES;
    double sum = 0.0;
    if (column < columns) {
#pragma unroll 8
        for (i64 row = threadIdx.x / REDUCE_LANES; row < rows; row += REDUCE_THREADS / REDUCE_LANES)
            sum += call.partials[row * columns + column];
    }
    shared[threadIdx.x] = sum;
    for (int half = REDUCE_THREADS / 2; half >= REDUCE_LANES; half /= 2) {
        __syncthreads();
        if (int(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    if (threadIdx.x < REDUCE_LANES && column < columns) call.g_constants[column] = float(shared[threadIdx.x]);
}

}  // namespace

#ifdef __CUDACC__
#define KERNEL(name, threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Call call)
#else
#define KERNEL(name, threads, blocks) extern "C" void name(const Call& call)
#endif

#define VARIANT(name, shape, type, suffix, least, block)                                           \
    KERNEL(biwkv_##name##_##suffix, THREADS, least) {                                              \
        SHARED Bytes shared;                                                                       \
        Place at(call, block, shape::CHANNELS);                                                    \
        bool mixed = name<Fast, shape, type>(call, at, at.channel, shared.bytes);                  \
        if (mixed) careful_##name<shape, type>(call, shared.bytes);                                \
    }
// A pass in all its variants. Channels out of Fast's range are Robust's, eight at a time, in the same block; in a
// function of its own, so that it takes no registers from Fast. `least`: blocks that must fit on a multiprocessor, which
// bounds a thread's registers.
#define PASS(name, least, block)                                                                   \
    template <class S, class T>                                                                    \
    SEPARATE void careful_##name(const Call& call, unsigned char* bytes) {                         \
        Place at(call, block, S::CHANNELS);                                                        \
        for (int i = 0; i < S::CHANNELS; i += Single::CHANNELS) {                                  \
            __syncthreads();                                                                       \
            name<Robust, Single, T>(call, at, at.channel + i, bytes);                              \
        }                                                                                          \
    }                                                                                              \
    VARIANT(name, Quad, float, float_quad, least, block)                                           \
    VARIANT(name, Single, float, float_single, least, block)                                       \
    VARIANT(name, Quad, bf16, bfloat16_quad, least, block)                                         \
    VARIANT(name, Single, bf16, bfloat16_single, least, block)

PASS(sums, 5, blockIdx.x)
PASS(output, 4, gridDim.x - 1 - blockIdx.x)
PASS(adjoints, 3, blockIdx.x)
PASS(gradients, 3, gridDim.x - 1 - blockIdx.x)

KERNEL(biwkv_carry_states, CARRY_LANES * CARRY_SEGMENTS, 1) { carry(call, call.states, STATE, true); }
KERNEL(biwkv_carry_adjoints, CARRY_LANES * CARRY_SEGMENTS, 1) { carry(call, call.adjoints, ADJOINT, false); }
KERNEL(biwkv_reduce, REDUCE_THREADS, 1) { reduce(call); }
