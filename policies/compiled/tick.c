/* A tick's steps in one call each, over arrays that are checked once (memo.h): what a learned policy does with a tick,
 * triage, and what is concluded from either; foresee.c has the first half. The steps are those of the other files, in the
 * order of the Python that calls them one by one.
 */
#include <stdlib.h>
#include <string.h>

#include "rooms.h"
#include "see.h"

static const char CONSULT_OF[] = "consult", SERVE_OF[] = "serve", CONCLUDE_OF[] = "conclude";

PyObject *py_memo(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    return counted(count, 0) ? new_memo() : NULL;
}

/* touch(memo, ...) */
PyObject *py_touch(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        memo_t *m = PyCapsule_GetPointer(args[i], MEMO);
        if (!m) return NULL;
        touch(m);
    }
    return none();
}

typedef struct {
    call_t c;
    view_t view;
    seen_t in;
    remembered_t remembered;
    network_t network;
    const bool *there;
    const double *standing, *per_share;
    const triage_knobs_t *knobs;
    double *over;
    bool *admitted;
    float *vms, *whole, *action, *room;                  /* in ``memory``, as are the following */
    double *favour, *weight, *ask, *need;
    void *memory;
    size_t bytes;
} consult_t;

enum { CONSULT = 26 };

static void drop_consult(void *room) {
    free(((consult_t *)room)->memory);
    drop(room);
}

static bool find_room(consult_t *k) {
    size_t n = (size_t)k->c.n, nr = (size_t)k->c.nr, room = (size_t)network_room(&k->network, k->c.n) + 1;
    size_t doubles = 2 * n + 2 * nr, floats = n * VM_FEATURES + HOST_FEATURES + n * ACTIONS + room;
    k->bytes = 8 * doubles + 4 * floats;
    double *at = k->memory = malloc(k->bytes);
    if (!at) return PyErr_NoMemory(), false;
    k->favour = at, k->weight = at + n, k->ask = at + 2 * n, k->need = at + 2 * n + nr;
    k->vms = (float *)(at + doubles), k->whole = k->vms + n * VM_FEATURES, k->action = k->whole + HOST_FEATURES;
    k->room = k->action + n * ACTIONS;
    return true;
}

static consult_t *open_consult(memo_t *m, PyObject *const *args) {
    PyObject *all[MOST_ARGS];
    consult_t *k = spread(args[0], NULL, 0, CONSULT, all) ? open_room(sizeof *k, all[0]) : NULL;
    if (!k) return NULL;
    buffers_t *b = &k->c.buffers;
    Py_ssize_t n = k->c.n, nr = k->c.nr;
    PyObject *const *a = all + 1;
#define IN(kind, items) take(b, *a++, kind, items, false)
#define OUT(kind, items) take(b, *a++, kind, items, true)
    const double *at = IN('d', 3 * R + 1 + 5 * n);
    view_t *v = &k->view;
    v->order = take_rows(&k->c, *a++);
    v->vm_bounds = IN('f', 3 * (VM_FEATURES + HOST_FEATURES));
    if (!b->failed) {
        v->per_fair = at, v->per_capacity = at + R, v->per_movable = at + 2 * R, v->count = at + 3 * R, at += 3 * R + 1;
        v->priority = at, v->weight = at + n, v->target = at + 2 * n, v->log_target = at + 3 * n;
        v->isolated = at + 4 * n, v->host_bounds = v->vm_bounds + 3 * VM_FEATURES;
    }
    seen_t *in = &k->in;
    in->stride = n;
    in->ask = IN('d', nr), in->need = IN('d', nr), in->backlog = IN('d', nr), in->delay = IN('d', n);
    in->held = IN('l', nr), in->unsure = IN('?', n), in->overdue = IN('d', n), in->rates = IN('d', RATES * n);
    in->rate = IN('d', n);
    k->remembered = (remembered_t){.last = OUT('d', n), .hidden = OUT('d', n), .most = OUT('d', n)};
    v->kept = take_below(&k->c, *a++, KEPT, LATELY);
    k->remembered.lately = OUT('f', 2 * KEPT * n);
    const int64_t *w = IN('l', 6);
    bool fits = w && w[0] == VM_FEATURES && w[1] == HOST_FEATURES && w[5] == ACTIONS;
    for (int i = 2; fits && i < 5; i++) fits = w[i] >= 0 && w[i] <= 1 << 12;
    if (w && !fits) out_of_shape(&k->c);
    if (fits) k->network = (network_t){.f = w[0], .g = w[1], .e = w[2], .c = w[3], .d = w[4], .a = w[5]};
    k->network.weights = IN('f', (Py_ssize_t)network_floats(&k->network)), k->there = IN('?', n);
    k->standing = IN('d', n), k->knobs = IN('d', sizeof(triage_knobs_t) / 8), k->per_share = IN('d', nr);
    k->over = OUT('d', n), k->admitted = OUT('?', n);
#undef IN
#undef OUT
    if (b->failed || !find_room(k)) {
        drop(k);
        return NULL;
    }
    return keep_room(m, CONSULT_OF, args, 1, k, drop_consult, k->memory, k->bytes);
}

