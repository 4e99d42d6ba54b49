/* see.c for Python: takes the arrays of policies/deadlines.py, features.py, corrected.py and assess.py as they are. */
#include <stdlib.h>

#include "bindings.h"
#include "call.h"
#include "see.h"

PyObject *py_due(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 15)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    due_t k = {.at = PyLong_AsLongLong(args[2]), .stride = c.hosts * c.n};
    k.per_capacity = take(&c.buffers, args[3], 'd', R, false), k.target = take(&c.buffers, args[4], 'l', c.n, false);
    k.lag = take(&c.buffers, args[5], 'l', LOOKS * c.n, false);
    k.within = take(&c.buffers, args[6], 'l', STEPS * c.n, false);
    const double *usage = REAL(7, c.nr), *need = REAL(8, c.nr), *backlog = REAL(9, c.nr);
    due_state_t s = {.done = REAL_OUT(10, c.n), .ring = take(&c.buffers, args[11], 'd', -1, true)};
    if (!c.buffers.failed)
        k.slots = k.stride ? c.buffers.view[c.buffers.count - 1].len / 8 / k.stride : k.at + 1;
    s.overdue = REAL_OUT(12, c.n), s.rates = REAL_OUT(13, RATES * c.n), s.rate = REAL_OUT(14, c.n);
    if (!c.buffers.failed && (k.at < 0 || k.at >= k.slots)) out_of_shape(&c);
    for (Py_ssize_t i = 0; !c.buffers.failed && i < LOOKS * c.n; i++)
        if (k.lag[i] < 0 || k.lag[i] >= k.slots) out_of_shape(&c);
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++) {
        due(&c.tables, &k, usage + h * c.nr, need + h * c.nr, backlog + h * c.nr, &s);
        s.done += c.n, s.ring += c.n, s.overdue += c.n, s.rates += c.n, s.rate += c.n;
    }
    return finish(&c, none());
}

PyObject *py_encode(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 21)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    Py_ssize_t n = c.n;
    const double *at = take(&c.buffers, args[2], 'd', 3 * R + 1 + 5 * n, false);
    view_t v = {.per_fair = at, .order = take_rows(&c, args[3])};
    v.vm_bounds = take(&c.buffers, args[4], 'f', 3 * (VM_FEATURES + HOST_FEATURES), false);
    seen_t in = {.ask = REAL(5, c.nr), .need = REAL(6, c.nr), .backlog = REAL(7, c.nr), .delay = REAL(8, n),
                 .held = WHOLE(9, c.nr), .unsure = take(&c.buffers, args[10], '?', c.hosts * n, false),
                 .overdue = REAL(11, n), .rates = REAL(12, RATES * n), .rate = REAL(13, n), .stride = c.hosts * n};
    remembered_t m = {.last = REAL_OUT(14, n), .hidden = REAL_OUT(15, n), .most = REAL_OUT(16, n)};
    v.kept = take_below(&c, args[17], KEPT, LATELY);
    m.lately = take(&c.buffers, args[18], 'f', c.hosts * n * 2 * KEPT, true);
    float *vms = take(&c.buffers, args[19], 'f', c.hosts * n * VM_FEATURES, true);
    float *whole = take(&c.buffers, args[20], 'f', c.hosts * HOST_FEATURES, true);
    if (c.buffers.failed) return finish(&c, NULL);
    v.per_capacity = at + R, v.per_movable = at + 2 * R, v.count = at + 3 * R, at += 3 * R + 1;
    v.priority = at, v.weight = at + n, v.target = at + 2 * n, v.log_target = at + 3 * n, v.isolated = at + 4 * n;
    v.host_bounds = v.vm_bounds + 3 * VM_FEATURES;
    for (Py_ssize_t h = 0; h < c.hosts; h++) {
        encode(&c.tables, &v, &in, &m, c.scratch.x, vms + h * n * VM_FEATURES, whole + h * HOST_FEATURES);
        m.last += n, m.hidden += n, m.most += n, m.lately += n * 2 * KEPT;
        in.ask += c.nr, in.need += c.nr, in.backlog += c.nr, in.delay += n, in.held += c.nr, in.unsure += n;
        in.overdue += n, in.rates += n, in.rate += n;
    }
    return finish(&c, none());
}

PyObject *py_correct(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 9)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    double limit = PyFloat_AsDouble(args[2]);
    if (PyErr_Occurred()) c.buffers.failed = true;
    const float *action = take(&c.buffers, args[3], 'f', c.hosts * ACTIONS * c.n, false);
    const double *ask = REAL(4, c.nr), *need = REAL(5, c.nr);
    double *favour = REAL_OUT(6, c.n), *ask_out = REAL_OUT(7, c.nr), *need_out = REAL_OUT(8, c.nr);
    bool some = false;
    for (Py_ssize_t k = 0; !c.buffers.failed && !some && k < c.hosts * ACTIONS * c.n; k++) some = action[k] != 0.0f;
    for (Py_ssize_t h = 0; some && h < c.hosts; h++)
        correct(&c.tables, limit, action + h * ACTIONS * c.n, ask + h * c.nr, need + h * c.nr, favour + h * c.n,
                ask_out + h * c.nr, need_out + h * c.nr);
    return finish(&c, PyBool_FromLong(some));
}

PyObject *py_shrink(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 3)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    double *given = REAL_OUT(2, c.nr);
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++) shrink(&c.tables, given + h * c.nr);
    return finish(&c, none());
}

PyObject *py_difference(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call_t c;
    if (!counted(count, 12)) return NULL;
    if (!begin(&c, args[0], args[1])) return finish(&c, NULL);
    due_demand_t d = {.least = PyFloat_AsDouble(args[2]), .probe = PyFloat_AsDouble(args[3])};
    if (PyErr_Occurred()) c.buffers.failed = true;
    d.judged = take(&c.buffers, args[4], '?', R, false), d.weight = take(&c.buffers, args[5], 'd', c.n, false);
    d.usage = REAL(6, c.nr), d.demand_low = REAL(7, c.nr);
    d.quality = take(&c.buffers, args[8], 'B', c.hosts * c.nr, false), d.rate = REAL(9, c.n);
    const double *policy = REAL(10, c.nr), *other = REAL(11, c.nr);
    double sum = 0.0;
    for (Py_ssize_t h = 0; !c.buffers.failed && h < c.hosts; h++) {
        sum += difference(&c.tables, &d, policy + h * c.nr, other + h * c.nr);
        d.usage += c.nr, d.demand_low += c.nr, d.quality += c.nr, d.rate += c.n;
    }
    return finish(&c, PyFloat_FromDouble(c.hosts ? sum / (double)c.hosts : 0.0));
}
