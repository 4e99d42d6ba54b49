/* The placer's inner loops for Python. policies/placement.py and ways.py say what each array is. */
#include "buffers.h"

#include <stdlib.h>
#include <string.h>

#include "bindings.h"
#include "kernel.h"

enum { LAYOUT_HEAD = 6 };

static PyObject *wrong(buffers_t *b, const char *what) {
    PyErr_Format(PyExc_ValueError, "this is no %s of policies/placement.py", what);
    b->failed = true;
    return let_go(b, NULL);
}

static bool within(const int64_t *values, int64_t count, int64_t low, int64_t high) {
    bool all = true;
    for (int64_t k = 0; k < count; k++) all &= (values[k] >= low) & (values[k] < high);
    return all;
}

/* Read a packed layout; false where it is none. */
static bool read_layout(const int64_t *at, int64_t length, layout_t *l) {
    if (length < LAYOUT_HEAD) return false;
    *l = (layout_t){.n = at[0], .cpus = at[1], .cores = at[2], .zones = at[3], .per_cpu = at[4], .per_core = at[5]};
    for (int k = 0; k < LAYOUT_HEAD; k++)
        if (at[k] < 0 || at[k] > INT32_MAX) return false;
    if (length != LAYOUT_HEAD + 3 * l->cpus + 2 * l->cores + 3 * l->n || l->per_core < 1) return false;
    l->units = l->cpus * l->per_cpu;
    at += LAYOUT_HEAD;
    l->line_cpu = at, l->line_core = at + l->cpus, l->line_zone = at + 2 * l->cpus, at += 3 * l->cpus;
    l->core_zone = at, l->whole = at + l->cores, at += 2 * l->cores;
    l->apart = at, l->zone = at + l->n, l->by_rank = at + 2 * l->n;
    return within(l->line_cpu, l->cpus, 0, l->cpus) && within(l->line_core, l->cpus, 0, l->cores) &&
           within(l->by_rank, l->n, 0, l->n);
}

PyObject *py_place(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    buffers_t b = {.count = 0};
    layout_t l;
    if (count != 8) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 8", count);
    const int64_t *packed = take(&b, args[0], 'l', -1, false);
    if (!packed) return let_go(&b, NULL);
    if (!read_layout(packed, b.view[0].len / 8, &l)) return wrong(&b, "layout");
    const int64_t *units = take(&b, args[1], 'l', l.n * R, false);
    int64_t *owner = take(&b, args[2], 'l', l.units, true), *core_owner = take(&b, args[3], 'l', l.cores, true);
    int64_t *held = take(&b, args[4], 'l', l.n, true);
    bool *cpus = take(&b, args[5], '?', l.n * l.cpus, true);
    int64_t *into_units = take(&b, args[6], 'l', l.n * R, true);
    bool *into_cpus = take(&b, args[7], '?', l.n * l.cpus, true);
    if (b.failed) return let_go(&b, NULL);
    if (!within(owner, l.units, -1, l.n) || !within(core_owner, l.cores, -1, l.n)) return wrong(&b, "owner");
    size_t n = (size_t)l.n, cores = (size_t)l.cores, all = n > cores ? n : cores;
    char *memory = malloc(8 * (6 * n + cores + 2 * all) + cores + n + 8);
    if (!memory) {
        b.failed = true;
        return let_go(&b, PyErr_NoMemory());
    }
    int64_t *whole = (int64_t *)memory;
    place_scratch_t s = {.have = whole};
    s.want = s.have + n, s.change = s.want + n, s.evicted = s.change + n, s.count = s.evicted + n;
    s.order = s.count + n, s.merge = s.order + all;
    s.middle = (double *)(s.merge + all), s.used = s.middle + n, s.freed = (bool *)(s.used + cores);
    s.touched = s.freed + cores;
    place(&l, units, owner, core_owner, held, cpus, &s);
    free(memory);
    for (int64_t i = 0; i < l.n; i++)
        into_units[i * R + CPU] = units[i * R + CPU] < held[i] ? units[i * R + CPU] : held[i];
    memcpy(into_cpus, cpus, (size_t)(l.n * l.cpus));
    Py_INCREF(Py_None);
    return let_go(&b, Py_None);
}

/* WayLine.place(): masks for ``want`` ways each, for one host or a batch; ``here``: None, or who is in this zone. */
PyObject *py_place_ways(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    buffers_t b = {.count = 0};
    if (count != 9) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 9", count);
    const int64_t *head = take(&b, args[0], 'l', 4, false);
    if (!head) return let_go(&b, NULL);
    int64_t hosts = head[0], n = head[1], ways = head[2], shared = head[3];
    if (hosts < 0 || n < 0 || hosts > INT32_MAX || n > INT32_MAX || ways < 0 || shared < 0 || ways + shared > 62)
        return wrong(&b, "line of ways");
    const int64_t *order = take(&b, args[1], 'l', n, false);
    const bool *first = take(&b, args[2], '?', n, false);
    const bool *here = args[3] != Py_None ? take(&b, args[3], '?', n, false) : NULL;
    const int64_t *want = take(&b, args[4], 'l', hosts * n, false);
    int64_t *start = take(&b, args[5], 'l', hosts * n, true), *had = take(&b, args[6], 'l', hosts * n, true);
    int64_t *masks = take(&b, args[7], 'l', hosts * n, true), *into = take(&b, args[8], 'l', hosts * n, true);
    if (b.failed) return let_go(&b, NULL);
    int64_t *memory = malloc(8 * 6 * (size_t)n + 8);
    if (!memory) {
        b.failed = true;
        return let_go(&b, PyErr_NoMemory());
    }
    ways_scratch_t s = {.order = memory, .merge = memory + n, .right = memory + 2 * n, .at = memory + 3 * n,
                        .key = (double *)(memory + 4 * n)};
    int64_t *wanted = memory + 5 * n;
    for (int64_t h = 0; h < hosts; h++) {
        bool differs = false;
        for (int64_t i = 0; i < n; i++) {
            wanted[i] = here && !here[i] ? 0 : want[h * n + i];
            differs = differs || wanted[i] != had[h * n + i];
        }
        if (differs) lay_out(n, ways, order, first, wanted, start + h * n, had + h * n, &s);
        for (int64_t i = 0; i < n; i++) {
            int64_t at = h * n + i, begin = start[at] + shared;
            if (differs) {
                had[at] = wanted[i];
                masks[at] = wanted[i] > 0 && wanted[i] < 63 && begin >= 0 && begin < 63
                                ? (int64_t)((((uint64_t)1 << wanted[i]) - 1) << begin) : 0;
            }
            if (!here || here[i]) into[at] = masks[at];
        }
    }
    free(memory);
    Py_INCREF(Py_None);
    return let_go(&b, Py_None);
}
