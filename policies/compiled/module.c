/* The judgement's inner loops for Python: takes numpy arrays as buffers, checks their type, layout and size, and goes
 * over the hosts of a batch. policies/kernel.py says what each array is; a wrong one raises ValueError. */
#include "buffers.h"

#include <stdlib.h>

#include "bindings.h"
#include "kernel.h"

enum { HEAD = 5 };

/* One call: its buffers, the host's bounds, how many hosts, and room to work in. */
typedef struct {
    buffers_t buffers;
    tables_t tables;
    scratch_t scratch;
    Py_ssize_t hosts, n, nr;
    void *memory;
} call_t;

static bool out_of_shape(call_t *c) {
    PyErr_SetString(PyExc_ValueError, "these are no tables of policies/kernel.py");
    c->buffers.failed = true;
    return false;
}

/* Read the packed tables and find room. ``batch``: hosts in the arrays to come. */
static bool begin(call_t *c, PyObject *packed, PyObject *batch) {
    c->buffers.count = 0;
    c->buffers.failed = false;
    c->memory = NULL;
    const int64_t *at = take(&c->buffers, packed, 'l', -1, false);
    c->hosts = PyLong_AsSsize_t(batch);
    if (!at || PyErr_Occurred()) {
        c->buffers.failed = true;
        return false;
    }
    int64_t length = c->buffers.view[0].len / 8;
    if (length < HEAD || c->hosts < 0) return out_of_shape(c);
    tables_t *t = &c->tables;
    t->n = at[0], t->pools = at[1], t->ways = at[2], t->min_ways = at[3], t->max_classes = at[4];
    int64_t n = t->n, nr = n * R;
    if (n < 0 || n > length || t->pools < 0 || t->pools > length || length < HEAD + 5 * nr + 3 * n)
        return out_of_shape(c);
    const int64_t *end = at + length;
    at += HEAD;
    t->floor = at, t->reservation = at + nr, t->cap = at + 2 * nr, t->granule = at + 3 * nr, t->pool_of = at + 4 * nr;
    at += 5 * nr;
    t->rank = at, t->by_rank = at + n, t->importance = at + 2 * n;
    at += 3 * n;
    c->n = (Py_ssize_t)n, c->nr = (Py_ssize_t)nr;
    size_t doubles = (size_t)(2 * nr + 3 * n + 4 * t->pools), whole = (size_t)(2 * nr + 2 * n);
    size_t bytes = (size_t)t->pools * (sizeof(pool_t) + sizeof(bool)) + 8 * (doubles + whole);
    char *memory = c->memory = malloc(bytes + 8);
    if (!memory) {
        PyErr_NoMemory();
        c->buffers.failed = true;
        return false;
    }
    scratch_t *s = &c->scratch;
    pool_t *pool = (pool_t *)memory;
    int64_t *ints = (int64_t *)(pool + t->pools);
    s->low = ints, s->fitted = ints + nr, s->order = ints + 2 * nr, s->merge = ints + 2 * nr + n;
    double *real = (double *)(ints + whole);
    s->extra = real, s->first = real + nr, real += 2 * nr;
    s->x = real, s->key = real + n, s->rest = real + 2 * n, real += 3 * n;
    s->room = real, s->want = real + t->pools, s->left = real + 2 * t->pools, s->price = real + 3 * t->pools;
    s->is_short = (bool *)(real + 4 * t->pools);
    t->pool = pool;
    for (int64_t q = 0; q < t->pools; q++) {
        if (end - at < 3 || at[0] < 0 || at[0] >= R || at[2] < 0 || at[2] > n || end - at - 3 < at[2])
            return out_of_shape(c);
        pool[q] = (pool_t){.resource = at[0], .capacity = at[1], .count = at[2], .rows = at + 3};
        for (int64_t k = 0; k < at[2]; k++)
            if (at[3 + k] < 0 || at[3 + k] >= n) return out_of_shape(c);
        at += 3 + at[2];
    }
    for (int64_t k = 0; k < nr; k++)
        if (t->pool_of[k] < 0 || t->pool_of[k] >= t->pools || t->granule[k] < 1) return out_of_shape(c);
    for (int64_t k = 0; k < n; k++)
        if (t->by_rank[k] < 0 || t->by_rank[k] >= n) return out_of_shape(c);
    return true;
}

