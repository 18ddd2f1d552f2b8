// A whole BRWKV layer on tiles of 64 pixels and their mirror images: nothing but the map itself, read twice and written
// once, and seven floats a chunk and channel goes through memory. Keys and values are computed twice, which costs less
// than to store them.
//
// A token is a pixel x beside its mirror image x', and its mirror image is x' beside x. With U, V the weights of the two
// halves, U x + V x' = S + D and U x' + V x = S - D, where S = (U + V) (x + x') / 2 and D = (U - V) (x - x') / 2: half
// the multiplications.

#include "../cpu/biwkv.h"
#include "../cpu/carry.h"
#include "../cpu/constants.h"
#include "gemm.h"

namespace {

// Chunks that mirror each other: chunk c and chunk count-1-c cover the same pixels of the map turned by 180 degrees,
// which is the flip of every scan order. What 64 does not divide is in the middle.
struct MirrorChunks {
    int64_t length, sides, count;
    int middle[3];

    explicit MirrorChunks(int64_t length) : length(length), sides(length / CHUNK / 2) {
        int rest = int(length - 2 * sides * CHUNK);
        int half = rest > CHUNK ? rest / 2 : 0;
        middle[0] = middle[2] = half;
        middle[1] = rest - 2 * half;
        count = 2 * sides + (half ? 2 : 0) + (middle[1] ? 1 : 0);
    }

    int size(int64_t chunk) const {
        int64_t mirrored = smaller(chunk, count - 1 - chunk);
        if (mirrored < sides) return CHUNK;
        return mirrored == sides && middle[0] ? middle[0] : middle[1];
    }

    int64_t begin(int64_t chunk) const {
        int64_t mirrored = count - 1 - chunk;
        if (mirrored < chunk) return length - begin(mirrored) - size(mirrored);
        return smaller(chunk, sides) * CHUNK + (chunk > sides ? middle[0] : 0);
    }
};

struct Layer {
    const LayerCall& call;
    MirrorChunks chunks;
    Constants constants;
    int64_t width, mixed;  // C, 2C
    // a^n of the chunks in the middle
    Buffer<double> over_middle;

    explicit Layer(const LayerCall& call)
        : call(call),
          chunks(call.length),
          constants(2 * call.channels, call.length, call.lam, call.u),
          width(call.channels),
          mixed(2 * call.channels),
          over_middle(2 * mixed) {
        for (int64_t c = 0; c < mixed; c++)
            for (int i = 0; i < 2; i++) over_middle[i * mixed + c] = exp(-call.lam[c] * chunks.middle[i]);
    }

    const double* over(int64_t chunk) const {
        int n = chunks.size(chunk);
        if (n == CHUNK) return constants.over.data();
        return over_middle.data() + (n == chunks.middle[0] ? 0 : mixed);
    }

    float* state(int64_t image, int64_t chunk) const {
        return call.states + (image * chunks.count + chunk) * STATE * mixed;
    }

    // Rows of the map of a chunk's tokens.
    void pixels(int64_t chunk, int64_t* row_of) const {
        int64_t columns = call.length / call.rows, step = chunks.begin(chunk);
        int64_t column = step / call.rows, row = step % call.rows;
        for (int i = 0, n = chunks.size(chunk); i < n; i++) {
            row_of[i] = call.rows == 1 ? step + i : row * columns + column;
            if (++row == call.rows) {
                row = 0;
                column++;
            }
        }
    }
};

INLINE void normalise(const float* x, int64_t width, float epsilon, float* out) {
    Vec factor = norm_of(x, width, epsilon);
    for (int64_t c = 0; c < width; c += LANES) store(out + c, load(x + c) * factor);
}

// Working memory of one thread.
struct Workspace {
    Buffer<float> sum, difference, own, mirrored, odd, y, y_mirrored, hidden;
    Tokens forward, backward;  // the rows of a tile, from the first and from the last

    explicit Workspace(const LayerCall& call)
        : sum(CHUNK * 2 * call.channels),
          difference(CHUNK * 2 * call.channels),
          own(CHUNK * 6 * call.channels),
          mirrored(CHUNK * 6 * call.channels),
          odd(CHUNK * 6 * call.channels),
          y(CHUNK * 2 * call.channels),
          y_mirrored(CHUNK * 2 * call.channels),
          hidden(CHUNK * call.hidden) {}