/* Learned.allocate() of one host: consult(memo, arrays of Learned, limit, out): what is seen, what the network makes of it, and
 * triage corrected by that. */
PyObject *py_consult(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (!counted(count, 4)) return NULL;
    memo_t *m = memo_of(args[0]);
    consult_t *k = m ? recall(m, CONSULT_OF, args + 1, 1) : NULL;
    if (m && !k) k = open_consult(m, args + 1);
    double limit;
    if (!k || !number(args[2], &limit)) return NULL;
    buffers_t b = {.count = 0, .failed = false};
    int64_t *out = take(&b, args[3], 'l', k->c.nr, true);
    if (!out) return let_go(&b, NULL);
    const tables_t *t = &k->c.tables;
    Py_ssize_t n = k->c.n;
    encode(t, &k->view, &k->in, &k->remembered, k->c.scratch.x, k->vms, k->whole);
    network(&k->network, n, k->vms, k->there, k->whole, k->room, k->action);
    bool some = false;
    for (Py_ssize_t i = 0; i < n * ACTIONS; i++) {
        k->action[i] *= (float)limit;
        some |= k->action[i] != 0.0f;
    }
    const double *ask = k->in.ask, *need = k->in.need;
    if (some) {
        correct(t, limit, k->action, ask, need, k->favour, k->ask, k->need);
        ask = k->ask, need = k->need;
    }
    stand_back(t, k->standing, k->over, k->knobs->thrift, k->weight);
    for (Py_ssize_t i = 0; some && i < n; i++) k->weight[i] *= k->favour[i];
    triage(t, ask, need, k->in.backlog, k->weight, k->knobs, k->admitted, out, &k->c.scratch);
    note_over(t, out, k->per_share, k->knobs->thrift_ticks, k->over);
    return let_go(&b, none());
}

typedef struct {
    call_t c;
    const double *ask, *need, *backlog, *standing, *per_share;
    const triage_knobs_t *knobs;
    double *over, *weight;
    bool *admitted;
} serve_t;

enum { SERVE = 9 };

static void drop_serve(void *room) {
    free(((serve_t *)room)->weight);
    drop(room);
}

static serve_t *open_serve(memo_t *m, PyObject *const *args) {
    PyObject *all[MOST_ARGS];
    serve_t *s = spread(args[0], args + 1, 3, SERVE, all) ? open_room(sizeof *s, all[0]) : NULL;
    if (!s) return NULL;
    buffers_t *b = &s->c.buffers;
    Py_ssize_t n = s->c.n, nr = s->c.nr;
    s->standing = take(b, all[1], 'd', n, false), s->knobs = take(b, all[2], 'd', sizeof(triage_knobs_t) / 8, false);
    s->per_share = take(b, all[3], 'd', nr, false), s->over = take(b, all[4], 'd', n, true);
    s->admitted = take(b, all[5], '?', n, true);
    s->ask = take(b, all[6], 'd', nr, false), s->need = take(b, all[7], 'd', nr, false);
    s->backlog = take(b, all[8], 'd', nr, false);
    if (!b->failed && !(s->weight = malloc(sizeof *s->weight * (size_t)(n + 1)))) PyErr_NoMemory(), b->failed = true;
    if (!b->failed) return keep_room(m, SERVE_OF, args, 4, s, drop_serve, s->weight, sizeof *s->weight * (size_t)n);
    drop_serve(s);
    return NULL;
}