static PyObject *finish(call_t *c, PyObject *answer) {
    free(c->memory);
    return let_go(&c->buffers, answer);
}

/* An array of ``per`` values a host; short names for what every function below does a dozen times. */
#define REAL(i, per) take(&c.buffers, args[i], 'd', c.hosts * (per), false)
#define REAL_OUT(i, per) take(&c.buffers, args[i], 'd', c.hosts * (per), true)
#define WHOLE(i, per) take(&c.buffers, args[i], 'l', c.hosts * (per), false)
#define WHOLE_OUT(i, per) take(&c.buffers, args[i], 'l', c.hosts * (per), true)
#define FLAG_OUT(i, per) take(&c.buffers, args[i], '?', c.hosts * (per), true)

static bool counted(Py_ssize_t got, Py_ssize_t wanted) {
    if (got == wanted) return true;
    PyErr_Format(PyExc_TypeError, "%zd arguments, not %zd", got, wanted);
    return false;
}

static PyObject *none(void) {
    Py_INCREF(Py_None);
    return Py_None;
}

static PyObject *py_water_fill(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 4)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const double *ask = REAL(2, c.nr);
    int64_t *out = WHOLE_OUT(3, c.nr);
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++)
        water_fill(&c.tables, ask + h * c.nr, out + h * c.nr, &c.scratch);
    return finish(&c, none());
}

/* Take an array of rows, each within the host. */
static const int64_t *take_rows(call_t *c, PyObject *array) {
    const int64_t *rows = take(&c->buffers, array, 'l', c->n, false);
    for (Py_ssize_t k = 0; rows && k < c->n; k++)
        if ((rows[k] < 0 || rows[k] >= c->n) && !out_of_shape(c)) return NULL;
    return rows;
}

static PyObject *py_room_left(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 6)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const double *ask = REAL(2, c.nr);
    const int64_t *order = take_rows(&c, args[3]);
    const double *per_capacity = take(&c.buffers, args[4], 'd', R, false);
    double *out = REAL_OUT(5, c.n);
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++)
        room_left(&c.tables, ask + h * c.nr, order, per_capacity, out + h * c.n);
    return finish(&c, none());
}

static PyObject *py_priority_sort(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 6)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const double *ask = REAL(2, c.nr);
    const int64_t *order = take_rows(&c, args[3]);
    bool *refused = FLAG_OUT(4, c.n);
    int64_t *out = WHOLE_OUT(5, c.nr);
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++)
        priority_sort(&c.tables, ask + h * c.nr, order, refused + h * c.n, out + h * c.nr, &c.scratch);
    return finish(&c, none());
}

static PyObject *py_triage(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 9)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const double *ask = REAL(2, c.nr), *need = REAL(3, c.nr), *backlog = REAL(4, c.nr);
    const double *weight = REAL(5, c.n);
    const triage_knobs_t *knobs = take(&c.buffers, args[6], 'd', sizeof(triage_knobs_t) / 8, false);
    bool *admitted = FLAG_OUT(7, c.n);
    int64_t *out = WHOLE_OUT(8, c.nr);
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++)
        triage(&c.tables, ask + h * c.nr, need + h * c.nr, backlog + h * c.nr, weight + h * c.n, knobs, admitted + h * c.n,
               out + h * c.nr, &c.scratch);
    return finish(&c, none());
}

static PyObject *py_admit(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 8)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const int64_t *wanted = WHOLE(2, c.nr);
    const double *ask = REAL(3, c.nr);
    const int64_t *previous = WHOLE(4, c.nr);
    bool any_frozen = args[5] != Py_None;
    const bool *frozen = any_frozen ? take(&c.buffers, args[5], '?', c.hosts * c.n, false) : NULL;
    bool hysteresis = args[6] == Py_True;
    int64_t *out = WHOLE_OUT(7, c.nr), changed = 0;
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++)
        changed += admit(&c.tables, wanted + h * c.nr, ask + h * c.nr, previous + h * c.nr,
                         any_frozen ? frozen + h * c.n : NULL, hysteresis, out + h * c.nr, &c.scratch);
    return finish(&c, PyLong_FromLongLong(changed));
}

