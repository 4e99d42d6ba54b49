/* What a learned policy sees and what is made of its answer; how a policy is assessed. */
#ifndef FORESHARE_SEE_H
#define FORESHARE_SEE_H
#include "kernel.h"

/* deadlines.py: LOOKS are now and each of STEPS; policies/features.py: columns of what is seen. */
enum { STEPS = 4, LOOKS = STEPS + 1, RATES = STEPS + 1, ACTIONS = 1 + R };
enum { AMOUNTS = 5 * R, LOAD = AMOUNTS, DELAY = LOAD + R, TREND, PRIORITY, FITS, ISOLATED, TARGET, SLACK, DUE };
enum { RATE = DUE + RATES, OVERDUE, HIDDEN, WEIGHT, OVER, SERVED, SHORT, SEEN_RATE, SHORT_RATE, BELOW, STANDBY, LATELY };
enum { KEPT = 22, SWING = LATELY + KEPT, VM_FEATURES = SWING + KEPT, LATELY_TICKS = 20 };
enum { ASKED, NEEDED = R, PRESSED = 2 * R, VMS = 3 * R, MEAN_DELAY, HOST_FEATURES };

/* Deadlines.update() */
typedef struct {
    int64_t at, slots, stride;   /* which entry of the ring is this tick's; how many there are, how far apart */
    const double *per_capacity;  /* (R,) */
    const int64_t *target, *lag; /* (N,), (LOOKS, N) */
    const int64_t *within;       /* (STEPS, N) */
} due_t;
typedef struct {
    double *done, *ring;           /* (N,), (slots, stride) */
    double *overdue, *rates, *rate; /* (N,), (RATES, stride), (N,) */
} due_state_t;
void due(const tables_t *t, const due_t *k, const double *usage, const double *need, const double *backlog,
         due_state_t *s);

/* Encoder.encode() */
typedef struct {
    const double *per_fair, *per_capacity, *per_movable, *count;      /* (R,) each; log of the VMs that are there */
    const double *priority, *weight, *target, *log_target, *isolated; /* (N,) */
    const int64_t *order;                 /* (N,) who comes first when what is left is counted */
    const int64_t *kept;                  /* (KEPT,) the columns that are remembered */
    const float *vm_bounds, *host_bounds; /* low, high, default: (3, features) */
} view_t;
typedef struct {
    const double *ask, *need, *backlog, *delay; /* (N, R), delay (N,) */
    const int64_t *held;                        /* (N, R) */
    const bool *unsure;                         /* (N,) */
    const double *overdue, *rates, *rate;       /* (N,), (RATES, stride), (N,) */
    int64_t stride;
} seen_t;
typedef struct {
    double *last, *hidden; /* (N,) the CPU need of the tick before; for how long a queue has not been seen */
    double *most;          /* (N,) what it needed at most lately, in shares of the host */
    float *lately;         /* (N, 2 KEPT) means and swings */
} remembered_t;
void encode(const tables_t *t, const view_t *v, const seen_t *in, const remembered_t *m, double *room, float *vms,
            float *whole);

/* Corrected.allocate() without the allocation */
void correct(const tables_t *t, double limit, const float *action, const double *ask, const double *need,
             double *favour, double *ask_out, double *need_out);

/* Assessor */
typedef struct {
    const double *usage, *demand_low; /* (N, R) */
    const uint8_t *quality;           /* (N, R) */
    const double *rate, *weight;      /* (N,) */
    const bool *judged;               /* (R,) */
    double least, probe;
} due_demand_t;
void shrink(const tables_t *t, double *given);
double difference(const tables_t *t, const due_demand_t *d, const double *policy, const double *other);

#endif
