/* The placer's inner loops for Python. policies/placement.py and ways.py say what each array is. */
#include "buffers.h"

#include <stdlib.h>
#include <string.h>

#include "bindings.h"
#include "kernel.h"
#include "memo.h"

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

static size_t place_bytes(const layout_t *l) {
    size_t n = (size_t)l->n, cores = (size_t)l->cores, all = n > cores ? n : cores;
    return 8 * (6 * n + cores + 2 * all) + cores + n + 8;
}

static place_scratch_t place_room(const layout_t *l, void *memory) {
    int64_t n = l->n, cores = l->cores, all = n > cores ? n : cores;
    place_scratch_t s = {.have = memory};
    s.want = s.have + n, s.change = s.want + n, s.evicted = s.change + n, s.count = s.evicted + n;
    s.order = s.count + n, s.merge = s.order + all;
    s.middle = (double *)(s.merge + all), s.used = s.middle + n, s.freed = (bool *)(s.used + cores);
    s.touched = s.freed + cores;
    return s;
}

/* What is given of the CPU: no more than could be placed. */
static void cut(const layout_t *l, const int64_t *units, const int64_t *held, int64_t *into) {
    for (int64_t i = 0; i < l->n; i++)
        into[i * R + CPU] = units[i * R + CPU] < held[i] ? units[i * R + CPU] : held[i];
}

/* One zone's ways (WayLine), of one host. */
typedef struct {
    int64_t n, ways, shared;
    const int64_t *order;
    const bool *first, *here; /* here: NULL, or who is in this zone */
} line_t;

static ways_scratch_t ways_room(int64_t n, int64_t *memory) { /* 6 N */
    return (ways_scratch_t){.order = memory, .merge = memory + n, .right = memory + 2 * n, .at = memory + 3 * n,
                            .key = (double *)(memory + 4 * n), .wanted = memory + 5 * n};
}

/* ``want``: every ``stride``-th. */
static void place_line(const line_t *l, const int64_t *want, int64_t stride, int64_t *start, int64_t *had,
                       int64_t *masks, int64_t *into, ways_scratch_t *s) {
    bool differs = false;
    for (int64_t i = 0; i < l->n; i++) {
        s->wanted[i] = l->here && !l->here[i] ? 0 : want[i * stride];
        differs = differs || s->wanted[i] != had[i];
    }
    if (differs) lay_out(l->n, l->ways, l->order, l->first, s->wanted, start, had, s);
    for (int64_t i = 0; i < l->n; i++) {
        int64_t begin = start[i] + l->shared, wanted = s->wanted[i];
        if (differs) {
            had[i] = wanted;
            masks[i] = wanted > 0 && wanted < 63 && begin >= 0 && begin < 63
                           ? (int64_t)((((uint64_t)1 << wanted) - 1) << begin) : 0;
        }
        if (!l->here || l->here[i]) into[i] = masks[i];
    }
}

/* WayLine.place(): masks for ``want`` ways each, for one host or a batch; ``here``: None, or who is in this zone. */
PyObject *py_place_ways(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    buffers_t b = {.count = 0};
    if (count != 9) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 9", count);
    const int64_t *head = take(&b, args[0], 'l', 4, false);
    if (!head) return let_go(&b, NULL);
    int64_t hosts = head[0], n = head[1];
    line_t l = {.n = n, .ways = head[2], .shared = head[3]};
    if (hosts < 0 || n < 0 || hosts > INT32_MAX || n > INT32_MAX || l.ways < 0 || l.shared < 0 || l.ways + l.shared > 62)
        return wrong(&b, "line of ways");
    l.order = take(&b, args[1], 'l', n, false), l.first = take(&b, args[2], '?', n, false);
    l.here = args[3] != Py_None ? take(&b, args[3], '?', n, false) : NULL;
    const int64_t *want = take(&b, args[4], 'l', hosts * n, false);
    int64_t *start = take(&b, args[5], 'l', hosts * n, true), *had = take(&b, args[6], 'l', hosts * n, true);
    int64_t *masks = take(&b, args[7], 'l', hosts * n, true), *into = take(&b, args[8], 'l', hosts * n, true);
    if (b.failed) return let_go(&b, NULL);
    int64_t *memory = malloc(8 * 6 * (size_t)n + 8);
    if (!memory) {
        b.failed = true;
        return let_go(&b, PyErr_NoMemory());
    }
    ways_scratch_t s = ways_room(n, memory);
    for (int64_t h = 0; h < hosts * n; h += n)
        place_line(&l, want + h, 1, start + h, had + h, masks + h, into + h, &s);
    free(memory);
    Py_INCREF(Py_None);
    return let_go(&b, Py_None);
}

enum { SETTLE = 8, LINE = 7, MOST_LINES = (MOST_ARGS - SETTLE) / LINE };

typedef struct {
    buffers_t buffers;
    layout_t layout;
    int64_t *owner, *core_owner, *held, *into_units, *into_ways;
    bool *cpus, *into_cpus, fresh;
    int lines;
    line_t line[MOST_LINES];
    int64_t *start[MOST_LINES], *had[MOST_LINES], *masks[MOST_LINES];
    place_scratch_t scratch;
    ways_scratch_t ways;
    char *memory;
} settle_t;

