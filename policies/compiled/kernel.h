/* What the kernel's parts share. Arrays are those of policies/host.py: N VMs, R = 4 resources, rows of VMs; a batch of
 * hosts is one after the other. The numpy forms are the reference; each function here names the one that it follows. */
#ifndef FORESHARE_KERNEL_H
#define FORESHARE_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "numbers.h"

/* VMs that draw one resource from the same pool. */
typedef struct {
    int64_t resource, capacity, count;
    const int64_t *rows;
} pool_t;

/* A host's bounds, as policies/kernel.py packs them: pointers into its array. */
typedef struct {
    int64_t n, pools, ways, min_ways, max_classes;
    const int64_t *floor, *reservation, *cap, *granule; /* (N, R) */
    const int64_t *rank;                                /* (N,) */
    const int64_t *by_rank;                             /* (N,) rows in the order of their rank */
    const int64_t *importance;                          /* (N,) who loses his ways first */
    const pool_t *pool;                                 /* (pools,) */
    const int64_t *pool_of;                             /* (N, R) */
} tables_t;

/* Room for one host's intermediate results; who calls owns it. */
typedef struct {
    int64_t *low, *fitted;               /* (N, R) */
    int64_t *order, *merge;              /* (N,) */
    double *extra, *first;               /* (N, R) */
    double *x, *key, *rest;              /* (N,) */
    double *room, *want, *left, *price;  /* (pools,) */
    bool *is_short;                      /* (pools,) */
} scratch_t;

typedef struct {
    double margin_share, horizon_ticks, price_power, cost_power, stick, thrift, thrift_ticks;
} triage_knobs_t;

/* share.c */
void sort_rows(const double *key, int64_t *rows, int64_t count, int64_t *merge);
void entitle(const tables_t *t, const double *ask, int64_t *low);
void apportion(const tables_t *t, const pool_t *p, const double *x, int64_t capacity, int64_t *out, scratch_t *s);
void water_fill(const tables_t *t, const double *ask, int64_t *out, scratch_t *s);
void room_left(const tables_t *t, const double *ask, const int64_t *order, const double *per_capacity, double *out);
void priority_sort(const tables_t *t, const double *ask, const int64_t *order, bool *refused, int64_t *out,
                   scratch_t *s);
void triage(const tables_t *t, const double *ask, const double *need, const double *backlog, const double *weight,
            const triage_knobs_t *k, bool *admitted, int64_t *out, scratch_t *s);

/* guard.c */
typedef struct {
    const int64_t *units; /* (N, R) what triage would give, or NULL */
    double share;         /* of that everybody gets at least so much */
    int64_t raised;       /* entries of proposals that lie below that */
} anchor_t;
int64_t admit(const tables_t *t, const int64_t *wanted, const double *ask, const int64_t *previous, const bool *frozen,
              bool hysteresis, anchor_t *anchor, int64_t *out, scratch_t *s);

/* estimate.c */
typedef struct {
    double probe, gain, hold, usual_gain, revert, seen_share, noise_share, most_ticks; /* EstimateOptions, in order */
    double idle_share, over_limit, still_ticks, wait_scale;
    double most[R];
} estimate_options_t;
typedef struct {
    const double *usage, *demand_low, *limit, *wait_ns; /* (N, R), wait (N,) */
    const uint8_t *quality;                             /* (N, R) */
} reading_t;
typedef struct {
    double *usage, *demand, *backlog;              /* (N, R) */
    double *delay_ticks, *work, *level, *usual;    /* (N,) */
    bool *sure, *known;                            /* (N,) */
    int64_t *still;                                /* (N, R) */
} estimate_t;
typedef struct {
    const double *scale;               /* (N, R) */
    const estimate_options_t *options;
    estimate_t e;
} estimator_t;
void estimate(const tables_t *t, const double *scale, const estimate_options_t *o, const reading_t *in, estimate_t *e);

typedef struct {
    double rise, fall, error_gain, margin, trend, clear_ticks, clear_most, cache_gain, cache_share, widen;
} follow_knobs_t;
typedef struct {
    double *level, *error, *before; /* (N, R) */
    double *ways;                   /* (N,) */
    bool *fresh;                    /* (N,) */
} follow_t;
void follow(const tables_t *t, const follow_knobs_t *k, const double *demand, const double *backlog, follow_t *f,
            double *mean, double *upper, double *clearing);

/* network.c */
typedef struct {
    int64_t f, g, e, c, d, a; /* widths, as policies/learned/weights.py calls them */
    const float *weights;     /* as policies/learned/network.py packs them */
} network_t;
int64_t network_floats(const network_t *m);            /* in weights */
int64_t network_room(const network_t *m, int64_t n);   /* floats to work in */
void network(const network_t *m, int64_t n, const float *vms, const bool *there, const float *host, float *room,
             float *out);

/* reading.c */
typedef struct {
    int64_t frozen_ticks, lost_ticks, doubt_ticks, waking_ticks;
    double near_limit;
    const bool *movable;   /* (R,) */
    bool moved, any_stale; /* another time between the samples; a value anywhere that is marked as stale */
    bool passed;           /* time has passed since the sample before */
    const double *top;     /* (N, R) */
    const double *most;    /* (pools,) */
} trust_t;
typedef struct {
    double *last;            /* (N, R), and so are the others */
    int64_t *same, *bad, *quiet;
    bool *known, *liar, *good;
} trust_state_t;
int64_t check(const tables_t *t, const trust_t *k, const double *usage, const uint8_t *quality, const int64_t *held,
              trust_state_t *s, bool *lies);
void keep_back(const tables_t *t, const trust_t *k, const bool *present, const double *usage, const double *limit,
             const uint8_t *quality, const trust_state_t *s, bool *aged, double *ask, double *need);
void request(const tables_t *t, double headroom, const double *mean, const double *upper, const double *clearing,
             const uint8_t *quality, const uint8_t *in_doubt, const bool *unsure, const bool *present, double *ask,
             double *need);
void stand_back(const tables_t *t, const double *weight, const double *over, double thrift, double *out);
void note_over(const tables_t *t, const int64_t *units, const double *per_share, double ticks, double *over);

/* place.c */
typedef struct {
    int64_t n, units, cores, cpus, zones, per_cpu, per_core;
    const int64_t *line_cpu, *line_core, *line_zone; /* (cpus,) along the line */
    const int64_t *core_zone, *whole;                /* (cores,) */
    const int64_t *apart, *zone, *by_rank;           /* (N,) */
} layout_t;
typedef struct {
    int64_t *have, *want, *change, *evicted, *count;   /* (N,) */
    double *middle;                                    /* (N,) */
    double *used;                                      /* (cores,) */
    bool *freed, *touched;                             /* (cores,), (N,) */
    int64_t *order, *merge;                            /* the larger of both */
} place_scratch_t;
typedef struct {
    double *key;
    int64_t *order, *merge, *right, *at, *wanted; /* (N,) */
} ways_scratch_t;
bool place(const layout_t *l, const int64_t *units, int64_t *owner, int64_t *core_owner, int64_t *held, bool *cpus,
           place_scratch_t *s);
void lay_out(int64_t n, int64_t ways, const int64_t *order, const bool *first, const int64_t *want, int64_t *start,
             const int64_t *had, ways_scratch_t *s);

#endif