/* Triage.allocate() of one host: serve(memo, arrays of Triage, ask, need, backlog, out). */
PyObject *py_serve(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (!counted(count, 6)) return NULL;
    memo_t *m = memo_of(args[0]);
    serve_t *s = m ? recall(m, SERVE_OF, args + 1, 4) : NULL;
    if (m && !s) s = open_serve(m, args + 1);
    if (!s) return NULL;
    buffers_t b = {.count = 0, .failed = false};
    int64_t *out = take(&b, args[5], 'l', s->c.nr, true);
    if (!out) return let_go(&b, NULL);
    const tables_t *t = &s->c.tables;
    stand_back(t, s->standing, s->over, s->knobs->thrift, s->weight);
    triage(t, s->ask, s->need, s->backlog, s->weight, s->knobs, s->admitted, out, &s->c.scratch);
    note_over(t, out, s->per_share, s->knobs->thrift_ticks, s->over);
    return let_go(&b, none());
}

typedef struct {
    call_t c;
    const double *ask, *need;
    const bool *throttled, *fixed, *pinned;
    int64_t *held, *wanted, *out; /* the latter two in ``memory``, and ``frozen`` */
    bool *contended, *frozen;
    void *memory;
} conclude_t;

enum { CONCLUDE = 8 };

static void drop_conclude(void *room) {
    free(((conclude_t *)room)->memory);
    drop(room);
}

static conclude_t *open_conclude(memo_t *m, PyObject *const *args) {
    PyObject *all[MOST_ARGS];
    conclude_t *k = spread(args[0], NULL, 0, CONCLUDE, all) ? open_room(sizeof *k, all[0]) : NULL;
    if (!k) return NULL;
    buffers_t *b = &k->c.buffers;
    Py_ssize_t n = k->c.n, nr = k->c.nr;
    k->ask = take(b, all[1], 'd', nr, false), k->need = take(b, all[2], 'd', nr, false);
    k->held = take(b, all[3], 'l', nr, true), k->throttled = take(b, all[4], '?', n, false);
    k->fixed = take(b, all[5], '?', n, false), k->pinned = take(b, all[6], '?', n, false);
    k->contended = take(b, all[7], '?', nr, true);
    if (!b->failed && !(k->memory = malloc(16 * (size_t)nr + (size_t)n + 8))) PyErr_NoMemory(), b->failed = true;
    if (b->failed) {
        drop_conclude(k);
        return NULL;
    }
    k->wanted = k->memory, k->out = k->wanted + nr, k->frozen = (bool *)(k->out + nr);
    return keep_room(m, CONCLUDE_OF, args, 1, k, drop_conclude, k->memory, 16 * (size_t)nr + (size_t)n);
}

/* conclude_tick() of one host, from a proposal to what is held: conclude(memo, arrays of Mind, proposal, anchor or None,
 * hysteresis, share of the anchor) -> (changed, raised), as Guard.admit() counts them. */
PyObject *py_conclude(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (!counted(count, 6)) return NULL;
    memo_t *m = memo_of(args[0]);
    conclude_t *k = m ? recall(m, CONCLUDE_OF, args + 1, 1) : NULL;
    if (m && !k) k = open_conclude(m, args + 1);
    anchor_t anchor = {.units = NULL};
    if (!k || !number(args[5], &anchor.share)) return NULL;
    buffers_t b = {.count = 0, .failed = false};
    const int64_t *wanted = take(&b, args[2], 'l', k->c.nr, false);
    if (args[3] != Py_None) anchor.units = take(&b, args[3], 'l', k->c.nr, false);
    if (b.failed) return let_go(&b, NULL);
    const tables_t *t = &k->c.tables;
    size_t row = R * sizeof *wanted;
    for (int64_t i = 0; i < t->n; i++) {
        bool apart = k->fixed[i] || k->pinned[i];
        memcpy(k->wanted + i * R, apart ? t->reservation + i * R : wanted + i * R, row);
        k->frozen[i] = k->throttled[i] || k->pinned[i];
    }
    int64_t changed = admit(t, k->wanted, k->ask, k->held, k->frozen, args[4] == Py_True, &anchor, k->out, &k->c.scratch);
    for (int64_t i = 0; i < t->n; i++) {
        if (k->fixed[i]) memcpy(k->out + i * R, t->reservation + i * R, row);
        for (int64_t at = i * R; at < (i + 1) * R; at++)
            k->contended[at] = at % R != CACHE && k->need[at] > (double)k->out[at];
    }
    memcpy(k->held, k->out, (size_t)t->n * row);
    return let_go(&b, Py_BuildValue("LL", (long long)changed, (long long)anchor.raised));
}