static PyObject *py_estimate(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 19)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const double *scale = take(&c.buffers, args[2], 'd', c.nr, false);
    const estimate_options_t *options = take(&c.buffers, args[3], 'd', sizeof(estimate_options_t) / 8, false);
    reading_t in = {.usage = REAL(4, c.nr), .demand_low = REAL(5, c.nr), .limit = REAL(6, c.nr),
                    .wait_ns = REAL(7, c.n), .quality = take(&c.buffers, args[8], 'B', c.hosts * c.nr, false)};
    estimate_t e = {.usage = REAL_OUT(9, c.nr), .demand = REAL_OUT(10, c.nr), .backlog = REAL_OUT(11, c.nr),
                    .delay_ticks = REAL_OUT(12, c.n), .work = REAL_OUT(13, c.n), .level = REAL_OUT(14, c.n),
                    .usual = REAL_OUT(15, c.n), .sure = FLAG_OUT(16, c.n), .known = FLAG_OUT(17, c.n),
                    .still = WHOLE_OUT(18, c.nr)};
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++) {
        estimate(&c.tables, scale, options, &in, &e);
        in.usage += c.nr, in.demand_low += c.nr, in.limit += c.nr, in.wait_ns += c.n, in.quality += c.nr;
        e.usage += c.nr, e.demand += c.nr, e.backlog += c.nr, e.delay_ticks += c.n, e.work += c.n, e.level += c.n;
        e.usual += c.n, e.sure += c.n, e.known += c.n, e.still += c.nr;
    }
    return finish(&c, none());
}

static PyObject *py_follow(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 13)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const follow_knobs_t *knobs = take(&c.buffers, args[2], 'd', sizeof(follow_knobs_t) / 8, false);
    const double *demand = REAL(3, c.nr), *backlog = REAL(4, c.nr);
    follow_t f = {.level = REAL_OUT(5, c.nr), .error = REAL_OUT(6, c.nr), .before = REAL_OUT(7, c.nr),
                  .ways = REAL_OUT(8, c.n), .fresh = FLAG_OUT(9, c.n)};
    double *mean = REAL_OUT(10, c.nr), *upper = REAL_OUT(11, c.nr), *clearing = REAL_OUT(12, c.nr);
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++) {
        Py_ssize_t at = h * c.nr;
        follow(&c.tables, knobs, demand + at, backlog + at, &f, mean + at, upper + at, clearing + at);
        f.level += c.nr, f.error += c.nr, f.before += c.nr, f.ways += c.n, f.fresh += c.n;
    }
    return finish(&c, none());
}

/* Widths, weights, VMs, hosts: a network knows nothing of tables. */
static PyObject *py_network(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    enum { MOST = 1 << 12 };
    buffers_t b = {.count = 0, .failed = false};
    if (!counted(count, 8)) return NULL;
    const int64_t *w = take(&b, args[0], 'l', 6, false);
    Py_ssize_t hosts = PyLong_AsSsize_t(args[1]), n = PyLong_AsSsize_t(args[2]);
    if (!w || PyErr_Occurred()) return let_go(&b, NULL);
    bool fits = hosts >= 0 && n >= 0 && hosts <= INT32_MAX && n <= INT32_MAX / MOST;
    for (int i = 0; i < 6; i++) fits = fits && w[i] >= 0 && w[i] <= MOST;
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "no network and no hosts are so large");
        return let_go(&b, NULL);
    }
    network_t m = {.f = w[0], .g = w[1], .e = w[2], .c = w[3], .d = w[4], .a = w[5]};
    m.weights = take(&b, args[3], 'f', (Py_ssize_t)network_floats(&m), false);
    const float *vms = take(&b, args[4], 'f', hosts * n * (Py_ssize_t)m.f, false);
    const bool *there = take(&b, args[5], '?', hosts * n, false);
    const float *host = take(&b, args[6], 'f', hosts * (Py_ssize_t)m.g, false);
    float *out = take(&b, args[7], 'f', hosts * n * (Py_ssize_t)m.a, true);
    float *room = b.failed ? NULL : malloc(sizeof *room * (size_t)(network_room(&m, n) + 1));
    if (!b.failed && !room) PyErr_NoMemory();
    for (Py_ssize_t h = 0; room && h < hosts; h++)
        network(&m, n, vms + h * n * m.f, there + h * n, host + h * m.g, room, out + h * n * m.a);
    free(room);
    return let_go(&b, none());
}

