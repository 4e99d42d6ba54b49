/* Names and little functions that every compiled part uses. */
#ifndef FORESHARE_NUMBERS_H
#define FORESHARE_NUMBERS_H

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("avx2", "default"))) /* the loader picks what the CPU has */
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

enum { CPU, CACHE, MEMORY, IO, R }; /* policies/host.py: Resource */

/* What is no number loses on the left: the answer is then ``b``. */
static inline double larger(double a, double b) { return a > b ? a : b; }
static inline double smaller(double a, double b) { return a < b ? a : b; }

#endif
