// A block's tile of 64 tokens and some channels: which thread holds what, loads and stores, sums across the block.
#pragma once

#include "cuda_math.cuh"

namespace {

// A (B, L, C) tensor with channels side by side; strides in elements.
struct Tensor {
    void* data;
    i64 batch_stride, row_stride;
};

// Arguments of every kernel; kernels/backends/cuda.py has the same struct. Token s of the scan is row
// (s % rows) * width + s / rows: a map of `rows` rows, scanned by columns.
struct Call {
    i64 batch, length, channels, rows, width;
    Tensor k, v, r, y;              // r.data null: no gate
    Tensor grad, gk, gv, gr;        // backward only: grad.data null in forward
    const float *lam, *u;           // (C,)
    float* states;                  // (B, chunks, 7, C): prefix F, G, exponent; suffix R, Q, exponent; chunk's own scale
    float* adjoints;                // (B, chunks, 6, C): prefix A, B, exponent; suffix A, B, exponent
    double* partials;               // (B * chunks, 2, C): shares of the gradients of lam and u
    float* g_constants;             // (2, C): gradients of lam and u
};

constexpr int STATE = 7, ADJOINT = 6, SCALE = 6;

struct bf16 {
    unsigned short bits;
};

DEVICE float widen(float x) { return x; }
DEVICE float widen(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
DEVICE void narrow(float x, float& y) { y = x; }
#ifdef __CUDACC__
DEVICE void narrow(float x, bf16& y) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
#else
DEVICE void narrow(float x, bf16& y) {
    unsigned bits = __float_as_uint(x);
    y.bits = x != x ? 0x7fff : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#endif

// A copy to shared memory that goes on while its thread does; the thread itself must wait before it reads.
#ifdef __CUDACC__
DEVICE void fetch(float* shared, const float* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global));
}
DEVICE void wait_for_fetched() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#else
DEVICE void fetch(float* shared, const float* global) { *shared = *global; }
DEVICE void wait_for_fetched() {}
#endif

// Four values are moved by one access of up to 16 bytes.
template <class T, int N>
struct alignas(N == 1 ? alignof(T) : sizeof(T) == 2 ? 8 : 16) Pack {
    T part[N];
};

// VEC neighbouring channels and N following tokens a thread.
template <int VEC_, int N_>
struct Shape {
    static constexpr int VEC = VEC_, N = N_, GROUPS = CHUNK / N, LANES = THREADS / GROUPS, CHANNELS = LANES * VEC;
};
using Quad = Shape<4, 4>;        // 16-byte accesses in float
using Single = Shape<1, 4>;      // any number of channels and any strides; and all of Robust

struct Place {
    int image, chunk, channel;  // the first channel of the tile
    unsigned index;             // of the chunk in the batch

    // `width`: channels of a tile.
    DEVICE Place(const Call& call, unsigned block, int width) {
        unsigned tiles = ((unsigned)call.channels + width - 1) / width;
        unsigned chunks = (unsigned)((call.length + CHUNK - 1) / CHUNK);
        index = block / tiles;
        channel = int(block % tiles) * width;
        image = int(index / chunks);
        chunk = int(index % chunks);
    }
};

// Whether Fast is right for a channel: the decay over a chunk and the bonus stay within float, and in backward, where
// alpha grows like a^(2 distance), that does too.
DEVICE bool safe(const Call& call, int channel) {
    if (channel >= call.channels) return true;
    float lam = call.lam[channel], u = call.u[channel], span = lam * float(call.length);
    bool forward = fabsf(lam) * CHUNK <= 40.0f && fabsf(u) <= 40.0f && fabsf(span) <= 8e6f;
    return forward && (call.grad.data == nullptr || -2.0f * span - fminf(u, 0.0f) <= 60.0f);
}

// What a thread holds: rows of its tokens (-1: outside), and its channels.
template <class S>
struct Slice {
    int channel, image, row[S::N];

    DEVICE static int group() { return threadIdx.x / S::LANES; }
    DEVICE static int lane() { return threadIdx.x % S::LANES * S::VEC; }  // its first channel in the tile

