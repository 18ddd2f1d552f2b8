// A whole BRWKV layer on tiles of 64 pixels: nothing but the map itself, read twice and written once, and seven floats a
// chunk and channel goes through memory. Keys and values are computed twice, which costs less than to store them.

#include "biwkv.h"
#include "carry.h"
#include "constants.h"
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

// x / sqrt(mean(x^2) + epsilon) of each row.
INLINE void normalise(const float* x, int64_t width, float epsilon, float* out) {
    Vec sum = {};
    for (int64_t c = 0; c < width; c += LANES) {
        Vec part = load(x + c);
        sum += part * part;
    }
    float total = 0;
    for (int i = 0; i < LANES; i++) total += sum[i];
    Vec factor = splat(1.0f / sqrtf(total / float(width) + epsilon));
    for (int64_t c = 0; c < width; c += LANES) store(out + c, load(x + c) * factor);
}

// Working memory of one thread.
struct Workspace {
    Buffer<float> tokens, mirrored, packed, y, y_mirrored, z, small, hidden;
    Tokens tile;  // the rows of a tile, in order

    explicit Workspace(const LayerCall& call)
        : tokens(CHUNK * 2 * call.channels),
          mirrored(CHUNK * 2 * call.channels),
          packed(CHUNK * 6 * call.channels),
          y(CHUNK * 2 * call.channels),
          y_mirrored(CHUNK * 2 * call.channels),
          z(CHUNK * call.channels),
          small(CHUNK * 2 * call.channels),
          hidden(CHUNK * call.hidden) {
        for (int i = 0; i < CHUNK; i++) tile.row[i] = tile.after[i] = i;
    }
};

// The normalised tokens of a chunk (n, 2C): each pixel beside its mirror image.
void gather(const Layer& layer, const float* map, const int64_t* row, int n, float* out) {
    int64_t width = layer.width, last = layer.call.length - 1;
    for (int i = 0; i < n; i++) {
        normalise(map + row[i] * width, width, layer.call.epsilon, out + i * 2 * width);
        normalise(map + (last - row[i]) * width, width, layer.call.epsilon, out + i * 2 * width + width);
    }
}

// The same for the mirrored chunk: its tokens in reverse, halves exchanged.
void turn(const float* tokens, int n, int64_t width, float* out) {
    for (int i = 0; i < n; i++) {
        const float* from = tokens + (n - 1 - i) * 2 * width;
        for (int64_t c = 0; c < width; c += LANES) {
            store(out + i * 2 * width + c, load(from + width + c));
            store(out + i * 2 * width + width + c, load(from + c));
        }
    }
}

// P1 of a chunk from its tokens.
void aggregate_tile(const Layer& layer, Workspace& work, const float* tokens, int n, float* state) {
    int64_t mixed = layer.mixed;
    work.tile.n = n;
    // Keys and values: columns 2C to 6C of the weights.
    product(tokens, mixed, n, layer.call.mix_in + mixed, 3 * mixed, int(2 * mixed), int(mixed), work.packed.data(), 2 * mixed);
    layer.constants.for_lanes([&](const auto& lanes, int64_t channel) {
        Rows<const float> k{work.packed.data() + channel, 2 * mixed}, v{work.packed.data() + mixed + channel, 2 * mixed};
        auto top = top_of(k, work.tile.row, n, lanes);
        aggregate(k, v, work.tile, lanes, state + channel, mixed, &top);
    });
}

// sigmoid(r) y of a chunk from its tokens (n, 2C).
void output_tile(const Layer& layer, Workspace& work, const float* tokens, int n, const float* state, float* y) {
    int64_t mixed = layer.mixed;
    work.tile.n = n;
    product(tokens, mixed, n, layer.call.mix_in, 3 * mixed, int(3 * mixed), int(mixed), work.packed.data(), 3 * mixed);
    layer.constants.for_lanes([&](const auto& lanes, int64_t channel) {
        float* base = work.packed.data() + channel;
        Rows<const float> r{base, 3 * mixed}, k{base + mixed, 3 * mixed}, v{base + 2 * mixed, 3 * mixed};
        auto carry = carries_of(lanes, state + channel, mixed);
        auto put_y = [&](int64_t token, auto x) { put(y + token * mixed + channel, x); };
        if (UNLIKELY(carry.clamped))
            output<true, true>(k, v, r, work.tile, lanes, carry, put_y);
        else
            output<true, false>(k, v, r, work.tile, lanes, carry, put_y);
    });
}