    void size(int n) {
        forward.n = backward.n = n;
        for (int i = 0; i < n; i++) {
            forward.row[i] = forward.after[i] = i;
            backward.row[i] = backward.after[i] = n - 1 - i;
        }
    }
};

// A chunk and its mirror image. Row i of every tile is pixel row[i] or, mirrored, last - row[i].
struct Pair {
    float* map;
    int64_t last;
    int n;
    int64_t row[CHUNK];
    float *state, *mirrored_state;
    bool alone;  // the chunk in the middle, its own mirror image

    Pair(const Layer& layer, int64_t image, int64_t chunk)
        : map(layer.call.x + image * layer.call.length * layer.width),
          last(layer.call.length - 1),
          n(layer.chunks.size(chunk)),
          state(layer.state(image, chunk)),
          mirrored_state(layer.state(image, layer.chunks.count - 1 - chunk)),
          alone(2 * chunk == layer.chunks.count - 1) {
        layer.pixels(chunk, row);
    }
};

// a + b and a - b, n floats.
INLINE void sum_and_difference(const float* a, const float* b, int64_t n, float* sum, float* difference) {
    for (int64_t i = 0; i < n; i += LANES) {
        Vec first = load(a + i), second = load(b + i);
        store(sum + i, first + second);
        store(difference + i, first - second);
    }
}

// Columns of the packed receptance, keys and values of both chunks' tokens: (n, columns) in work.own and work.mirrored.
void project(const Layer& layer, Workspace& work, const Pair& pair, int64_t first, int64_t columns) {
    const LayerCall& call = layer.call;
    int64_t width = layer.width;
    alignas(64) float mirrored[1024];
    for (int i = 0; i < pair.n; i++) {
        float *sum = work.sum.data() + i * width, *difference = work.difference.data() + i * width;
        normalise(pair.map + pair.row[i] * width, width, call.epsilon, sum);
        normalise(pair.map + (pair.last - pair.row[i]) * width, width, call.epsilon, mirrored);
        sum_and_difference(sum, mirrored, width, sum, difference);
    }
    product(work.sum.data(), width, pair.n, call.in_even + first, 6 * width, int(columns), int(width), work.own.data(),
            columns);
    product(work.difference.data(), width, pair.n, call.in_odd + first, 6 * width, int(columns), int(width),
            work.odd.data(), columns);
    sum_and_difference(work.own.data(), work.odd.data(), pair.n * columns, work.own.data(), work.mirrored.data());
}

// P1 of one chunk from its keys and values (n, 2 channels).
void aggregate_tile(const Constants& constants, const float* packed, const Tokens& tokens, float* state) {
    int64_t mixed = constants.channels;
    constants.for_lanes([&](const auto& lanes, int64_t channel) {
        Rows<const float> k{packed + channel, 2 * mixed}, v{packed + mixed + channel, 2 * mixed};
        auto top = top_of(k, tokens.row, tokens.n, lanes);
        aggregate(k, v, tokens, lanes, state + channel, mixed, &top);
    });
}

// sigmoid(r) y of one chunk from its packed (n, 3 channels).
void output_tile(const Constants& constants, const float* packed, const Tokens& tokens, const float* state, float* y) {
    int64_t mixed = constants.channels;
    constants.for_lanes([&](const auto& lanes, int64_t channel) {
        const float* base = packed + channel;
        Rows<const float> r{base, 3 * mixed}, k{base + mixed, 3 * mixed}, v{base + 2 * mixed, 3 * mixed};
        auto carry = carries_of(lanes, state + channel, mixed);
        auto put_y = [&](int64_t row, auto x) { put(y + row * mixed + channel, x); };
        if (UNLIKELY(carry.clamped))
            output<true, true>(k, v, r, tokens, lanes, carry, put_y);
        else
            output<true, false>(k, v, r, tokens, lanes, carry, put_y);
    });
}

// Channel mixing of the rows of z, (n, C), around its residual.
template <class Call>
void mix_channels(const Call& call, float* normed, float* gate, float* inner, float* z, int n) {
    int64_t width = call.channels;
    int columns = int(width), hidden = int(call.hidden);
    for (int i = 0; i < n; i++) normalise(z + i * width, width, call.epsilon, normed + i * width);
    product(normed, width, n, call.key, hidden, hidden, columns, inner, hidden);
    for (int64_t i = 0; i < int64_t(n) * hidden; i += LANES) {
        Vec key = maximum(Vec{}, load(inner + i));
        store(inner + i, key * key);
    }
    product(normed, width, n, call.receptance, width, columns, columns, gate, width);
    product(inner, hidden, n, call.value, width, columns, hidden, normed, width);
    for (int64_t i = 0; i < n * width; i += LANES) store(gate + i, sigmoid(load(gate + i)) * load(normed + i));
    product<true>(gate, width, n, call.channel_out, width, columns, columns, z, width);
}

// Output of the spatial mixing, residual, channel mixing: the pixels of both chunks are written.
void finish(const Layer& layer, Workspace& work, const Pair& pair) {
    const LayerCall& call = layer.call;
    int64_t width = layer.width, mixed = layer.mixed;
    float *z = work.own.data(), *z_mirrored = work.mirrored.data();
    sum_and_difference(work.y.data(), work.y_mirrored.data(), pair.n * mixed, work.sum.data(), work.difference.data());
    product(work.sum.data(), mixed, pair.n, call.out_even, width, int(width), int(mixed), z, width);
    product(work.difference.data(), mixed, pair.n, call.out_odd, width, int(width), int(mixed), work.odd.data(), width);
    sum_and_difference(z, work.odd.data(), pair.n * width, z, z_mirrored);
    for (int side = 0; side < (pair.alone ? 1 : 2); side++) {
        float* rows = side ? z_mirrored : z;
        auto pixel = [&](int i) { return pair.map + (side ? pair.last - pair.row[i] : pair.row[i]) * width; };
        for (int i = 0; i < pair.n; i++)
            for (int64_t c = 0; c < width; c += LANES) store(rows + i * width + c, load(rows + i * width + c) + load(pixel(i) + c));
        mix_channels(call, work.y.data(), work.y.data() + CHUNK * width, work.hidden.data(), rows, pair.n);
        for (int i = 0; i < pair.n; i++)
            for (int64_t c = 0; c < width; c += LANES) store(pixel(i) + c, load(rows + i * width + c));
    }
}

// `work(workspace, pair)` for each pair of mirrored chunks.
template <class Work>
void for_pairs(const Layer& layer, Work work) {
    int64_t pairs = (layer.chunks.count + 1) / 2, total = layer.call.batch * pairs;
#pragma omp parallel num_threads(int(layer.call.threads)) if (layer.call.threads > 1)
    {
        Workspace workspace(layer.call);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < total; i++) {
            Pair pair(layer, i / pairs, i % pairs);
            workspace.size(pair.n);
            work(workspace, pair);
        }
    }
}

