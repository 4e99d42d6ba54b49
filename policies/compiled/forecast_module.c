/* forecast.c for Python: takes the arrays of policies/forecast/history.py and mixture.py as they are. */
#include "buffers.h"
#include "forecast.h"

static bool whole_number(PyObject *tuple, Py_ssize_t i, int64_t *to) {
    PyObject *item = PyTuple_GetItem(tuple, i);
    *to = item ? PyLong_AsLongLong(item) : -1;
    return item && !PyErr_Occurred();
}

enum { HISTORY = 12 };

/* History.arrays: (y, w, running, seen, clean, loose, age, scale, five, slow, climate, size). */
static bool take_history(buffers_t *b, PyObject *tuple, PyObject *newest, PyObject *before, history_t *h) {
    int64_t now = PyLong_AsLongLong(newest), last = PyLong_AsLongLong(before);
    if (PyTuple_Size(tuple) != HISTORY || !whole_number(tuple, HISTORY - 1, &h->size) || PyErr_Occurred() || h->size < 0 ||
        now < 0 || now >= WINDOW || last < 0 || last >= WINDOW) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "this is no history");
        return !(b->failed = true);
    }
    h->newest = (int)now, h->before = (int)last;
    Py_ssize_t k = 0, n = (Py_ssize_t)h->size;
#define OWN(name, kind, items) h->name = take(b, PyTuple_GetItem(tuple, k++), kind, items, true)
    OWN(y, 'f', 2 * WINDOW * n), OWN(w, 'f', 2 * WINDOW * n), OWN(running, 'd', 6 * WINDOW * n), OWN(seen, 'l', n);
    OWN(clean, 'l', n), OWN(loose, 'l', n), OWN(age, 'f', n), OWN(scale, 'f', n), OWN(five, 'f', n), OWN(slow, 'd', n);
    OWN(climate, 'f', CLIMATE * n);
#undef OWN
    return !b->failed;
}

/* push(history, newest, before, gap, whole, demand, waiting, censored) -> whole */
PyObject *py_push(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    buffers_t b = {.count = 0, .failed = false};
    history_t h;
    if (count != 8) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 8", count);
    if (!take_history(&b, args[0], args[1], args[2], &h)) return let_go(&b, NULL);
    h.gap = args[3] == Py_True, h.whole = args[4] == Py_True;
    const double *demand = take(&b, args[5], 'd', (Py_ssize_t)h.size, false);
    const double *waiting = take(&b, args[6], 'd', (Py_ssize_t)h.size, false);
    const bool *censored = take(&b, args[7], '?', (Py_ssize_t)h.size, false);
    bool whole = !b.failed && push(&h, demand, waiting, censored);
    return let_go(&b, PyBool_FromLong(whole));
}

enum { MIXTURE = 14 };

/* mix(history, newest, mixture, count, options, out); Mixture.arrays: (weights, offset, factor, loss, error, 3 of what
 * was said, theta, x, 3 layers or None, members). */
PyObject *py_mix(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    buffers_t b = {.count = 0, .failed = false};
    history_t h;
    mixture_t m = {0};
    if (count != 6) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 6", count);
    if (!take_history(&b, args[0], args[1], args[1], &h)) return let_go(&b, NULL);
    int64_t members;
    m.count = PyLong_AsLongLong(args[3]);
    if (PyTuple_Size(args[2]) != MIXTURE || !whole_number(args[2], MIXTURE - 1, &members) || PyErr_Occurred() ||
        members < POINTS + 2 || members > MOST_MEMBERS || m.count < 0) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "this is no mixture");
        b.failed = true;
        return let_go(&b, NULL);
    }
    m.members = (int)members;
    Py_ssize_t k = 0, n = (Py_ssize_t)h.size, kqs = HORIZONS * LEVELS * n;
#define OWN(to, items) m.to = take(&b, PyTuple_GetItem(args[2], k++), 'f', items, true)
    OWN(weights, members * kqs), OWN(offset, POINTS * kqs), OWN(factor, kqs), OWN(loss, kqs), OWN(error, HORIZONS * n);
    for (int i = 0; i < HORIZONS; i++) {
        OWN(past[i], -1);
        Py_ssize_t slot = (Py_ssize_t)(members + 1) * LEVELS * n * 4, length = b.failed ? 0 : b.view[b.count - 1].len;
        m.slots[i] = slot ? (int)(length / slot) : 1;
        if (!b.failed && (m.slots[i] < 1 || length != m.slots[i] * slot)) {
            PyErr_SetString(PyExc_ValueError, "what was said is of another mixture");
            b.failed = true;
        }
    }
    OWN(theta, REGRESSORS * kqs), OWN(x, REMEMBERED * REGRESSORS * n);
#undef OWN
    if (members == MOST_MEMBERS) {
        Py_ssize_t above = FEATURES;
        for (int i = 0; i < 3; i++) {
            m.layer[i] = take(&b, PyTuple_GetItem(args[2], k++), 'f', -1, false);
            Py_ssize_t length = b.failed ? 0 : b.view[b.count - 1].len / 4, rows = length / above;
            if (!b.failed && (rows < 1 || rows * above != length || (i < 2 ? rows > MOST_HIDDEN : rows != HORIZONS * LEVELS))) {
                PyErr_SetString(PyExc_ValueError, "the layers of this network do not fit together");
                b.failed = true;
            }
            if (i < 2) m.hidden[i] = (int)rows;
            above = rows + 1;
        }
    }
    const mixture_options_t *o = take(&b, args[4], 'f', sizeof(mixture_options_t) / 4, false);
    float *out = take(&b, args[5], 'f', kqs, true);
    if (!b.failed) mix(&h, &m, o, out);
    Py_INCREF(Py_None);
    return let_go(&b, Py_None);
}
