/* forecast.c for Python: takes the arrays of policies/forecast/history.py and mixture.py as they are. */
#include "buffers.h"
#include "forecast.h"

static bool whole_number(PyObject *tuple, Py_ssize_t i, int64_t *to) {
    PyObject *item = PyTuple_GetItem(tuple, i);
    *to = item ? PyLong_AsLongLong(item) : -1;
    return item && !PyErr_Occurred();
}

/* A history, a mixture or an LSTM whose arrays were checked once: a tick has no time for thirty buffers. */
typedef struct {
    buffers_t buffers;
    history_t history;
    mixture_t mixture;
    lstm_t lstm;
    double *in; /* (2, S) what a tick brings, where it comes in another form */
    buffers_t asked; /* of the arrays of the latest mix(), which are mostly those of the next */
    PyObject *asked_with[2];
    const mixture_options_t *options;
} held_t;

static const char *const KIND_OF[] = {"foreshare.history", "foreshare.mixture", "foreshare.lstm"};
enum { A_HISTORY, A_MIXTURE, AN_LSTM };

static void forget_asked(held_t *held) {
    for (int i = 0; i < held->asked.count; i++) PyBuffer_Release(&held->asked.view[i]);
    for (int i = 0; i < 2; i++) Py_CLEAR(held->asked_with[i]);
    held->asked.count = 0, held->asked.failed = false, held->mixture.out = NULL;
}

static void let_held_go(PyObject *capsule) {
    held_t *held = PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule));
    forget_asked(held);
    for (int i = 0; i < held->buffers.count; i++) PyBuffer_Release(&held->buffers.view[i]);
    PyMem_Free(held->in);
    PyMem_Free(held);
}

static PyObject *keep(held_t *held, int kind) {
    PyObject *capsule = held->buffers.failed ? NULL : PyCapsule_New(held, KIND_OF[kind], let_held_go);
    if (!capsule) {
        let_go(&held->buffers, NULL);
        PyMem_Free(held->in);
        PyMem_Free(held);
    }
    return capsule;
}

static held_t *held(PyObject *capsule, int kind) { return PyCapsule_GetPointer(capsule, KIND_OF[kind]); }

static held_t *begin(void) {
    held_t *new = PyMem_Calloc(1, sizeof(held_t));
    if (!new) PyErr_NoMemory();
    return new;
}

static bool refuse(buffers_t *b, const char *why) {
    if (!b->failed && !PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, why);
    return !(b->failed = true);
}

enum { HISTORY = 13 };

/* hold_history(arrays) with those of History.held: (y, w, running, climate, seen, clean, loose, age, scale, five, slow,
 * series, how long rows are). */
PyObject *py_hold_history(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 1) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 1", count);
    PyObject *tuple = args[0];
    held_t *new = begin();
    if (!new) return NULL;
    buffers_t *b = &new->buffers;
    history_t *h = &new->history;
    if (PyTuple_Size(tuple) != HISTORY || !whole_number(tuple, HISTORY - 2, &h->series) ||
        !whole_number(tuple, HISTORY - 1, &h->size) || h->series < 0 || h->size < h->series) {
        PyErr_Clear();
        refuse(b, "this is no history");
        return keep(new, A_HISTORY);
    }
    Py_ssize_t k = 0, n = (Py_ssize_t)h->series, row = (Py_ssize_t)h->size;
#define OWN(name, kind, items) h->name = take(b, PyTuple_GetItem(tuple, k++), kind, items, true)
    OWN(y, 'f', 2 * WINDOW * row), OWN(w, 'f', 2 * WINDOW * row), OWN(running, 'd', 6 * WINDOW * row);
    OWN(climate, 'f', CLIMATE * row), OWN(seen, 'l', n), OWN(clean, 'l', n), OWN(loose, 'l', n), OWN(age, 'f', n);
    OWN(scale, 'f', n), OWN(five, 'f', n), OWN(slow, 'd', n);
#undef OWN
    new->in = PyMem_Calloc((size_t)n * 2 + 1, sizeof(double));
    if (!new->in && !b->failed) PyErr_NoMemory(), b->failed = true;
    return keep(new, A_HISTORY);
}

/* One number for each series, of either size. */
static const double *numbers(buffers_t *b, PyObject *array, int64_t size, double *in) {
    if (b->failed) return NULL;
    Py_buffer *view = &b->view[b->count];
    b->failed = true;
    if (PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) return NULL;
    b->count++;
    char kind = view->format[0];
    if ((kind != 'f' && kind != 'd') || view->format[1] || view->len != size * view->itemsize) {
        PyErr_Format(PyExc_ValueError, "type '%s' and %zd bytes are not %zd numbers", view->format, view->len,
                     (Py_ssize_t)size);
        return NULL;
    }
    b->failed = false;
    if (kind == 'd') return view->buf;
    for (int64_t s = 0; s < size; s++) in[s] = ((const float *)view->buf)[s];
    return in;
}