static const char SETTLE_OF[] = "settle";

static void drop_settle(void *room) {
    settle_t *s = room;
    let_go(&s->buffers, NULL);
    free(s->memory);
    free(s);
}

static bool take_settle(settle_t *s, PyObject *const *args, Py_ssize_t count) {
    buffers_t *b = &s->buffers;
    layout_t *l = &s->layout;
    const int64_t *packed = take(b, args[0], 'l', -1, false);
    if (!packed) return false;
    if (!read_layout(packed, b->view[0].len / 8, l)) return wrong(b, "layout") != NULL;
    s->owner = take(b, args[1], 'l', l->units, true), s->core_owner = take(b, args[2], 'l', l->cores, true);
    s->held = take(b, args[3], 'l', l->n, true), s->cpus = take(b, args[4], '?', l->n * l->cpus, true);
    s->into_units = take(b, args[5], 'l', l->n * R, true), s->into_cpus = take(b, args[6], '?', l->n * l->cpus, true);
    s->into_ways = take(b, args[7], 'l', l->n, true);
    for (args += SETTLE; count >= LINE; args += LINE, count -= LINE) {
        line_t *line = &s->line[s->lines];
        const int64_t *head = take(b, args[0], 'l', 4, false);
        if (!head) return false;
        *line = (line_t){.n = head[1], .ways = head[2], .shared = head[3]};
        if (head[0] != 1 || line->n != l->n || line->ways < 0 || line->shared < 0 || line->ways + line->shared > 62)
            return wrong(b, "line of ways") != NULL;
        line->order = take(b, args[1], 'l', l->n, false), line->first = take(b, args[2], '?', l->n, false);
        line->here = args[3] != Py_None ? take(b, args[3], '?', l->n, false) : NULL;
        s->start[s->lines] = take(b, args[4], 'l', l->n, true), s->had[s->lines] = take(b, args[5], 'l', l->n, true);
        s->masks[s->lines++] = take(b, args[6], 'l', l->n, true);
    }
    if (b->failed) return false;
    size_t first = (place_bytes(l) + 7) / 8 * 8;
    if (!(s->memory = malloc(first + 8 * 6 * (size_t)l->n + 8))) return PyErr_NoMemory() != NULL;
    s->scratch = place_room(l, s->memory), s->ways = ways_room(l->n, (int64_t *)(s->memory + first));
    return s->fresh = true;
}

static settle_t *open_settle(memo_t *m, PyObject *const *args) {
    PyObject *all[MOST_ARGS];
    Py_ssize_t count = PyTuple_Check(args[0]) ? PyTuple_Size(args[0]) : 0, lines = (count - SETTLE) / LINE;
    if (count != SETTLE + lines * LINE || lines < 0) count = MOST_ARGS + 1;
    if (!spread(args[0], NULL, 0, count, all)) return NULL;
    settle_t *s = calloc(1, sizeof *s);
    if (!s) return (void *)PyErr_NoMemory();
    if (take_settle(s, all, count - SETTLE)) {
        remember(m, SETTLE_OF, args, 1, s, drop_settle);
        m->own[0].at = s->memory, m->own[0].bytes = place_bytes(&s->layout) + 48 * (size_t)s->layout.n;
        return s;
    }
    drop_settle(s);
    return NULL;
}

/* Placer.place() of one host: settle(memo, (layout, owner, core_owner, held, cpus, units, cpus and ways of the placement,
 * arrays of each line of ways ...), units). Of the placement's CPUs what has changed is brought up to date. */
PyObject *py_settle(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 3) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 3", count);
    memo_t *m = PyCapsule_GetPointer(args[0], MEMO);
    settle_t *s = m ? recall(m, SETTLE_OF, args + 1, 1) : NULL;
    if (m && !s) s = open_settle(m, args + 1);
    if (!s) return NULL;
    buffers_t b = {.count = 0};
    const layout_t *l = &s->layout;
    const int64_t *units = take(&b, args[2], 'l', l->n * R, false);
    if (!units) return let_go(&b, NULL);
    if (!within(s->owner, l->units, -1, l->n) || !within(s->core_owner, l->cores, -1, l->n)) return wrong(&b, "owner");
    bool moved = place(l, units, s->owner, s->core_owner, s->held, s->cpus, &s->scratch);
    memcpy(s->into_units, units, sizeof *units * (size_t)(l->n * R));
    cut(l, units, s->held, s->into_units);
    for (int64_t i = 0; (moved || s->fresh) && i < l->n; i++)
        if (s->fresh || s->scratch.touched[i])
            memcpy(s->into_cpus + i * l->cpus, s->cpus + i * l->cpus, (size_t)l->cpus);
    s->fresh = false;
    for (int k = 0; k < s->lines; k++)
        place_line(&s->line[k], units + CACHE, R, s->start[k], s->had[k], s->masks[k], s->into_ways, &s->ways);
    Py_INCREF(Py_None);
    return let_go(&b, Py_None);
}