void run_layer(const LayerCall& call) {
    Layer layer(call);
    int64_t mixed = layer.mixed;
    for_pairs(layer, [&](Workspace& work, const Pair& pair) {
        project(layer, work, pair, mixed, 2 * mixed);
        aggregate_tile(layer.constants, work.own.data(), work.forward, pair.state);
        if (!pair.alone) aggregate_tile(layer.constants, work.mirrored.data(), work.backward, pair.mirrored_state);
    });
#pragma omp parallel for schedule(static) num_threads(int(call.threads)) if (call.threads > 1)
    for (int64_t job = 0; job < 2 * call.batch; job++)
        scan_carries_of<true>(layer.state(job / 2, 0), layer.chunks.count, STATE, job % 2, mixed,
                              [&](int64_t chunk) { return layer.over(chunk); });
    for_pairs(layer, [&](Workspace& work, const Pair& pair) {
        project(layer, work, pair, 0, 3 * mixed);
        output_tile(layer.constants, work.own.data(), work.forward, pair.state, work.y.data());
        // Alone, this is the same scan once more, with rows in reverse: each pixel beside its mirror image.
        output_tile(layer.constants, work.mirrored.data(), work.backward, pair.mirrored_state, work.y_mirrored.data());
        finish(layer, work, pair);
    });
}

// One group of an aligned layer.
struct Group {
    const AlignedCall& call;
    int64_t number, width, inner, chunks;
    Constants constants;
    const float *in, *out;

    Group(const AlignedCall& call, int64_t number)
        : call(call),
          number(number),
          width(call.channels),
          inner(call.inner),
          chunks((call.length + CHUNK - 1) / CHUNK),
          constants(inner, call.length, call.lam + number * inner, call.u + number * inner),
          in(call.in + number * width * 3 * inner),
          out(call.out + number * inner * width) {}

    float* state(int64_t image, int64_t chunk) const { return call.states + (image * chunks + chunk) * STATE * inner; }
};

