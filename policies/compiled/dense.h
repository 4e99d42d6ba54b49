/* Blocks of series side by side, and a layer of a network over them. */
#ifndef FORESHARE_DENSE_H
#define FORESHARE_DENSE_H

#include <stdint.h>

#include "numbers.h"

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FUSED __attribute__((target_clones("arch=x86-64-v3", "default"), optimize("fp-contract=fast")))
#else
#define FUSED CLONES
#endif

enum { BLOCK = 64, LANES = 8 };
typedef float row_t[BLOCK];
typedef float lanes_t __attribute__((vector_size(4 * LANES)));

INLINE float above(float a, float b) { return a > b ? a : b; }
INLINE float below(float a, float b) { return a < b ? a : b; }

/* ``count`` rows of ``out`` (rows, BLOCK) = w (rows, cols) times x (cols, BLOCK). Three rows of four vectors are sums
 * enough for two multipliers that take four cycles each, and few enough for sixteen registers. */
#define DENSE_ROWS(count)                                                                            \
    for (int j = 0; j < BLOCK / LANES; j += 4) {                                                     \
        lanes_t sum[count][4] = {{{0.0F}}};                                                          \
        for (int f = 0; f < cols; f++)                                                               \
            for (int i = 0; i < count; i++) {                                                        \
                float weight = w[(o + i) * cols + f];                                                \
                for (int v = 0; v < 4; v++) sum[i][v] += weight * x[f * (BLOCK / LANES) + j + v];    \
            }                                                                                        \
        for (int i = 0; i < count; i++)                                                              \
            for (int v = 0; v < 4; v++) out[(o + i) * (BLOCK / LANES) + j + v] = sum[i][v];          \
    }

FUSED static void dense(const float *w, int rows, int cols, const lanes_t *x, lanes_t *out) {
    int o = 0;
    for (; o + 3 <= rows; o += 3) DENSE_ROWS(3)
    for (; o + 2 <= rows; o += 2) DENSE_ROWS(2)
    for (; o < rows; o++) DENSE_ROWS(1)
}

#endif
