/* The judgement's inner loops for Python: takes numpy arrays as buffers, checks their type, layout and size, and goes
 * over the hosts of a batch. policies/kernel.py says what each array is; a wrong one raises ValueError. */
#include <stdlib.h>
#include <string.h>

#include "bindings.h"
#include "call.h"

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

/* Triage._allocate_compiled(): who stands back, who is served, and what that takes beyond the reservations. */
static PyObject *py_triage(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 12)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const double *ask = REAL(2, c.nr), *need = REAL(3, c.nr), *backlog = REAL(4, c.nr);
    const double *standing = take(&c.buffers, args[5], 'd', c.n, false);
    bool any_favour = args[6] != Py_None;
    const double *favour = any_favour ? REAL(6, c.n) : NULL;
    const triage_knobs_t *knobs = take(&c.buffers, args[7], 'd', sizeof(triage_knobs_t) / 8, false);
    const double *per_share = take(&c.buffers, args[8], 'd', c.nr, false);
    double *over = REAL_OUT(9, c.n);
    bool *admitted = FLAG_OUT(10, c.n);
    int64_t *out = WHOLE_OUT(11, c.nr);
    double *weight = c.buffers.failed ? NULL : malloc(sizeof *weight * (size_t)(c.n + 1));
    if (!c.buffers.failed && !weight) PyErr_NoMemory();
    for (Py_ssize_t h = 0; weight && h < c.hosts; h++) {
        stand_back(&c.tables, standing, over + h * c.n, knobs->thrift, weight);
        for (Py_ssize_t i = 0; any_favour && i < c.n; i++) weight[i] *= favour[h * c.n + i];
        triage(&c.tables, ask + h * c.nr, need + h * c.nr, backlog + h * c.nr, weight, knobs, admitted + h * c.n,
               out + h * c.nr, &c.scratch);
        note_over(&c.tables, out + h * c.nr, per_share, knobs->thrift_ticks, over + h * c.n);
    }
    free(weight);
    return finish(&c, none());
}

static PyObject *py_admit(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 10)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const int64_t *wanted = WHOLE(2, c.nr);
    const double *ask = REAL(3, c.nr);
    const int64_t *previous = WHOLE(4, c.nr);
    bool any_frozen = args[5] != Py_None;
    const bool *frozen = any_frozen ? take(&c.buffers, args[5], '?', c.hosts * c.n, false) : NULL;
    bool hysteresis = args[6] == Py_True;
    bool any_anchor = args[7] != Py_None;
    const int64_t *anchors = any_anchor ? WHOLE(7, c.nr) : NULL;
    anchor_t anchor = {.share = PyFloat_AsDouble(args[8])};
    if (PyErr_Occurred()) c.buffers.failed = true;
    int64_t *out = WHOLE_OUT(9, c.nr), changed = 0;
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++) {
        anchor.units = any_anchor ? anchors + h * c.nr : NULL;
        changed += admit(&c.tables, wanted + h * c.nr, ask + h * c.nr, previous + h * c.nr,
                         any_frozen ? frozen + h * c.n : NULL, hysteresis, &anchor, out + h * c.nr, &c.scratch);
    }
    return finish(&c, Py_BuildValue("LL", (long long)changed, (long long)anchor.raised));
}

/* The estimator's own arrays, in the order of Estimator.arrays. */
void take_estimator(call_t *c, PyObject *const *args, estimator_t *to) {
    buffers_t *b = &c->buffers;
    Py_ssize_t n = c->hosts * c->n, nr = c->hosts * c->nr;
    to->scale = take(b, args[0], 'd', c->nr, false);
    to->options = take(b, args[1], 'd', sizeof(estimate_options_t) / 8, false);
    to->e = (estimate_t){.usage = take(b, args[2], 'd', nr, true), .demand = take(b, args[3], 'd', nr, true),
                         .backlog = take(b, args[4], 'd', nr, true), .delay_ticks = take(b, args[5], 'd', n, true),
                         .work = take(b, args[6], 'd', n, true), .level = take(b, args[7], 'd', n, true),
                         .usual = take(b, args[8], 'd', n, true), .sure = take(b, args[9], '?', n, true),
                         .known = take(b, args[10], '?', n, true), .still = take(b, args[11], 'l', nr, true)};
}