// Residual, output of the spatial mixing, channel mixing: the chunk's pixels of the map are written.
void finish_tile(const Layer& layer, Workspace& work, float* map, const int64_t* row, int n, const float* y,
                 const float* y_mirrored) {
    const LayerCall& call = layer.call;
    int64_t width = layer.width, mixed = layer.mixed;
    int c_width = int(width), hidden = int(call.hidden);
    float *z = work.z.data(), *normed = work.small.data(), *gate = normed + CHUNK * width;
    for (int i = 0; i < n; i++)
        for (int64_t c = 0; c < width; c += LANES) store(z + i * width + c, load(map + row[i] * width + c));
    product<true>(y, mixed, n, call.mix_out, width, c_width, int(mixed), z, width);
    product<true>(y_mirrored + (n - 1) * mixed, -mixed, n, call.mix_out + mixed * width, width, c_width, int(mixed), z, width);
    for (int i = 0; i < n; i++) normalise(z + i * width, width, call.epsilon, normed + i * width);
    product(normed, width, n, call.key, hidden, hidden, c_width, work.hidden.data(), hidden);
    for (int64_t i = 0; i < int64_t(n) * hidden; i += LANES) {
        Vec key = maximum(Vec{}, load(work.hidden.data() + i));
        store(work.hidden.data() + i, key * key);
    }
    product(normed, width, n, call.receptance, width, c_width, c_width, gate, width);
    product(work.hidden.data(), hidden, n, call.value, width, c_width, hidden, normed, width);
    for (int64_t i = 0; i < n * width; i += LANES) store(gate + i, sigmoid(load(gate + i)) * load(normed + i));
    product<true>(gate, width, n, call.channel_out, width, c_width, c_width, z, width);
    for (int i = 0; i < n; i++)
        for (int64_t c = 0; c < width; c += LANES) store(map + row[i] * width + c, load(z + i * width + c));
}

// `work(workspace, image, pair)` for each pair of mirrored chunks.
template <class Work>
void for_pairs(const Layer& layer, Work work) {
    int64_t pairs = (layer.chunks.count + 1) / 2, total = layer.call.batch * pairs;
#pragma omp parallel num_threads(int(layer.call.threads)) if (layer.call.threads > 1)
    {
        Workspace workspace(layer.call);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < total; i++) work(workspace, i / pairs, i % pairs);
    }
}

void run_layer(const LayerCall& call) {
    Layer layer(call);
    int64_t last = layer.chunks.count - 1, mixed = layer.mixed;
    for_pairs(layer, [&](Workspace& work, int64_t image, int64_t chunk) {
        int64_t row[CHUNK];
        int n = layer.chunks.size(chunk);
        layer.pixels(chunk, row);
        gather(layer, call.x + image * call.length * layer.width, row, n, work.tokens.data());
        aggregate_tile(layer, work, work.tokens.data(), n, layer.state(image, chunk));
        if (chunk == last - chunk) return;
        turn(work.tokens.data(), n, layer.width, work.mirrored.data());
        aggregate_tile(layer, work, work.mirrored.data(), n, layer.state(image, last - chunk));
    });
#pragma omp parallel for schedule(static) num_threads(int(call.threads)) if (call.threads > 1)
    for (int64_t job = 0; job < 2 * call.batch; job++)
        scan_carries_of<true>(layer.state(job / 2, 0), layer.chunks.count, STATE, job % 2, mixed,
                              [&](int64_t chunk) { return layer.over(chunk); });
    for_pairs(layer, [&](Workspace& work, int64_t image, int64_t chunk) {
        int64_t row[CHUNK], mirrored_row[CHUNK];
        int n = layer.chunks.size(chunk);
        float* map = call.x + image * call.length * layer.width;
        layer.pixels(chunk, row);
        gather(layer, map, row, n, work.tokens.data());
        output_tile(layer, work, work.tokens.data(), n, layer.state(image, chunk), work.y.data());
        if (chunk == last - chunk)
            return finish_tile(layer, work, map, row, n, work.y.data(), work.y.data());
        turn(work.tokens.data(), n, layer.width, work.mirrored.data());
        output_tile(layer, work, work.mirrored.data(), n, layer.state(image, last - chunk), work.y_mirrored.data());
        layer.pixels(last - chunk, mirrored_row);
        finish_tile(layer, work, map, row, n, work.y.data(), work.y_mirrored.data());
        finish_tile(layer, work, map, mirrored_row, n, work.y_mirrored.data(), work.y.data());
    });
}

}  // namespace

extern "C" void JOIN(layer_forward, ISA)(const LayerCall* call) { run_layer(*call); }
