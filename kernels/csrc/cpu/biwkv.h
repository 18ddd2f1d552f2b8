// The C interface of the CPU kernels, spoken to by ctypes: plain structs and pointers, nothing of Python or torch.
#pragma once

#include <cstdint>

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// A (B, L, C) tensor with channels side by side; strides in elements.
struct TensorArg {
    void* data;
    int64_t batch_stride, row_stride;
};

// One call. Token s of the scan is row (s % rows) * (length / rows) + s / rows: a map of `rows` rows, scanned by columns.
struct BiwkvCall {
    int64_t batch, length, channels, rows;
    int64_t threads;
    int64_t half;                        // 0 float32, 1 bfloat16: the type of every tensor below
    TensorArg k, v, r, y;                // r.data null: no gate
    TensorArg grad, gk, gv, gr;          // backward only
    const double *lam, *u;               // (C,)
    float* states;                       // (B, chunks, 7, C), written by forward, read by backward
    float* adjoints;                     // (B, chunks, 6, C), backward's own
    double* partials;                    // (B * chunks, 2, C), backward's own
    double *g_lam, *g_u;                 // (C,)
};

// One BRWKV layer in place, float32, without gradients: spatial mixing (eq. 6-8) in one order and its flip, and channel
// mixing (eq. 9-11), each behind an RMSNorm and around a residual. Weights are stored input by output, with the norm's
// gain multiplied in.
struct LayerCall {
    int64_t batch, length, channels, hidden, rows;  // rows as in BiwkvCall; channels and hidden multiples of 16
    int64_t threads;
    float* x;                   // (B, L, C)
    // Of the tokens' two halves, x and its mirror image, only sum and difference are multiplied: both tokens of a
    // mirrored pair come from one product of each. even and odd are half the sum and half the difference of the
    // weights for the halves.
    const float *in_even, *in_odd;  // (C, 6C): receptance, keys, values
    const double *lam, *u;      // (2C,)
    const float *out_even, *out_odd;  // (2C, C)
    const float* receptance;    // (C, C)
    const float* key;           // (C, hidden)
    const float* value;         // (hidden, C)
    const float* channel_out;   // (C, C)
    float epsilon;              // of both norms
    float* states;              // (B, chunks, 7, 2C), see rwkvfusion_layer_chunks
};

// The same where each token is one pixel and its channels are groups, each mixed in an order of its own: in the order of
// `rows[g]`, as above. One group or two.
struct AlignedCall {
    int64_t batch, length, channels, hidden, inner;  // inner: channels of a group; all multiples of 16
    int64_t groups, rows[2];
    int64_t threads;
    float* x;                   // (B, L, C)
    const float* in;            // (groups, C, 3 inner): receptance, keys, values
    const double *lam, *u;      // (groups, inner)
    const float* out;           // (groups, inner, C)
    const float* receptance;    // (C, C)
    const float* key;           // (C, hidden)
    const float* value;         // (hidden, C)
    const float* channel_out;   // (C, C)
    float epsilon;              // of both norms
    float* states;              // (B, chunks, 7, inner)
    float* mixed;               // (B, L, inner): what the second group gives, or null
};

// Multi-modal fusion (eq. 15-18) without gradients, float32, on (B, H, W, C) maps; C a multiple of 16. Its passes, with
// the text between the second and the third.
struct FusionCall {
    int64_t batch, height, width, channels, modalities;  // modalities: channels of all images together
    int64_t pool;                                        // side of the text's pooling; divides height and width
    int64_t threads;
    const float* x;                                      // the features that come in
    const float* images;                                 // (B, H, W, modalities)
    const float *feature, *feature_bias, *feature_gain;  // (3, 3, C, C) as tap, in, out; (C,); (C,)
    const float *modality, *modality_bias, *modality_gain;  // (3, 3, modalities, C); (C,); (C,)
    float epsilon;
    float* features;        // (B, H, W, C): written by each pass, the result in the end
    float* modality_map;    // (B, H, W, C): the normalised modalities, written by the first pass where a mask needs them
    int64_t keep_all;       // whether it needs them everywhere: there will be a mask_map
    double* row_sums;       // (B, H, C): sums of the features over each row, written by the first pass
    const float* gate;      // (B, C)
    const uint8_t* labels;  // (B, H, W) objects, or null
    const float* objects;   // (3, 3, objects + 1, C): what an object in a tap adds; nothing at 0
    int64_t n_objects;
    const float* mask_map;  // (B, H, W, C): the mask's convolution where there are no labels, or null
    float* pooled;          // (B, H / pool, W / pool, C), written by the second pass; null: that adds x, and is the last
    const float* guided;    // the same size, added by the third
    float* means;           // the same size, of the features, written by the first pass; or null
    const float* gates;     // the same size, bilinear between its pixels, in the place of `gate`; or null
};

// Decoder: x (B, H, W, C_in) becomes twice as large by `weight` (C_in, 4C), and is added to skip * out, (B, 2H, 2W, C);
// skip is (C,).
struct UpsampleCall {
    int64_t batch, height, width, in_channels, channels;
    int64_t threads;
    const float *x, *weight, *skip;
    float* out;
};

// x + its depthwise 3x3 convolution, in place, (B, H, W, C); weight (3, 3, C).
struct LocalCall {
    int64_t batch, height, width, channels;
    int64_t threads;
    float* x;
    const float* weight;
};

// The layer's parts with gradients, float32; all widths multiples of 16. Forward reads weights as input by output,
// backward as output by input, both with the norm's gain multiplied in. Gradients of weights are input by output, those
// of the weights with the gain, one set a thread. `rows` are tokens.
struct ProjectCall {
    int64_t rows, channels, columns;
    int64_t threads;
    const float *x, *weight, *weight_back;  // (rows, C); (C, columns); (columns, C)
    float epsilon;
    float* out;               // (rows, columns), forward's
    const float* grad;        // (rows, columns)
    const float* g_residual;  // (rows, C), added to the gradient of x
    float* g_x;               // (rows, C)
    double* g_weight;         // (threads, C, columns)
};

struct FinishCall {
    int64_t rows, channels, mixed, hidden;
    int64_t threads;
    const float *x, *z;  // (rows, C), (rows, mixed)
    const float *mix_out, *receptance, *key, *value, *channel_out;
    const float *mix_out_back, *receptance_back, *key_back, *value_back, *channel_out_back;
    float epsilon;
    float* out;               // (rows, C), forward's
    const float* grad;        // (rows, C)
    float *g_residual, *g_z;  // (rows, C), of x but for its way through z; (rows, mixed)
    double* g_weights;        // (threads, all of mix_out, receptance, key, value, channel_out)
};

// RMSNorm alone.
struct NormCall {
    int64_t rows, channels;
    int64_t threads;
    const float *x, *gain;  // (rows, C), (C,)
    float epsilon;
    float* out;             // (rows, C), forward's
    const float* grad;      // (rows, C)
    float* g_x;             // (rows, C)
    double* g_gain;         // (threads, C)
};
