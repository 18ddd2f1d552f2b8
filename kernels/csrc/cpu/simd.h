// Vectors of LANES floats in GCC's and clang's vector extension: one source for every instruction set.
//
// The build compiles it once per set and links the copies into one library. All of it therefore stands in nameless
// namespaces, and nothing of the standard library's templates is used: the linker keeps one copy of those, which may
// be the one with instructions that the machine lacks.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // immintrin.h has "undefined" vectors
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wpsabi"                // vectors never leave a translation unit
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE inline __attribute__((always_inline))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

namespace {

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES)));
typedef float LooseVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

constexpr float LOG2E = 1.44269504f;

struct bf16 {
    uint16_t bits;
};

INLINE Vec splat(float x) { return x - Vec{}; }
INLINE Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
INLINE void store(float* p, Vec x) { *reinterpret_cast<LooseVec*>(p) = x; }

INLINE Vec load(const bf16* p) {
    typedef uint16_t Half __attribute__((vector_size(2 * LANES)));
    Half half;
    std::memcpy(&half, p, sizeof half);
    return (Vec)(__builtin_convertvector(half, Bits) << 16);
}

// Rounds to nearest even; a NaN stays one.
INLINE void store(bf16* p, Vec x) {
    typedef uint16_t Half __attribute__((vector_size(2 * LANES)));
    Bits bits = (Bits)x;
    Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
    rounded = (x == x) ? rounded : (bits | 0x400000);
    Half half = __builtin_convertvector((rounded >> 16) & 0xffff, Half);
    std::memcpy(p, &half, sizeof half);
}

// The first `lanes` values at p; the others are `rest`.
template <class T>
INLINE Vec load_part(const T* p, int lanes, T rest) {
    T part[LANES];
    for (int i = 0; i < LANES; i++) part[i] = i < lanes ? p[i] : rest;
    return load(part);
}

template <class T>
INLINE void store_part(T* p, int lanes, Vec x) {
    T part[LANES];
    store(part, x);
    for (int i = 0; i < lanes; i++) p[i] = part[i];
}

// Past the caches: for results larger than them, saves reading the line that is written.
INLINE void stream(float* p, Vec x) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)x);
#elif defined(__AVX2__)
    _mm256_stream_ps(p, (__m256)x);
#elif defined(__SSE2__)
    _mm_stream_ps(p, (__m128)x);
#else
    store(p, x);
#endif
}

// Streamed stores are seen by other threads only after this.
INLINE void stream_end() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

INLINE Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

INLINE Vec minimum(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

INLINE bool any(Bits mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)mask) != 0;
#else
    for (int i = 0; i < LANES; i++)
        if (mask[i]) return true;
    return false;
#endif
}

INLINE float total(Vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float pairs[LANES / 2], sum = 0;
    for (int i = 0; i < LANES / 2; i++) pairs[i] = x[i] + x[i + LANES / 2];
    for (int i = 0; i < LANES / 2; i++) sum += pairs[i];
    return sum;
#endif
}

INLINE Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
    Vec r = (Vec)_mm512_rcp14_ps((__m512)x);  // 14 bits, doubled by one step of Newton
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

// Adding this rounds a float below 2^22 to a whole number, which then sits in its lowest bits.
constexpr float ROUND = 12582912.0f;

// 2^f for |f| <= 1/2, relative error 2e-9 before rounding; exactly 1 at 0.
INLINE Vec exp2_fraction(Vec f) {
    Vec p = f * 0.0001534581242594868f + 0.0013399930903688073f;
    p = p * f + 0.009618489071726799f;
    p = p * f + 0.05550328642129898f;
    p = p * f + 0.24022646248340607f;
    p = p * f + 0.6931471824645996f;
    return p * f + 1.0f;
}

// 2^x for x <= 127, relative error 1e-7; exactly 0 up to 2^-126; NaN for NaN.
INLINE Vec exp2v(Vec x) {
#if defined(__AVX512F__)
    Vec f = (Vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLE_UQ);
    return (Vec)_mm512_maskz_scalef_ps(normal, (__m512)exp2_fraction(f), (__m512)(x - f));
#else
    Vec shifted = x + ROUND;
    Vec p = exp2_fraction(x - (shifted - ROUND));
    Bits value = (Bits)p + ((Bits)shifted << 23);
    return (Vec)(value & ~(Bits)(x <= -126.0f));
#endif
}

