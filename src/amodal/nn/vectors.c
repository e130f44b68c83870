/* Vectors of W floats, as wide as the processor's, and how images of float or (HALF) bfloat16 are read and written. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX__)
#define W 8
#else
#define W 4
#endif

typedef float vec __attribute__((vector_size(4 * W)));
typedef vec loose __attribute__((aligned(4))); /* one that lies in memory at any float */
typedef uint16_t half_vec __attribute__((vector_size(2 * W)));
typedef uint32_t bits_vec __attribute__((vector_size(4 * W)));

static inline vec load(const float *at) { vec v; memcpy(&v, at, sizeof v); return v; }
static inline void store(float *at, vec v) { memcpy(at, &v, sizeof v); }

#if HALF
typedef uint16_t value;
static inline float one(const value *at) {
    uint32_t bits = (uint32_t)*at << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}
static inline vec get(const value *at) {
    half_vec h;
    memcpy(&h, at, sizeof h);
    return (vec)(__builtin_convertvector(h, bits_vec) << 16);
}
static inline void put(value *at, vec v) { /* to the nearest, of two to the even one */
    bits_vec bits = (bits_vec)v, odd = (bits >> 16) & 1, nan = (bits_vec)(v != v);
    bits = ((bits + 0x7fff + odd) >> 16 & ~nan) | (nan & 0x7fc0);
    half_vec h = __builtin_convertvector(bits, half_vec);
    memcpy(at, &h, sizeof h);
}
#else
typedef float value;
static inline float one(const value *at) { return *at; }
static inline vec get(const value *at) { return load(at); }
static inline void put(value *at, vec v) { store(at, v); }
#endif