static PyObject *py_estimate(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 7 + ESTIMATOR)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    reading_t in = {.usage = REAL(2, c.nr), .demand_low = REAL(3, c.nr), .limit = REAL(4, c.nr),
                    .wait_ns = REAL(5, c.n), .quality = take(&c.buffers, args[6], 'B', c.hosts * c.nr, false)};
    estimator_t own;
    take_estimator(&c, args + 7, &own);
    const double *scale = own.scale;
    const estimate_options_t *options = own.options;
    estimate_t e = own.e;
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
    if (!counted(count, 20)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const follow_knobs_t *knobs = take(&c.buffers, args[2], 'd', sizeof(follow_knobs_t) / 8, false);
    const double *demand = REAL(3, c.nr), *backlog = REAL(4, c.nr);
    follow_t f = {.level = REAL_OUT(5, c.nr), .error = REAL_OUT(6, c.nr), .before = REAL_OUT(7, c.nr),
                  .ways = REAL_OUT(8, c.n), .fresh = FLAG_OUT(9, c.n)};
    double *mean = REAL_OUT(10, c.nr), *upper = REAL_OUT(11, c.nr), *clearing = REAL_OUT(12, c.nr);
    /* What the estimate says goes into the forecast as it is. */
    const double *usage = REAL(13, c.nr), *delay = REAL(14, c.n);
    const bool *sure = take(&c.buffers, args[15], '?', c.hosts * c.n, false);
    double *usage_out = REAL_OUT(16, c.nr), *backlog_out = REAL_OUT(17, c.nr), *delay_out = REAL_OUT(18, c.n);
    bool *unsure = FLAG_OUT(19, c.n);
    if (!c.buffers.failed) {
        size_t all = sizeof *usage * (size_t)(c.hosts * c.nr);
        memcpy(usage_out, usage, all), memcpy(backlog_out, backlog, all);
        memcpy(delay_out, delay, sizeof *delay * (size_t)(c.hosts * c.n));
        for (Py_ssize_t i = 0; i < c.hosts * c.n; i++) unsure[i] = !sure[i];
    }
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
    if (!counted(count, 16)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const int64_t *ticks = take(&c.buffers, args[2], 'l', 4, false);
    trust_t k = {.moved = args[3] == Py_True, .passed = args[4] == Py_True,
                 .top = take(&c.buffers, args[5], 'd', c.nr, false),
                 .most = take(&c.buffers, args[6], 'd', c.tables.pools, false)};
    const double *usage = REAL(7, c.nr);
    const uint8_t *quality = take(&c.buffers, args[8], 'B', c.hosts * c.nr, false);
    const int64_t *held = WHOLE(9, c.nr);
    trust_state_t s = {.last = REAL_OUT(10, c.nr), .same = WHOLE_OUT(11, c.nr), .bad = WHOLE_OUT(12, c.nr),
                       .quiet = WHOLE_OUT(13, c.nr)};
    bool *flags = take(&c.buffers, args[14], '?', 3 * c.hosts * c.nr, true), *lies = FLAG_OUT(15, c.nr);
    int64_t bad = 0;
    if (!c.buffers.failed) {
        k.frozen_ticks = ticks[0], k.lost_ticks = ticks[1], k.waking_ticks = ticks[3];
        for (Py_ssize_t at = 0; at < c.hosts * c.nr; at++) k.any_stale = k.any_stale || (quality[at] & 2);
        s.known = flags, s.liar = flags + c.hosts * c.nr, s.good = flags + 2 * c.hosts * c.nr;
    }
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++) {
        bad += check(&c.tables, &k, usage + h * c.nr, quality + h * c.nr, held + h * c.nr, &s, lies + h * c.nr);
        s.last += c.nr, s.same += c.nr, s.bad += c.nr, s.quiet += c.nr, s.known += c.nr, s.liar += c.nr, s.good += c.nr;
    }
    return finish(&c, PyLong_FromLongLong(bad));
}

static PyObject *py_keep_back(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 15)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    const int64_t *ticks = take(&c.buffers, args[2], 'l', 4, false);
    trust_t k = {.near_limit = PyFloat_AsDouble(args[3]), .movable = take(&c.buffers, args[4], '?', R, false)};
    if (PyErr_Occurred()) c.buffers.failed = true;
    const bool *present = take(&c.buffers, args[5], '?', c.n, false);
    const double *usage = REAL(6, c.nr), *limit = REAL(7, c.nr);
    const uint8_t *quality = take(&c.buffers, args[8], 'B', c.hosts * c.nr, false);
    trust_state_t s = {.bad = WHOLE_OUT(9, c.nr), .quiet = WHOLE_OUT(10, c.nr)};
    bool *flags = take(&c.buffers, args[11], '?', 3 * c.hosts * c.nr, true), *aged = FLAG_OUT(12, c.n);
    double *ask = REAL_OUT(13, c.nr), *need = REAL_OUT(14, c.nr);
    if (!c.buffers.failed) {
        k.lost_ticks = ticks[1], k.doubt_ticks = ticks[2];
        s.liar = flags + c.hosts * c.nr;
    }
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++) {
        Py_ssize_t at = h * c.nr;
        keep_back(&c.tables, &k, present, usage + at, limit + at, quality + at, &s, aged + h * c.n, ask + at, need + at);
        s.bad += c.nr, s.quiet += c.nr, s.liar += c.nr;
    }
    return finish(&c, none());
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

PyObject *py_push(PyObject *self, PyObject *const *args, Py_ssize_t count); /* forecast_module.c */
PyObject *py_mix(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_lstm(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_show(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_expect(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_hold_history(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_hold_mixture(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_hold_lstm(PyObject *self, PyObject *const *args, Py_ssize_t count);

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {
    METHOD(water_fill), METHOD(priority_sort), METHOD(triage), METHOD(admit), METHOD(estimate),
    METHOD(follow), METHOD(place_ways), METHOD(check), METHOD(keep_back), METHOD(request),
    METHOD(network), METHOD(push), METHOD(mix), METHOD(expect), METHOD(show), METHOD(lstm), METHOD(hold_history),
    METHOD(hold_mixture), METHOD(hold_lstm), METHOD(due), METHOD(encode),
    METHOD(correct), METHOD(shrink), METHOD(difference), METHOD(memo), METHOD(touch), METHOD(foresee),
    METHOD(consult), METHOD(serve), METHOD(conclude), METHOD(settle), {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&module); }