// 2^n for whole n; 0 below 2^-126, 2^127 above.
INLINE Vec power_of_two(Vec n) {
    Vec shifted = minimum(maximum(n, splat(-127.0f)), splat(127.0f)) + ROUND;
    return (Vec)(((Bits)shifted + 127) << 23);
}

// x86's minimum is its second argument where one is NaN.
INLINE Vec sigmoid(Vec x) { return reciprocal(1.0f + exp2v(minimum(splat(126.0f), x * -LOG2E))); }

// G vectors side by side, worked on in step: whole cache lines of a token, and work while one vector's result is waited
// for.
template <int G>
struct Pack {
    static constexpr int WIDTH = G * LANES;
    Vec part[G];
};

#define EACH(expression)                                     \
    {                                                        \
        Pack<G> result;                                      \
        for (int j = 0; j < G; j++) result.part[j] = expression; \
        return result;                                       \
    }

// clang-format off
template <int G> INLINE Pack<G> operator+(Pack<G> a, Pack<G> b) EACH(a.part[j] + b.part[j])
template <int G> INLINE Pack<G> operator-(Pack<G> a, Pack<G> b) EACH(a.part[j] - b.part[j])
template <int G> INLINE Pack<G> operator*(Pack<G> a, Pack<G> b) EACH(a.part[j] * b.part[j])
template <int G> INLINE Pack<G> operator*(Pack<G> a, float b) EACH(a.part[j] * b)
template <int G> INLINE Pack<G> operator-(Pack<G> a) EACH(-a.part[j])
template <int G> INLINE Pack<G>& operator+=(Pack<G>& a, Pack<G> b) { return a = a + b; }
template <int G> INLINE Pack<G>& operator*=(Pack<G>& a, Pack<G> b) { return a = a * b; }
template <int G> INLINE Pack<G> maximum(Pack<G> a, Pack<G> b) EACH(maximum(a.part[j], b.part[j]))
template <int G> INLINE Pack<G> at_least(Pack<G> a, float b) EACH(maximum(splat(b), a.part[j]))
template <int G> INLINE Pack<G> exp2v(Pack<G> a) EACH(exp2v(a.part[j]))
template <int G> INLINE Pack<G> power_of_two(Pack<G> a) EACH(power_of_two(a.part[j]))
template <int G> INLINE Pack<G> reciprocal(Pack<G> a) EACH(reciprocal(a.part[j]))
template <int G> INLINE Pack<G> sigmoid(Pack<G> a) EACH(sigmoid(a.part[j]))
template <int G> INLINE Pack<G> where_positive(Pack<G> a, Pack<G> b) EACH((Vec)((Bits)b.part[j] & (Bits)(a.part[j] > 0.0f)))
// clang-format on

// WIDTH values at p, of which `count` exist; the rest is zero. Only single vectors may be in part.
template <int G, class T>
INLINE Pack<G> get(const T* p, int count = Pack<G>::WIDTH) {
    if (G == 1 && count < LANES) return {{load_part(p, count, T{})}};
    Pack<G> result;
    for (int j = 0; j < G; j++) result.part[j] = load(p + j * LANES);
    return result;
}

template <int G, class T>
INLINE void put(T* p, Pack<G> x, int count = Pack<G>::WIDTH) {
    if (G == 1 && count < LANES) return store_part(p, count, x.part[0]);
    for (int j = 0; j < G; j++) store(p + j * LANES, x.part[j]);
}

template <int G>
INLINE void stream(float* p, Pack<G> x) {
    for (int j = 0; j < G; j++) stream(p + j * LANES, x.part[j]);
}

template <class T>
INLINE T smaller(T a, T b) { return b < a ? b : a; }

template <class T>
INLINE T larger(T a, T b) { return a < b ? b : a; }

// Zeroed memory on whole cache lines.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t size) : memory_(std::calloc(size + 64 / sizeof(T), sizeof(T))) {
        if (!memory_) std::abort();
        data_ = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_) + 63) / 64 * 64);
    }
    ~Buffer() { std::free(memory_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }

  private:
    void* memory_;
    T* data_;
};

}  // namespace
