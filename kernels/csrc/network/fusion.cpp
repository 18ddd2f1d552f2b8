// Multi-modal fusion and the decoder's upsampling, tile by tile: what torch would write to memory between convolution,
// norm, gate, mask and sum stays in the first cache.

#include "../cpu/biwkv.h"
#include "gemm.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

constexpr int TILE = 64;  // pixels of a row

// Three rows of a map around a tile, with a pixel more on each side; zero outside the map.
struct Patch {
    Buffer<float> memory;
    int64_t channels;

    explicit Patch(int64_t channels) : memory(3 * (TILE + 2) * channels + LANES), channels(channels) {}

    float* row(int dy) { return memory.data() + dy * (TILE + 2) * channels; }

    void read(const float* map, int64_t height, int64_t width, int64_t y, int64_t left, int n) {
        for (int dy = 0; dy < 3; dy++) {
            float* to = row(dy);
            int64_t from_y = y + dy - 1;
            if (from_y < 0 || from_y >= height) {
                memset(to, 0, (n + 2) * channels * sizeof(float));
                continue;
            }
            const float* from = map + (from_y * width + left) * channels;
            int64_t before = left > 0, after = left + n < width;
            memset(to, 0, channels * sizeof(float));
            memset(to + (n + 1) * channels, 0, channels * sizeof(float));
            memcpy(to + (1 - before) * channels, from - before * channels,
                   (n + before + after) * channels * sizeof(float));
        }
    }

    // The convolution of the tile with (3, 3, channels, out_channels): a pixel's three columns lie side by side.
    void convolve(int n, const float* weight, const float* bias, int64_t out_channels, float* out) {
        for (int i = 0; i < n; i++)
            for (int64_t c = 0; c < out_channels; c += LANES) store(out + i * out_channels + c, load(bias + c));
        for (int dy = 0; dy < 3; dy++)
            product<true>(row(dy), channels, n, weight + dy * 3 * channels * out_channels, out_channels,
                          int(out_channels), int(3 * channels), out, out_channels);
    }
};

// Whether there is an object in the three rows of labels around a tile.
bool objects_near(const FusionCall& call, int64_t image, int64_t y, int64_t left, int n) {
    if (!call.labels) return false;
    int64_t begin = larger<int64_t>(left - 1, 0), end = smaller(left + n + 1, call.width);
    for (int64_t row = larger<int64_t>(y - 1, 0); row < smaller(y + 2, call.height); row++) {
        const uint8_t* labels = call.labels + (image * call.height + row) * call.width;
        for (int64_t x = begin; x < end; x++)
            if (labels[x]) return true;
    }
    return false;
}