// A chunk of a group, and one thread's working memory for it.
struct AlignedTile {
    const Group& group;
    Buffer<float> normed, packed, y, z, gate, hidden;
    Tokens tokens;
    int64_t image = 0, row[CHUNK];

    explicit AlignedTile(const Group& group)
        : group(group),
          normed(CHUNK * group.width),
          packed(CHUNK * 3 * group.inner),
          y(CHUNK * group.inner),
          z(CHUNK * group.width),
          gate(CHUNK * group.width),
          hidden(CHUNK * group.call.hidden) {}

    // Its pixels, of the whole batch, and columns of what they are projected to.
    void project(int64_t image_, int64_t chunk, int64_t first, int64_t columns) {
        const AlignedCall& call = group.call;
        int64_t rows = call.rows[group.number], across = call.length / rows, step = chunk * CHUNK;
        image = image_;
        tokens.n = int(smaller<int64_t>(CHUNK, call.length - step));
        int64_t column = step / rows, line = step % rows;
        for (int i = 0; i < tokens.n; i++) {
            tokens.row[i] = tokens.after[i] = i;
            row[i] = image * call.length + (rows == 1 ? step + i : line * across + column);
            if (++line == rows) {
                line = 0;
                column++;
            }
            normalise(call.x + row[i] * group.width, group.width, call.epsilon, normed.data() + i * group.width);
        }
        product(normed.data(), group.width, tokens.n, group.in + first, 3 * group.inner, int(columns), int(group.width),
                packed.data(), columns);
    }

    // The rows of a map of this width, of the chunk's pixels, into `tile`.
    void gather(const float* map, int64_t width, float* tile) const {
        for (int i = 0; i < tokens.n; i++) memcpy(tile + i * width, map + row[i] * width, width * sizeof(float));
    }

    void scatter(const float* tile, int64_t width, float* map) const {
        for (int i = 0; i < tokens.n; i++) memcpy(map + row[i] * width, tile + i * width, width * sizeof(float));
    }

    // Output of the spatial mixing of all groups, residual, channel mixing.
    void finish() {
        const AlignedCall& call = group.call;
        int64_t width = group.width, inner = group.inner;
        gather(call.x, width, z.data());
        product<true>(y.data(), inner, tokens.n, group.out, width, int(width), int(inner), z.data(), width);
        if (call.groups == 2) {
            gather(call.mixed, inner, y.data());
            product<true>(y.data(), inner, tokens.n, group.out + inner * width, width, int(width), int(inner), z.data(),
                          width);
        }
        mix_channels(call, normed.data(), gate.data(), hidden.data(), z.data(), tokens.n);
        scatter(z.data(), width, call.x);
    }
};

template <class Work>
void for_aligned(const Group& group, Work work) {
    int64_t total = group.call.batch * group.chunks;
#pragma omp parallel num_threads(int(group.call.threads)) if (group.call.threads > 1)
    {
        AlignedTile tile(group);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < total; i++) work(tile, i / group.chunks, i % group.chunks);
    }
}

// The last group comes first: what it gives waits in memory until the first one's tiles are finished.
void run_aligned(const AlignedCall& call) {
    for (int64_t number = call.groups - 1; number >= 0; number--) {
        Group group(call, number);
        int64_t inner = group.inner;
        for_aligned(group, [&](AlignedTile& tile, int64_t image, int64_t chunk) {
            tile.project(image, chunk, inner, 2 * inner);
            aggregate_tile(group.constants, tile.packed.data(), tile.tokens, group.state(image, chunk));
        });
#pragma omp parallel for schedule(static) num_threads(int(call.threads)) if (call.threads > 1)
        for (int64_t job = 0; job < 2 * call.batch; job++)
            scan_carries_of<true>(group.state(job / 2, 0), group.chunks, STATE, job % 2, inner,
                                  [&](int64_t) { return group.constants.over.data(); });
        for_aligned(group, [&](AlignedTile& tile, int64_t image, int64_t chunk) {
            tile.project(image, chunk, 0, 3 * inner);
            output_tile(group.constants, tile.packed.data(), tile.tokens, group.state(image, chunk), tile.y.data());
            if (number)
                tile.scatter(tile.y.data(), inner, call.mixed);
            else
                tile.finish();
        });
    }
}

}  // namespace

extern "C" void JOIN(aligned_forward, ISA)(const AlignedCall* call) { run_aligned(*call); }
extern "C" void JOIN(layer_forward, ISA)(const LayerCall* call) { run_layer(*call); }