/* push(held history, newest, before, gap, whole, demand, waiting, censored) -> whole */
PyObject *py_push(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    buffers_t b = {.count = 0, .failed = false};
    if (count != 8) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 8", count);
    held_t *to = held(args[0], A_HISTORY);
    if (!to) return NULL;
    history_t *h = &to->history;
    int64_t now = PyLong_AsLongLong(args[1]), last = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred()) return NULL;
    if (now < 0 || now >= WINDOW || last < 0 || last >= WINDOW) refuse(&b, "the ring has no such row");
    h->newest = (int)now, h->before = (int)last, h->gap = args[3] == Py_True, h->whole = args[4] == Py_True;
    const double *demand = numbers(&b, args[5], h->series, to->in);
    const double *waiting = numbers(&b, args[6], h->series, to->in + h->series);
    const bool *censored = take(&b, args[7], '?', (Py_ssize_t)h->series, false);
    bool whole = !b.failed && push(h, demand, waiting, censored);
    return let_go(&b, PyBool_FromLong(whole));
}

enum { MIXTURE = 16 };

/* hold_mixture(arrays, series, how long rows are) with those of Mixture._hold: (weights, offset, factor, loss, error, 3 of what was said, cells, now,
 * was, stepped, 3 layers or None, members). */
PyObject *py_hold_mixture(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 3) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 3", count);
    held_t *new = begin();
    if (!new) return NULL;
    buffers_t *b = &new->buffers;
    mixture_t *m = &new->mixture;
    PyObject *tuple = args[0];
    int64_t members = 0, series = PyLong_AsLongLong(args[1]), size = PyLong_AsLongLong(args[2]);
    if (series < 0 || size < series || PyTuple_Size(tuple) != MIXTURE || !whole_number(tuple, MIXTURE - 1, &members) ||
        members < 1 + TABLES || members > MOST_MEMBERS) {
        PyErr_Clear();
        refuse(b, "this is no mixture");
        return keep(new, A_MIXTURE);
    }
    m->members = (int)members, m->series = series, m->size = size;
    Py_ssize_t k = 0, n = (Py_ssize_t)series, row = (Py_ssize_t)size, kqs = HORIZONS * LEVELS * row;
#define OWN(to, items) m->to = take(b, PyTuple_GetItem(tuple, k++), 'f', items, true)
    OWN(weights, members * kqs), OWN(offset, kqs), OWN(factor, kqs), OWN(loss, kqs), OWN(error, HORIZONS * row);
    for (int i = 0; i < HORIZONS; i++) {
        OWN(past[i], -1);
        Py_ssize_t slot = (Py_ssize_t)(members + 1) * LEVELS * row * 4, length = b->failed ? 0 : b->view[b->count - 1].len;
        m->slots[i] = slot ? (int)(length / slot) : 1;
        if (m->slots[i] < 1 || length != m->slots[i] * slot) refuse(b, "what was said is of another mixture");
    }
    OWN(cells, CELLS * CELL * ((n + LANES - 1) / LANES * LANES)), OWN(now, 2 * n), OWN(was, REMEMBERED * (1 + TABLES) * row);
    OWN(stepped, n);
#undef OWN
    if (members == MOST_MEMBERS) {
        Py_ssize_t above = FEATURES;
        for (int i = 0; i < 3; i++) {
            m->layer[i] = take(b, PyTuple_GetItem(tuple, k++), 'f', -1, false);
            Py_ssize_t length = b->failed ? 0 : b->view[b->count - 1].len / 4, rows = length / above;
            if (rows < 1 || rows * above != length || (i < 2 ? rows > MOST_HIDDEN : rows != HORIZONS * LEVELS))
                refuse(b, "the layers of this network do not fit together");
            if (i < 2) m->hidden[i] = (int)rows;
            above = rows + 1;
        }
    }
    return keep(new, A_MIXTURE);
}