// First pass, one row: features = norm(conv(x)) + norm(conv(images)).
void features_row(const FusionCall& call, int64_t image, int64_t y, Patch& patch, Patch& raw, float* tile) {
    int64_t channels = call.channels, size = call.height * call.width;
    double* sums = call.row_sums ? call.row_sums + (image * call.height + y) * channels : nullptr;
    for (int64_t c = 0; sums && c < channels; c++) sums[c] = 0;
    int64_t columns = call.width / call.pool;
    float* means = call.means ? call.means + (image * (call.height / call.pool) + y / call.pool) * columns * channels : nullptr;
    if (means && y % call.pool == 0) memset(means, 0, columns * channels * sizeof(float));
    float share = 1.0f / float(call.pool * call.pool);
    float *feature = tile, *modality = tile + TILE * channels, *added = modality + TILE * channels;
    for (int64_t left = 0; left < call.width; left += TILE) {
        int n = int(smaller<int64_t>(TILE, call.width - left));
        patch.read(call.x + image * size * channels, call.height, call.width, y, left, n);
        raw.read(call.images + image * size * call.modalities, call.height, call.width, y, left, n);
        patch.convolve(n, call.feature, call.feature_bias, channels, feature);
        raw.convolve(n, call.modality, call.modality_bias, channels, modality);
        memset(added, 0, channels * sizeof(float));
        int64_t at = (image * size + y * call.width + left) * channels;
        bool keep = call.keep_all || objects_near(call, image, y, left, n);
        for (int i = 0; i < n; i++) {
            Vec first = norm_of(feature + i * channels, channels, call.epsilon);
            Vec second = norm_of(modality + i * channels, channels, call.epsilon);
            for (int64_t c = 0; c < channels; c += LANES) {
                Vec raw_part = load(modality + i * channels + c) * second * load(call.modality_gain + c);
                Vec sum = load(feature + i * channels + c) * first * load(call.feature_gain + c) + raw_part;
                if (keep) store(call.modality_map + at + i * channels + c, raw_part);
                store(call.features + at + i * channels + c, sum);
                if (sums) store(added + c, load(added + c) + sum);
            }
        }
        for (int64_t c = 0; sums && c < channels; c++) sums[c] += added[c];
        for (int64_t begin = left, end; means && begin < left + n; begin = end) {
            int64_t column = begin / call.pool;
            end = smaller((column + 1) * call.pool, left + n);
            for (int64_t c = 0; c < channels; c += LANES) {
                Vec sum = {};
                for (int64_t x = begin; x < end; x++) sum += load(call.features + at + (x - left) * channels + c);
                float* mean = means + column * channels + c;
                store(mean, load(mean) + sum * share);
            }
        }
    }
}

// What the mask's convolution gives at a pixel, from the labels around it; false where there are none.
INLINE bool objects_at(const FusionCall& call, const uint8_t* labels, int64_t y, int64_t x, float* out) {
    int64_t channels = call.channels;
    bool any = false;
    for (int dy = -1; dy <= 1; dy++)
        for (int dx = -1; dx <= 1; dx++) {
            if (y + dy < 0 || y + dy >= call.height || x + dx < 0 || x + dx >= call.width) continue;
            int label = labels[(y + dy) * call.width + x + dx];
            if (!label || label > call.n_objects) continue;
            const float* added = call.objects + (((dy + 1) * 3 + dx + 1) * (call.n_objects + 1) + label) * channels;
            for (int64_t c = 0; c < channels; c += LANES)
                store(out + c, any ? load(out + c) + load(added + c) : load(added + c));
            any = true;
        }
    return any;
}

// Where a pixel lies between those of a map `pool` times smaller (bilinear, corners not aligned).
struct Between {
    int64_t low, high;
    float share;  // of the higher

    Between(int64_t at, int64_t pool, int64_t size) {
        float source = larger((float(at) + 0.5f) / float(pool) - 0.5f, 0.0f);
        low = int64_t(source);
        high = smaller(low + 1, size - 1);
        share = source - float(low);
    }
};

// Rows of a map `pool` times smaller, at the height of row y: (columns, channels).
void between_rows(const FusionCall& call, const float* map, int64_t image, int64_t y, float* out) {
    int64_t rows = call.height / call.pool, size = call.width / call.pool * call.channels;
    Between down(y, call.pool, rows);
    const float *upper = map + (image * rows + down.low) * size, *lower = map + (image * rows + down.high) * size;
    for (int64_t i = 0; i < size; i += LANES)
        store(out + i, load(upper + i) * (1.0f - down.share) + load(lower + i) * down.share);
}

