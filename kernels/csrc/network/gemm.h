// Small matrix products on tiles that stay in the first caches: out (rows x n) [+]= a (rows x k) w (k x n), where TURNED
// with a stored as (k x rows). And RMSNorm.
#pragma once

#include <math.h>

#include "../cpu/simd.h"

namespace {

// 1 / sqrt(mean(x^2) + epsilon) of `width` channels, a multiple of LANES.
INLINE Vec norm_of(const float* x, int64_t width, float epsilon) {
    Vec squares = {};
    for (int64_t c = 0; c < width; c += LANES) {
        Vec part = load(x + c);
        squares += part * part;
    }
    return splat(1.0f / sqrtf(total(squares) / float(width) + epsilon));
}

#if LANES == 16
constexpr int SUMS = 24, BLOCK_VECTORS = 3;  // and 3 weights and a value, of 32 registers
#else
constexpr int SUMS = 8, BLOCK_VECTORS = 2;  // of 16 registers
#endif

template <int ROWS, int VECTORS, bool ADD, bool TURNED>
INLINE void product_block(const float* a, int64_t a_stride, const float* w, int64_t w_stride, int k, float* out,
                          int64_t out_stride) {
    Vec sum[ROWS][VECTORS] = {};
    for (int i = 0; i < k; i++) {
        Vec weight[VECTORS];
        for (int v = 0; v < VECTORS; v++) weight[v] = load(w + i * w_stride + v * LANES);
        for (int r = 0; r < ROWS; r++) {
            Vec value = splat(TURNED ? a[i * a_stride + r] : a[r * a_stride + i]);
            for (int v = 0; v < VECTORS; v++) sum[r][v] += value * weight[v];
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) {
            float* at = out + r * out_stride + v * LANES;
            store(at, ADD ? load(at) + sum[r][v] : sum[r][v]);
        }
}

template <int VECTORS, bool ADD, bool TURNED>
INLINE void product_columns(const float* a, int64_t a_stride, int rows, const float* w, int64_t w_stride, int k, float* out,
                            int64_t out_stride) {
    constexpr int BLOCK = SUMS / VECTORS < 12 ? SUMS / VECTORS : 12;
    const int64_t row = TURNED ? 1 : a_stride;
    int r = 0;
    for (; r + BLOCK <= rows; r += BLOCK)
        product_block<BLOCK, VECTORS, ADD, TURNED>(a + r * row, a_stride, w, w_stride, k, out + r * out_stride, out_stride);
    for (; r + 4 <= rows; r += 4)
        product_block<4, VECTORS, ADD, TURNED>(a + r * row, a_stride, w, w_stride, k, out + r * out_stride, out_stride);
    for (; r < rows; r++)
        product_block<1, VECTORS, ADD, TURNED>(a + r * row, a_stride, w, w_stride, k, out + r * out_stride, out_stride);
}

// `n` columns, a multiple of LANES; strides in floats.
template <bool ADD = false, bool TURNED = false>
inline void product(const float* a, int64_t a_stride, int rows, const float* w, int64_t w_stride, int n, int k,
                    float* out, int64_t out_stride) {
    int column = 0;
    // Four vectors are two and two: a single one waits for its values.
    for (; column + BLOCK_VECTORS * LANES <= n && (BLOCK_VECTORS == 2 || n - column != 4 * LANES);
         column += BLOCK_VECTORS * LANES)
        product_columns<BLOCK_VECTORS, ADD, TURNED>(a, a_stride, rows, w + column, w_stride, k, out + column, out_stride);
    for (; column + 2 * LANES <= n; column += 2 * LANES)
        product_columns<2, ADD, TURNED>(a, a_stride, rows, w + column, w_stride, k, out + column, out_stride);
    for (; column < n; column += LANES)
        product_columns<1, ADD, TURNED>(a, a_stride, rows, w + column, w_stride, k, out + column, out_stride);
}

}  // namespace
