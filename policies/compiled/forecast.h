/* What forecast.c and its face to Python share. Series are side by side: an array (A, S) is A rows of S series. */
#ifndef FORESHARE_FORECAST_H
#define FORESHARE_FORECAST_H

#include <stdbool.h>
#include <stdint.h>

#include "dense.h"

/* policies/forecast: history.py, climate.py, features.py, situations.py */
enum { HORIZONS = 3, LEVELS = 3, WINDOW = 256, WIDTH = 5, SLOW_TICKS = 500, KINDS = 4 };
enum { TICKS, MEAN, PEAK, TOP, SINCE, BETWEEN, SPREAD, HEIGHT, QUANTILES,
       ON = QUANTILES + 4, OFF, LATEST_ON, LATEST_OFF, CLIMATE };
enum { LAGS = 20, BLOCKS = 8, PLAIN = LAGS + BLOCKS, ONE = PLAIN + 2, AGE, KIND, ROOTS = KIND + KINDS, RHYTHM = ROOTS + 7,
       SCALE = RHYTHM + 7, RUNS, PARTNER = RUNS + 4, SHOWN = 4, FEATURES = PARTNER + 4 + SHOWN };
enum { LEVEL_EDGES = 5, TREND_EDGES = 3, IDLE_EDGES = 9, BUSY_EDGES = 5, RUN_EDGES = 4, SHORT_EDGES = 3 };
enum { TABLES = 4, IDLE = (LEVEL_EDGES + 1) * (TREND_EDGES + 1), BUSY = IDLE + IDLE_EDGES + 1,
       RUN = BUSY + (BUSY_EDGES + 1) * (LEVEL_EDGES + 1), CELLS = RUN + 2 * (RUN_EDGES + 1) * (SHORT_EDGES + 1), REMEMBERED = 11 };
/* A cell is two cache lines: quantiles and visits of each horizon, then mean excesses. */
enum { ENTRY = LEVELS + 1, VISITS = LEVELS, EXCESS = (HORIZONS + 1) * ENTRY, CELL = 2 * EXCESS };
enum { MOST_MEMBERS = 6, MOST_HIDDEN = 128 };
enum { STRIDE = 2, LSTM_INPUTS = 2 * STRIDE + 2 }; /* lstm.py */

typedef struct {
    int64_t series, size;           /* S, and how long rows are */
    int newest, before;             /* rows of the ring */
    bool gap, whole;
    float *y, *w;                   /* (2 WINDOW, S) */
    double *running;                /* (3, 2 WINDOW, S) */
    int64_t *seen, *clean, *loose;  /* (S,) */
    float *age, *scale, *five;      /* (S,) */
    double *slow;                   /* (S,) */
    float *climate;                 /* (CLIMATE, S) */
} history_t;

/* Returns whether nothing is missing and nobody is new. */
bool push(history_t *h, const double *demand, const double *waiting, const bool *censored);

typedef struct {
    float eta[LEVELS], share, offset_rate[LEVELS], factor_rate[LEVELS], error_gain, prior[MOST_MEMBERS][LEVELS];
} mixture_options_t;

typedef struct {
    int members;
    int64_t series, size, count;
    int hidden[2];                  /* of the network; 0: there is none */
    const float *layer[3];          /* (hidden, FEATURES), (hidden, hidden + 1), (HORIZONS * LEVELS, hidden + 1) */
    float *weights;                 /* (M, K, Q, S) */
    float *offset;                  /* (K, Q, S) */
    float *factor, *loss;           /* (K, Q, S) */
    float *error;                   /* (K, S) */
    float *past[HORIZONS];          /* (slots, M + 1, Q, S) */
    int slots[HORIZONS];
    float *cells;                   /* (S to the next LANES, CELLS, CELL) */
    float *now;                     /* (2, S) */
    float *was;                     /* (REMEMBERED, 1 + TABLES, S) */
    float *stepped;                 /* (S,) */
    float *out;                     /* (K, Q, S) where the latest answer went, or NULL */
} mixture_t;

/* situations.c, for ``n`` series from ``s`` on: Situations.look(), .answer() into (TABLES * K * Q, BLOCK), .learn() */
void look(const history_t *h, mixture_t *m, int64_t s, int n);
void fetch_cells(const mixture_t *m, int64_t s, int n);
void recall_cells(const history_t *h, mixture_t *m, int64_t s, int n, const row_t *recent, row_t *each);
void learn_cells(const history_t *h, mixture_t *m, int k, int64_t s, int n);

void mix(const history_t *h, mixture_t *m, const mixture_options_t *o, float *out);

/* FeatureMaker.make() into (FEATURES, S). */
void show(const history_t *h, float *out);

/* expect.c: reads what the next push() and mix() will, so that it is in the caches then. */
void expect(const history_t *h, const mixture_t *m);

typedef struct {
    int64_t size;
    int hidden;
    const float *gates, *head;      /* (4 hidden, LSTM_INPUTS + hidden + 1), (HORIZONS * LEVELS, hidden + 1) */
    float *h, *c;                   /* (hidden, S) */
} lstm_t;

/* lstm.c */
void lstm(const history_t *h, lstm_t *l, float *out);

#endif
