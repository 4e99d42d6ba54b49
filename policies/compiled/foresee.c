/* The first half of a tick in one call, over arrays that are checked once: policies/foresight.py. The steps are those of
 * the other files, in the order of the Python that calls them one by one.
 */
#include <stdlib.h>
#include <string.h>

#include "rooms.h"
#include "see.h"

typedef struct {
    call_t c;
    trust_t trust;
    trust_state_t doubts;
    bool *lies, *aged;
    const int64_t *patience, *held;
    estimator_t estimator;
    const follow_knobs_t *knobs;
    follow_t follow;
    double *mean, *upper, *clearing, *usage, *backlog, *delay;
    bool *unsure;
    double *ask, *need, *q_usage, *q_backlog, *q_delay;
    const uint8_t *in_doubt;
    bool any_due;
    due_t due;
    due_state_t due_state;
    reading_t reading;
    const bool *present, *fixed, *pinned;
} foresee_t;

enum { TRUST = 11, FOLLOW = 6, FORECAST = 7, REQUEST = 5, DUE_ARRAYS = 9, READING = 6 };
enum { FORESEE = 1 + TRUST + ESTIMATOR + FOLLOW + FORECAST + REQUEST + 4 + DUE_ARRAYS + READING };
static const char FORESEE_OF[] = "foresee";

static foresee_t *open_foresee(memo_t *m, PyObject *const *args) {
    PyObject *all[MOST_ARGS];
    foresee_t *f = spread(args[0], args + 1, READING, FORESEE, all) ? open_room(sizeof *f, all[0]) : NULL;
    if (!f) return NULL;
    buffers_t *b = &f->c.buffers;
    Py_ssize_t n = f->c.n, nr = f->c.nr;
    PyObject *const *a = all + 1;
#define IN(kind, items) take(b, *a++, kind, items, false)
#define OUT(kind, items) take(b, *a++, kind, items, true)
    f->trust.top = IN('d', nr), f->trust.most = IN('d', (Py_ssize_t)f->c.tables.pools);
    f->patience = IN('l', 4), f->trust.movable = IN('?', R);
    f->doubts.last = OUT('d', nr), f->doubts.same = OUT('l', nr), f->doubts.bad = OUT('l', nr);
    f->doubts.quiet = OUT('l', nr);
    bool *flags = OUT('?', 3 * nr);
    f->lies = OUT('?', nr), f->aged = OUT('?', n);
    take_estimator(&f->c, a, &f->estimator), a += ESTIMATOR;
    f->knobs = IN('d', sizeof(follow_knobs_t) / 8);
    f->follow = (follow_t){.level = OUT('d', nr)};
    f->follow.error = OUT('d', nr), f->follow.before = OUT('d', nr), f->follow.ways = OUT('d', n);
    f->follow.fresh = OUT('?', n);
    f->mean = OUT('d', nr), f->upper = OUT('d', nr), f->clearing = OUT('d', nr), f->usage = OUT('d', nr);
    f->backlog = OUT('d', nr), f->delay = OUT('d', n), f->unsure = OUT('?', n);
    f->ask = OUT('d', nr), f->need = OUT('d', nr), f->q_usage = OUT('d', nr), f->q_backlog = OUT('d', nr);
    f->q_delay = OUT('d', n);
    f->in_doubt = IN('B', R), f->held = IN('l', nr), f->fixed = IN('?', n), f->pinned = IN('?', n);
    f->any_due = *a != Py_None;
    if (f->any_due) {
        f->due.stride = n;
        f->due.per_capacity = IN('d', R), f->due.target = IN('l', n), f->due.lag = IN('l', LOOKS * n);
        f->due.within = IN('l', STEPS * n);
        f->due_state.done = OUT('d', n), f->due_state.ring = OUT('d', -1);
        f->due.slots = !b->failed && n ? b->view[b->count - 1].len / 8 / n : INT64_MAX; /* nobody, no end */
        f->due_state.overdue = OUT('d', n), f->due_state.rates = OUT('d', RATES * n), f->due_state.rate = OUT('d', n);
        for (Py_ssize_t i = 0; !b->failed && i < LOOKS * n; i++)
            if (f->due.lag[i] < 0 || f->due.lag[i] >= f->due.slots) out_of_shape(&f->c);
    } else {
        a += DUE_ARRAYS;
    }
    f->reading.usage = IN('d', nr), f->reading.demand_low = IN('d', nr), f->reading.limit = IN('d', nr);
    f->reading.wait_ns = IN('d', n), f->reading.quality = IN('B', nr), f->present = IN('?', n);
#undef IN
#undef OUT
    if (!b->failed) {
        trust_t *k = &f->trust;
        k->frozen_ticks = f->patience[0], k->lost_ticks = f->patience[1], k->doubt_ticks = f->patience[2];
        k->waking_ticks = f->patience[3];
        f->doubts.known = flags, f->doubts.liar = flags + nr, f->doubts.good = flags + 2 * nr;
    }
    return close_room(m, FORESEE_OF, args, 1 + READING, f);
}

