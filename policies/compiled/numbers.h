/* Names and little functions that every compiled part uses. */
#ifndef FORESHARE_NUMBERS_H
#define FORESHARE_NUMBERS_H

enum { CPU, CACHE, MEMORY, IO, R }; /* policies/host.py: Resource */

/* What is no number loses on the left: the answer is then ``b``. */
static inline double larger(double a, double b) { return a > b ? a : b; }
static inline double smaller(double a, double b) { return a < b ? a : b; }

#endif