// Second pass, the rows of one row of pooled pixels: gate, mask, pooling. Where nothing is pooled it is the last.
void gate_rows(const FusionCall& call, int64_t image, int64_t strip, float* scratch, float* gates) {
    int64_t channels = call.channels, size = call.height * call.width, columns = call.width / call.pool;
    const float* gate = call.gate + image * channels;
    float* pooled = call.pooled ? call.pooled + (image * (call.height / call.pool) + strip) * columns * channels : nullptr;
    if (pooled) memset(pooled, 0, columns * channels * sizeof(float));
    float share = 1.0f / float(call.pool * call.pool);
    for (int64_t y = strip * call.pool; y < (strip + 1) * call.pool; y++) {
        if (call.gates) between_rows(call, call.gates, image, y, gates);
        for (int64_t x = 0; x < call.width; x++) {
            int64_t at = (image * size + y * call.width + x) * channels;
            const float* mask = call.mask_map ? call.mask_map + at : nullptr;
            if (call.labels && objects_at(call, call.labels + image * size, y, x, scratch)) mask = scratch;
            float* sum = pooled ? pooled + x / call.pool * channels : nullptr;
            Between right(x, call.pool, columns);
            const float *near = gates + right.low * channels, *far = gates + right.high * channels;
            for (int64_t c = 0; c < channels; c += LANES) {
                Vec open = call.gates ? load(near + c) + (load(far + c) - load(near + c)) * right.share : load(gate + c);
                Vec value = load(call.features + at + c) * open;
                if (mask) value += (value + load(call.modality_map + at + c)) * load(mask + c);
                if (sum)
                    store(sum + c, load(sum + c) + value * share);
                else
                    value = load(call.x + at + c) + value;
                store(call.features + at + c, value);
            }
        }
    }
}

// Third pass, one row: x + features + the text's map at full size.
void sum_row(const FusionCall& call, int64_t image, int64_t y) {
    int64_t channels = call.channels, rows = call.height / call.pool, columns = call.width / call.pool;
    Between down(y, call.pool, rows);
    const float* upper = call.guided + (image * rows + down.low) * columns * channels;
    const float* lower = call.guided + (image * rows + down.high) * columns * channels;
    for (int64_t x = 0; x < call.width; x++) {
        Between right(x, call.pool, columns);
        int64_t at = ((image * call.height + y) * call.width + x) * channels;
        for (int64_t c = 0; c < channels; c += LANES) {
            Vec up = load(upper + right.low * channels + c) * (1.0f - right.share) +
                     load(upper + right.high * channels + c) * right.share;
            Vec low = load(lower + right.low * channels + c) * (1.0f - right.share) +
                      load(lower + right.high * channels + c) * right.share;
            Vec guided = up * (1.0f - down.share) + low * down.share;
            store(call.features + at + c, load(call.x + at + c) + (load(call.features + at + c) + guided));
        }
    }
}

void upsample_row(const UpsampleCall& call, int64_t image, int64_t y, float* tile) {
    int64_t channels = call.channels;
    for (int64_t left = 0; left < call.width; left += TILE) {
        int n = int(smaller<int64_t>(TILE, call.width - left));
        product(call.x + ((image * call.height + y) * call.width + left) * call.in_channels, call.in_channels, n,
                call.weight, 4 * channels, int(4 * channels), int(call.in_channels), tile, 4 * channels);
        for (int quarter = 0; quarter < 4; quarter++) {
            int64_t row = (image * call.height + y) * 2 + quarter / 2;
            float* out = call.out + (row * call.width * 2 + left * 2 + quarter % 2) * channels;
            for (int i = 0; i < n; i++, out += 2 * channels)
                for (int64_t c = 0; c < channels; c += LANES)
                    store(out + c, load(tile + (i * 4 + quarter) * channels + c) + load(out + c) * load(call.skip + c));
        }
    }
}

