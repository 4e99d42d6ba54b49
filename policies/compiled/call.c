/* What every function of module.c and seeing.c begins and ends with. */
#include "call.h"

#include <stdlib.h>

enum { HEAD = 5 };

bool out_of_shape(call_t *c) {
    PyErr_SetString(PyExc_ValueError, "these are no tables of policies/kernel.py");
    c->buffers.failed = true;
    return false;
}

/* Read the packed tables and find room. ``batch``: hosts in the arrays to come. */
bool begin(call_t *c, PyObject *packed, PyObject *batch) {
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
    c->bytes = bytes;
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

PyObject *finish(call_t *c, PyObject *answer) {
    free(c->memory);
    return let_go(&c->buffers, answer);
}

bool counted(Py_ssize_t got, Py_ssize_t wanted) {
    if (got == wanted) return true;
    PyErr_Format(PyExc_TypeError, "%zd arguments, not %zd", got, wanted);
    return false;
}

PyObject *none(void) {
    Py_INCREF(Py_None);
    return Py_None;
}

/* Take an array of indices, each from 0 on and below ``end``. */
const int64_t *take_below(call_t *c, PyObject *array, Py_ssize_t count, int64_t end) {
    const int64_t *index = take(&c->buffers, array, 'l', count, false);
    for (Py_ssize_t k = 0; index && k < count; k++)
        if ((index[k] < 0 || index[k] >= end) && !out_of_shape(c)) return NULL;
    return index;
}

/* Take an array of rows, each within the host. */
const int64_t *take_rows(call_t *c, PyObject *array) { return take_below(c, array, c->n, c->n); }
