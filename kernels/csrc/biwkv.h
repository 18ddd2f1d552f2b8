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
    const float* mix_in;        // (2C, 6C): receptance, keys, values
    const double *lam, *u;      // (2C,)
    const float* mix_out;       // (4C, C): for the scans at a pixel, then for those at its mirror image
    const float* receptance;    // (C, C)
    const float* key;           // (C, hidden)
    const float* value;         // (hidden, C)
    const float* channel_out;   // (C, C)
    float epsilon;              // of both norms
    float* states;              // (B, chunks, 7, 2C), see rwkvfusion_layer_chunks
};