static PyObject *py_check(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 15)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const int64_t *ticks = take(&c.buffers, args[2], 'l', 2, false);
    trust_t k = {.moved = args[3] == Py_True, .passed = args[4] == Py_True,
                 .top = take(&c.buffers, args[5], 'd', c.nr, false),
                 .most = take(&c.buffers, args[6], 'd', c.tables.pools, false)};
    const double *usage = REAL(7, c.nr);
    const uint8_t *quality = take(&c.buffers, args[8], 'B', c.hosts * c.nr, false);
    const int64_t *held = WHOLE(9, c.nr);
    trust_state_t s = {.last = REAL_OUT(10, c.nr), .same = WHOLE_OUT(11, c.nr), .bad = WHOLE_OUT(12, c.nr)};
    bool *flags = take(&c.buffers, args[13], '?', 3 * c.hosts * c.nr, true), *lies = FLAG_OUT(14, c.nr);
    int64_t bad = 0;
    if (!c.buffers.failed) {
        k.frozen_ticks = ticks[0], k.lost_ticks = ticks[1];
        for (Py_ssize_t at = 0; at < c.hosts * c.nr; at++) k.any_stale = k.any_stale || (quality[at] & 2);
        s.known = flags, s.liar = flags + c.hosts * c.nr, s.good = flags + 2 * c.hosts * c.nr;
    }
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++) {
        bad += check(&c.tables, &k, usage + h * c.nr, quality + h * c.nr, held + h * c.nr, &s, lies + h * c.nr);
        s.last += c.nr, s.same += c.nr, s.bad += c.nr, s.known += c.nr, s.liar += c.nr, s.good += c.nr;
    }
    return finish(&c, PyLong_FromLongLong(bad));
}

static PyObject *py_request(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 12)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    double headroom = PyFloat_AsDouble(args[2]);
    if (PyErr_Occurred()) c.buffers.failed = true;
    const double *mean = REAL(3, c.nr), *upper = REAL(4, c.nr), *clearing = REAL(5, c.nr);
    bool knows = args[6] == Py_None;
    const uint8_t *quality = knows ? NULL : take(&c.buffers, args[6], 'B', c.hosts * c.nr, false);
    const uint8_t *in_doubt = take(&c.buffers, args[7], 'B', R, false);
    const bool *unsure = take(&c.buffers, args[8], '?', c.hosts * c.n, false);
    const bool *present = take(&c.buffers, args[9], '?', c.n, false);
    double *ask = REAL_OUT(10, c.nr), *need = REAL_OUT(11, c.nr);
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++) {
        Py_ssize_t at = h * c.nr;
        request(&c.tables, headroom, mean + at, upper + at, clearing + at, knows ? NULL : quality + at, in_doubt,
                knows ? NULL : unsure + h * c.n, present, ask + at, need + at);
    }
    return finish(&c, none());
}

static PyObject *py_stand_back(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 6)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const double *weight = take(&c.buffers, args[2], 'd', c.n, false), *over = REAL(3, c.n);
    double thrift = PyFloat_AsDouble(args[4]), *out = REAL_OUT(5, c.n);
    if (PyErr_Occurred()) c.buffers.failed = true;
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++)
        stand_back(&c.tables, weight, over + h * c.n, thrift, out + h * c.n);
    return finish(&c, none());
}

static PyObject *py_note_over(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 6)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const int64_t *units = WHOLE(2, c.nr);
    const double *per_share = take(&c.buffers, args[3], 'd', c.nr, false);
    double ticks = PyFloat_AsDouble(args[4]), *over = REAL_OUT(5, c.n);
    if (PyErr_Occurred()) c.buffers.failed = true;
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++)
        note_over(&c.tables, units + h * c.nr, per_share, ticks, over + h * c.n);
    return finish(&c, none());
}

PyObject *py_push(PyObject *self, PyObject *const *args, Py_ssize_t count); /* forecast_module.c */
PyObject *py_mix(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_lstm(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_hold_history(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_hold_mixture(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_hold_lstm(PyObject *self, PyObject *const *args, Py_ssize_t count);

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {METHOD(water_fill), METHOD(priority_sort), METHOD(triage), METHOD(admit),
                                METHOD(estimate),   METHOD(follow),        METHOD(room_left), METHOD(place),
                                METHOD(place_ways), METHOD(check),         METHOD(request),   METHOD(stand_back),
                                METHOD(note_over),  METHOD(network),       METHOD(push),
                                METHOD(mix),        METHOD(lstm),          METHOD(hold_history),
                                METHOD(hold_mixture), METHOD(hold_lstm),   {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&module); }