    DEVICE Slice(const Call& call, const Place& at, int first) {
        channel = first + lane();
        image = at.image;
        unsigned token = unsigned(at.chunk * CHUNK + group() * S::N), rows = (unsigned)call.rows;
        unsigned column = token / rows, line = token % rows;
#pragma unroll
        for (int i = 0; i < S::N; i++) {
            row[i] = token + i < call.length && channel < call.channels ? int(line * (unsigned)call.width + column) : -1;
            if (++line == rows) line = 0, column++;
        }
    }

    template <class T>
    DEVICE Pack<T, S::VEC>* at(const Tensor& tensor, int i) const {
        i64 offset = image * tensor.batch_stride + row[i] * tensor.row_stride + channel;
        return reinterpret_cast<Pack<T, S::VEC>*>(static_cast<T*>(tensor.data) + offset);
    }

    template <class T>
    DEVICE void load(const Tensor& tensor, float (&out)[S::N][S::VEC], float rest) const {
#pragma unroll
        for (int i = 0; i < S::N; i++) {
            Pack<T, S::VEC> pack{};
            bool inside = row[i] >= 0;
            if (inside) pack = *at<T>(tensor, i);
#pragma unroll
            for (int j = 0; j < S::VEC; j++) out[i][j] = inside ? widen(pack.part[j]) : rest;
        }
    }

    // Of the thread's channels those with a bit in `mine`.
    template <class T, class Real>
    DEVICE void store(const Tensor& tensor, const Real (&x)[S::N][S::VEC], unsigned mine) const {
#pragma unroll
        for (int i = 0; i < S::N; i++) {
            if (row[i] < 0) continue;
            Pack<T, S::VEC> pack, *place = at<T>(tensor, i);
#pragma unroll
            for (int j = 0; j < S::VEC; j++) narrow(float(x[i][j]), pack.part[j]);
            if (mine == (1u << S::VEC) - 1) {
                *place = pack;
            } else {
#pragma unroll
                for (int j = 0; j < S::VEC; j++)
                    if (mine >> j & 1) place->part[j] = pack.part[j];
            }
        }
    }
};

// What a block shares: constants of its channels, and two sums of every group and channel, prefix and suffix.
template <class M, class S>
struct Memory {
    M math[S::CHANNELS];
    Pack<typename M::Sum, S::VEC> sums[2][S::GROUPS][S::LANES];
    // Each thread's, for what it has no registers for.
    Pack<typename M::Sum, S::VEC> own[S::GROUPS][S::LANES];
    float fetched[2 * S::CHANNELS][3];

    DEVICE typename M::Sum& sum(int direction, int group, int channel) {
        return sums[direction][group][channel / S::VEC].part[channel % S::VEC];
    }
};

struct alignas(16) Bytes {
    unsigned char bytes[sizeof(Memory<Fast, Quad>)];
};
static_assert(sizeof(Memory<Robust, Single>) <= sizeof(Bytes) && sizeof(Memory<Fast, Single>) <= sizeof(Bytes), "");

// The first 2 * CHANNELS threads each stand for one direction and channel of the tile.
template <class S>
struct Line {
    int direction, lane, channel;
    bool active;

    DEVICE Line(const Call& call, int first) {
        direction = threadIdx.x / S::CHANNELS;
        lane = threadIdx.x % S::CHANNELS;
        channel = first + lane;
        active = direction < 2 && channel < call.channels;
    }