// x + conv(x) of the rows from `begin` to `end`, in place. A ring holds three rows as they were, with a pixel of zeros on
// both sides; the row behind the band, which is another thread's, comes in `after`.
void local_rows(const LocalCall& call, float* map, int64_t begin, int64_t end, float* ring, const float* after) {
    int64_t channels = call.channels, size = call.width * channels, padded = size + 2 * channels;
    auto row = [&](int64_t y) { return ring + (y + 3) % 3 * padded + channels; };
    auto read = [&](int64_t y) {
        if (y == end)
            memcpy(row(y), after, size * sizeof(float));
        else
            memcpy(row(y), map + y * size, size * sizeof(float));
    };
    read(begin);
    for (int64_t y = begin; y < end; y++) {
        read(y + 1);
        const float *rows[3] = {row(y - 1), row(y), row(y + 1)};
        for (int64_t c = 0; c < channels; c += LANES) {
            Vec weight[9];
            for (int tap = 0; tap < 9; tap++) weight[tap] = load(call.weight + tap * channels + c);
            for (int64_t x = c; x < size; x += channels) {
                Vec sum = load(rows[1] + x);
                for (int dy = 0; dy < 3; dy++)
                    for (int dx = 0; dx < 3; dx++) sum += load(rows[dy] + x + (dx - 1) * channels) * weight[dy * 3 + dx];
                store(map + y * size + x, sum);
            }
        }
    }
}

}  // namespace

extern "C" void JOIN(fusion_features, ISA)(const FusionCall* call) {
#pragma omp parallel num_threads(int(call->threads)) if (call->threads > 1)
    {
        Patch patch(call->channels), raw(call->modalities);
        Buffer<float> tile((2 * TILE + 1) * call->channels);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < call->batch * call->height / call->pool; i++)  // rows that share their means
            for (int64_t y = i * call->pool; y < (i + 1) * call->pool; y++)
                features_row(*call, y / call->height, y % call->height, patch, raw, tile.data());
    }
}

extern "C" void JOIN(fusion_gate, ISA)(const FusionCall* call) {
    int64_t strips = call->height / call->pool;
#pragma omp parallel num_threads(int(call->threads)) if (call->threads > 1)
    {
        Buffer<float> scratch(call->channels), gates(call->width / call->pool * call->channels);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < call->batch * strips; i++)
            gate_rows(*call, i / strips, i % strips, scratch.data(), gates.data());
    }
}

extern "C" void JOIN(fusion_sum, ISA)(const FusionCall* call) {
#pragma omp parallel for schedule(static) num_threads(int(call->threads)) if (call->threads > 1)
    for (int64_t i = 0; i < call->batch * call->height; i++) sum_row(*call, i / call->height, i % call->height);
}

extern "C" void JOIN(enlarge, ISA)(const UpsampleCall* call) {
#pragma omp parallel num_threads(int(call->threads)) if (call->threads > 1)
    {
        Buffer<float> tile(TILE * 4 * call->channels);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < call->batch * call->height; i++)
            upsample_row(*call, i / call->height, i % call->height, tile.data());
    }
}

extern "C" void JOIN(local, ISA)(const LocalCall* call) {
    int64_t height = call->height, size = call->width * call->channels, padded = size + 2 * call->channels;
    int64_t bands = smaller(call->threads, height), share = (height + bands - 1) / bands;
    // Of each band the rows before and behind it, as they were.
    Buffer<float> before(call->batch * bands * size), after(call->batch * bands * size);
    for (int64_t i = 0; i < call->batch * bands; i++) {
        const float* map = call->x + i / bands * height * size;
        int64_t begin = i % bands * share, end = smaller(begin + share, height);
        if (begin > 0 && begin < height) memcpy(&before[i * size], map + (begin - 1) * size, size * sizeof(float));
        if (end < height) memcpy(&after[i * size], map + end * size, size * sizeof(float));
    }
#pragma omp parallel num_threads(int(call->threads)) if (call->threads > 1)
    {
        Buffer<float> ring(3 * padded);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < call->batch * bands; i++) {
            int64_t begin = i % bands * share, end = smaller(begin + share, height);
            memcpy(&ring[(begin + 2) % 3 * padded + call->channels], &before[i * size], size * sizeof(float));
            if (begin < end)
                local_rows(*call, call->x + i / bands * height * size, begin, end, ring.data(), &after[i * size]);
        }
    }
}