/* mix(held history, newest, held mixture, count, options, out) */
PyObject *py_mix(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 6) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 6", count);
    held_t *of = held(args[0], A_HISTORY), *by = of ? held(args[2], A_MIXTURE) : NULL;
    if (!by) return NULL;
    int64_t now = PyLong_AsLongLong(args[1]), ticks = PyLong_AsLongLong(args[3]);
    if (PyErr_Occurred()) return NULL;
    if (now < 0 || now >= WINDOW || ticks < 0 || by->mixture.series != of->history.series)
        return PyErr_Format(PyExc_ValueError, "this mixture is not of this history");
    of->history.newest = (int)now, by->mixture.count = ticks;
    if (by->asked_with[0] != args[4] || by->asked_with[1] != args[5]) {
        forget_asked(by);
        by->options = take(&by->asked, args[4], 'f', sizeof(mixture_options_t) / 4, false);
        float *out = take(&by->asked, args[5], 'f', HORIZONS * LEVELS * (Py_ssize_t)of->history.series, true);
        if (by->asked.failed) {
            forget_asked(by);
            return NULL;
        }
        by->mixture.out = out;
        for (int i = 0; i < 2; i++) Py_INCREF(by->asked_with[i] = args[4 + i]);
    }
    mix(&of->history, &by->mixture, by->options, by->mixture.out);
    Py_INCREF(Py_None);
    return Py_None;
}

/* show(held history, newest, out) */
PyObject *py_show(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    buffers_t b = {.count = 0, .failed = false};
    if (count != 3) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 3", count);
    held_t *of = held(args[0], A_HISTORY);
    int64_t now = of ? PyLong_AsLongLong(args[1]) : -1;
    if (PyErr_Occurred()) return NULL;
    if (now < 0 || now >= WINDOW) refuse(&b, "there is no such row");
    of->history.newest = (int)now;
    float *out = take(&b, args[2], 'f', FEATURES * (Py_ssize_t)of->history.series, true);
    if (!b.failed) show(&of->history, out);
    Py_INCREF(Py_None);
    return let_go(&b, Py_None);
}

/* expect(held history, newest, held mixture, count) */
PyObject *py_expect(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 4) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 4", count);
    held_t *of = held(args[0], A_HISTORY), *by = of ? held(args[2], A_MIXTURE) : NULL;
    if (!by) return NULL;
    int64_t now = PyLong_AsLongLong(args[1]), ticks = PyLong_AsLongLong(args[3]);
    if (PyErr_Occurred()) return NULL;
    if (now < 0 || now >= WINDOW || ticks < 0 || by->mixture.series != of->history.series)
        return PyErr_Format(PyExc_ValueError, "this mixture is not of this history");
    of->history.newest = (int)now, by->mixture.count = ticks;
    expect(&of->history, &by->mixture);
    Py_INCREF(Py_None);
    return Py_None;
}

enum { LSTM = 4 };

/* hold_lstm(arrays, size) with those of LstmModel.refresh: (gates, head, h, c), biases within. */
PyObject *py_hold_lstm(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 2", count);
    held_t *new = begin();
    if (!new) return NULL;
    buffers_t *b = &new->buffers;
    lstm_t *l = &new->lstm;
    PyObject *tuple = args[0];
    int64_t size = PyLong_AsLongLong(args[1]);
    if (size < 0 || PyTuple_Size(tuple) != LSTM) {
        PyErr_Clear();
        refuse(b, "this is no LSTM");
        return keep(new, AN_LSTM);
    }
    Py_ssize_t n = (Py_ssize_t)size;
    l->size = size;
    l->head = take(b, PyTuple_GetItem(tuple, 1), 'f', -1, false);
    Py_ssize_t hidden = b->failed ? 0 : b->view[0].len / (HORIZONS * LEVELS * (Py_ssize_t)sizeof(float)) - 1;
    if (hidden < 1 || hidden > MOST_HIDDEN) refuse(b, "an LSTM of so many units is not run here");
    l->hidden = (int)hidden;
    l->head = take(b, PyTuple_GetItem(tuple, 1), 'f', HORIZONS * LEVELS * (hidden + 1), false);
    l->gates = take(b, PyTuple_GetItem(tuple, 0), 'f', 4 * hidden * (LSTM_INPUTS + hidden + 1), false);
    l->h = take(b, PyTuple_GetItem(tuple, 2), 'f', hidden * n, true);
    l->c = take(b, PyTuple_GetItem(tuple, 3), 'f', hidden * n, true);
    return keep(new, AN_LSTM);
}

/* lstm(held history, newest, held LSTM, out) */
PyObject *py_lstm(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    buffers_t b = {.count = 0, .failed = false};
    if (count != 4) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 4", count);
    held_t *of = held(args[0], A_HISTORY), *by = of ? held(args[2], AN_LSTM) : NULL;
    if (!by) return NULL;
    int64_t now = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()) return NULL;
    if (now < 0 || now >= WINDOW || by->lstm.size != of->history.series) refuse(&b, "this LSTM is not of this history");
    of->history.newest = (int)now;
    float *out = take(&b, args[3], 'f', HORIZONS * LEVELS * (Py_ssize_t)of->history.series, true);
    if (!b.failed) lstm(&of->history, &by->lstm, out);
    Py_INCREF(Py_None);
    return let_go(&b, Py_None);
}