    // Sums of this chunk in `states` or `adjoints`, `width` floats a chunk and channel.
    DEVICE float* in(float* memory, int width, const Call& call, const Place& at) const {
        return memory + (i64(at.index) * width + 3 * direction) * call.channels + channel;
    }
    DEVICE Fast::Stored read(float* memory, int width, const Call& call, const Place& at) const {
        if (!active) return {0.0f, 0.0f, NOTHING};
        const float* p = in(memory, width, call, at);
        return {p[0], p[call.channels], __float_as_int(p[2 * call.channels])};
    }
    // The same, as `read` does it at once.
    DEVICE void start_read(float (*fetched)[3], float* memory, int width, const Call& call, const Place& at) const {
        if (!active) return;
        for (int i = 0; i < 3; i++) fetch(fetched[threadIdx.x] + i, in(memory, width, call, at) + i * call.channels);
    }
    DEVICE Fast::Stored end_read(float (*fetched)[3]) const {
        if (!active) return {0.0f, 0.0f, NOTHING};
        wait_for_fetched();
        const float* p = fetched[threadIdx.x];
        return {p[0], p[1], __float_as_int(p[2])};
    }
    DEVICE void write(float* memory, int width, const Call& call, const Place& at, Fast::Stored s) const {
        float* p = in(memory, width, call, at);
        p[0] = s.first, p[call.channels] = s.second, p[2 * call.channels] = __int_as_float(s.exponent);
    }
};

// The scale of a chunk's states: of its largest key or carry.
template <class S>
DEVICE int read_scale(const Call& call, const Place& at, int first) {
    int channel = first + threadIdx.x % S::CHANNELS;
    if (threadIdx.x >= S::CHANNELS || channel >= call.channels) return 0;
    const float* p = call.states + i64(at.index) * STATE * call.channels + channel;
    int before = __float_as_int(p[2 * call.channels]), after = __float_as_int(p[5 * call.channels]);
    return max(__float_as_int(p[SCALE * call.channels]), max(before, after));
}

// Shares the constants of the channels; whether any of them is not safe.
template <class M, class S>
DEVICE bool prepare(Memory<M, S>& memory, const Call& call, int first, int scale) {
    int channel = first + threadIdx.x;
    bool mine = threadIdx.x < S::CHANNELS && channel < call.channels;
    if (threadIdx.x < S::CHANNELS) {
        int from = mine ? channel : 0;
        memory.math[threadIdx.x].set(call.lam[from], call.u[from], S::N, call.length, scale);
    }
    return __syncthreads_or(mine && !safe(call, channel));
}

// Which of a thread's channels this arithmetic answers for.
template <bool FAST, class S>
DEVICE unsigned answers_for(const Call& call, int channel, bool mixed) {
    if (FAST && !mixed) return (1u << S::VEC) - 1;
    unsigned mine = 0;
#pragma unroll
    for (int j = 0; j < S::VEC; j++) mine |= unsigned(safe(call, channel + j) == FAST) << j;
    return mine;
}

template <class M, class S>
DEVICE void share_sums(Memory<M, S>& memory, const Slice<S>& slice, const typename M::Sum (&before)[S::VEC],
                       const typename M::Sum (&after)[S::VEC]) {
    Pack<typename M::Sum, S::VEC> packs[2];
#pragma unroll
    for (int j = 0; j < S::VEC; j++) packs[0].part[j] = before[j], packs[1].part[j] = after[j];
    memory.sums[0][slice.group()][slice.lane() / S::VEC] = packs[0];
    memory.sums[1][slice.group()][slice.lane() / S::VEC] = packs[1];
    __syncthreads();
}

// From the groups' own sums to the chunk's, for a line.
template <class M, class S>
DEVICE typename M::Sum total(Memory<M, S>& memory, const Line<S>& line) {
    M math = memory.math[line.lane];
    typename M::Sum run = M::zero();
#pragma unroll 4
    for (int i = 0; i < S::GROUPS; i++)
        run = math.join(run, memory.sum(line.direction, line.direction ? S::GROUPS - 1 - i : i, line.lane));
    return run;
}

// From the groups' own sums to what reaches each group from outside it; `carry` is what reaches a line's chunk.
template <class M, class S>
DEVICE void reach(Memory<M, S>& memory, const Slice<S>& slice, const Line<S>& line, typename M::Sum carry,
                  typename M::Sum (&before)[S::VEC], typename M::Sum (&after)[S::VEC]) {
    share_sums(memory, slice, before, after);
    if (line.direction < 2) {
        M math = memory.math[line.lane];
        for (int start = 0; start < S::GROUPS; start += 4) {
            typename M::Sum own[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                own[i] = memory.sum(line.direction, line.direction ? S::GROUPS - 1 - start - i : start + i, line.lane);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                memory.sum(line.direction, line.direction ? S::GROUPS - 1 - start - i : start + i, line.lane) = carry;
                carry = math.join(carry, own[i]);
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < S::VEC; j++) {
        before[j] = memory.sum(0, slice.group(), slice.lane() + j);
        after[j] = memory.sum(1, slice.group(), slice.lane() + j);
    }
}

}  // namespace