/* From a checked reading to requests and deadlines. */
static void go_on(foresee_t *f, double wait_scale, double headroom) {
    const tables_t *t = &f->c.tables;
    size_t all = sizeof(double) * (size_t)f->c.nr, each = sizeof(double) * (size_t)f->c.n;
    estimate_options_t options = *f->estimator.options;
    options.wait_scale = wait_scale;
    estimate_t *e = &f->estimator.e;
    estimate(t, f->estimator.scale, &options, &f->reading, e);
    memcpy(f->usage, e->usage, all), memcpy(f->q_usage, e->usage, all);
    memcpy(f->backlog, e->backlog, all), memcpy(f->q_backlog, e->backlog, all);
    memcpy(f->delay, e->delay_ticks, each), memcpy(f->q_delay, e->delay_ticks, each);
    for (Py_ssize_t i = 0; i < f->c.n; i++) f->unsure[i] = !e->sure[i];
    follow(t, f->knobs, e->demand, e->backlog, &f->follow, f->mean, f->upper, f->clearing);
    request(t, headroom, f->mean, f->upper, f->clearing, f->reading.quality, f->in_doubt, f->unsure, f->present, f->ask,
            f->need);
    keep_back(t, &f->trust, f->present, f->reading.usage, f->reading.limit, f->reading.quality, &f->doubts, f->aged,
              f->ask, f->need);
    for (Py_ssize_t i = 0; i < f->c.n; i++) /* of such a partition nothing is to lend while it is idle */
        for (Py_ssize_t at = i * R; (f->fixed[i] || f->pinned[i]) && at < (i + 1) * R; at++)
            f->ask[at] = (double)t->reservation[at];
    if (f->any_due) due(t, &f->due, f->q_usage, f->need, f->q_backlog, &f->due_state);
}

/* forecast_tick() of one host: foresee(memo, arrays of foresight.py, those of a reading ..., looked, moved, dt_ns, wait
 * per ns, near limit, headroom, slot of the ring). ``looked``: the reading has been checked. Otherwise that comes first.
 * Returns how many entries are bad; below 0: so many, and some of them lie, so that nothing else was done. */
PyObject *py_foresee(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (!counted(count, 2 + READING + 7)) return NULL;
    memo_t *m = memo_of(args[0]);
    PyObject *const *arrays = args + 1, *const *rest = arrays + 1 + READING;
    foresee_t *f = m ? recall(m, FORESEE_OF, arrays, 1 + READING) : NULL;
    if (m && !f) f = open_foresee(m, arrays);
    if (!f) return NULL;
    bool looked = rest[0] == Py_True;
    int64_t found = 0;
    double dt_ns, per_ns, headroom;
    if (!number(rest[2], &dt_ns) || !number(rest[3], &per_ns) || !number(rest[4], &f->trust.near_limit) ||
        !number(rest[5], &headroom))
        return NULL;
    f->due.at = PyLong_AsLongLong(rest[6]);
    if (f->due.at == -1 && PyErr_Occurred()) return NULL;
    if (f->any_due && (f->due.at < 0 || f->due.at >= f->due.slots)) {
        PyErr_SetString(PyExc_ValueError, "the ring has no such slot");
        return NULL;
    }
    if (!looked) {
        trust_t *k = &f->trust;
        k->moved = rest[1] == Py_True, k->passed = dt_ns > 0.0, k->any_stale = false;
        for (Py_ssize_t at = 0; at < f->c.nr; at++) k->any_stale |= (f->reading.quality[at] & 2) != 0;
        int64_t bad = check(&f->c.tables, k, f->reading.usage, f->reading.quality, f->held, &f->doubts, f->lies);
        bool any = false;
        for (Py_ssize_t at = 0; bad && at < f->c.nr; at++) any |= f->lies[at];
        if (any) return PyLong_FromLongLong(-bad);
        found = bad;
    }
    go_on(f, dt_ns > 0.0 ? per_ns / dt_ns : 0.0, headroom);
    return PyLong_FromLongLong(found);
}
