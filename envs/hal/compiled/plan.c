/* Plans and what becomes of them, for Python: envs/hal/plan.py and virtual.py, which say what each array is. Nothing is
 * rounded here, so that the answers are equal to those of the numpy forms, write by write. */
#include "buffers.h"

#include <stdlib.h>
#include <string.h>

#include "memo.h"
#include "numbers.h"

enum { CPUS_CONTROL, CPU_CONTROL, WAYS_CONTROL, MEMORY_CONTROL, IO_CONTROL, CONTROLS }; /* types.py: Control */
static const int8_t CONTROL_OF[R] = {CPU_CONTROL, -1, MEMORY_CONTROL, IO_CONTROL};

typedef struct {
    int64_t n, cpus, min_ways;
    const bool *active, *apart, *movable;
    const int64_t *zone;
    const int64_t *units, *wanted_units, *ways, *wanted_ways;
    const bool *sets, *wanted_sets;
} change_t;

/* The plan as it grows. */
typedef struct {
    int8_t *control;
    int64_t *vm, *value, count, sets;
    bool *cpu_sets;
} writes_t;

static void add(writes_t *w, int control, int64_t vm, int64_t value) {
    w->control[w->count] = (int8_t)control;
    w->vm[w->count] = vm;
    w->value[w->count++] = value;
}

static void add_set(writes_t *w, int64_t vm, const bool *cpus, int64_t count) {
    memcpy(w->cpu_sets + w->sets * count, cpus, (size_t)count);
    add(w, CPUS_CONTROL, vm, w->sets++);
}

static bool any(const bool *x, int64_t count) {
    bool found = false;
    for (int64_t c = 0; c < count; c++) found |= x[c];
    return found;
}

static bool meet(const bool *x, const bool *y, int64_t count) {
    bool found = false;
    for (int64_t c = 0; c < count; c++) found |= x[c] & y[c];
    return found;
}

static int64_t bits(int64_t mask) { return __builtin_popcountll((uint64_t)mask); }

/* What the sets of CPUs are to be: who is not there keeps what he has. */
static const bool *target_set(const change_t *c, int64_t i) {
    return (c->active[i] ? c->wanted_sets : c->sets) + i * c->cpus;
}

static int64_t count_of(const bool *x, int64_t count) {
    int64_t sum = 0;
    for (int64_t c = 0; c < count;) { /* in bytes, as many as cannot run over: that is sixteen at a time */
        uint8_t part = 0;
        for (int64_t end = c + 240 < count ? c + 240 : count; c < end; c++) part = (uint8_t)(part + x[c]);
        sum += part;
    }
    return sum;
}

/* How each VM whose set changes gets there; see _plan_cpus(). */
typedef struct {
    int64_t *row, count;         /* who changes */
    int64_t *at;                 /* (N,) where each stands in ``row``, or -1 */
    bool *two, *stays, *later;   /* (count,) needs two steps; has CPUs after the first; comes to the second */
    bool *room;                  /* (count, C) the first step of those who need two */
    bool *taken, *to_apart;      /* (C,) CPUs that isolated VMs hold now, and are to hold */
    bool *pinned;                /* (C,) where VMs stay who have nowhere to go yet */
} sets_t;

static const bool *first_set(const change_t *c, const sets_t *s, int64_t j) {
    return s->two[j] ? s->room + j * c->cpus : target_set(c, s->row[j]);
}

/* What VM ``i`` holds after the first step. */
static const bool *held_set(const change_t *c, const sets_t *s, int64_t i) {
    int64_t j = s->at[i];
    return j >= 0 && s->stays[j] ? first_set(c, s, j) : c->sets + i * c->cpus;
}

/* The first step of each set, and who needs a second; return whether every set arrives. */
static bool plan_sets(const change_t *c, sets_t *s) {
    int64_t C = c->cpus;
    bool two = false, whole = true, apart = false;
    memset(s->taken, 0, (size_t)C);
    memset(s->to_apart, 0, (size_t)C);
    for (int64_t i = 0; i < c->n; i++) {
        const bool *old = c->sets + i * C, *new = target_set(c, i);
        apart = apart || c->apart[i];
        for (int64_t k = 0; k < (c->apart[i] ? C : 0); k++) {
            s->taken[k] |= old[k];
            s->to_apart[k] |= new[k];
        }
        s->at[i] = -1;
        if (old != new && memcmp(old, new, (size_t)C)) s->row[s->at[i] = s->count++] = i;
    }
    for (int64_t j = 0; j < s->count; j++) {
        int64_t i = s->row[j];
        const bool *old = c->sets + i * C, *new = target_set(c, i);
        bool gains = false;
        for (int64_t k = 0; k < (apart ? C : 0); k++) gains |= new[k] & !old[k] & s->taken[k];
        s->two[j] = s->later[j] = c->apart[i] || gains;
        two = two || s->two[j];
        s->stays[j] = true;
    }
    if (!two) return true;
    for (int64_t j = 0; j < s->count; j++) {
        int64_t i = s->row[j];
        bool *first = s->room + j * C, at_once = !s->two[j];
        const bool *old = c->sets + i * C, *new = target_set(c, i);
        if (at_once && any(new, C)) continue;
        for (int64_t k = 0; k < C; k++) first[k] = new[k] & (old[k] | at_once);
        s->two[j] = true; /* its first step is not where it shall be */
        if (!any(first, C) && !c->apart[i]) { /* in between it may be wherever no isolated VM is or shall be */
            for (int64_t k = 0; k < C; k++) first[k] = new[k] & !s->taken[k];
            if (!any(first, C))
                for (int64_t k = 0; k < C; k++) first[k] = !s->taken[k] & !s->to_apart[k];
        }
        s->stays[j] = any(first, C);
        s->later[j] = s->later[j] && memcmp(first, new, (size_t)C);
    }
    /* Who has to leave all his CPUs at once goes straight to the new ones, if they are free by then. */
    bool stuck = false;
    memset(s->pinned, 0, (size_t)C);
    for (int64_t j = 0; j < s->count; j++) {
        if (s->stays[j]) continue;
        int64_t i = s->row[j];
        for (int64_t o = 0; s->later[j] && o < c->n; o++)
            if (o != i && meet(target_set(c, i), held_set(c, s, o), C)) s->later[j] = whole = false;
        if (s->later[j]) continue;
        stuck = true;
        for (int64_t k = 0; k < C; k++) s->pinned[k] |= c->sets[i * C + k];
    }
    if (!stuck) return whole;
    for (int64_t j = 0; j < s->count; j++) {
        const bool *old = c->sets + s->row[j] * C, *new = target_set(c, s->row[j]);
        for (int64_t k = 0; k < C; k++) s->later[j] = s->later[j] && !(new[k] && !old[k] && s->pinned[k]);
    }
    return false;
}

/* The first half of the sets, or the second: those who leave their CPUs only then before those who wait for these. */
static void take_sets(const change_t *c, const sets_t *s, writes_t *w) {
    for (int64_t j = 0; j < s->count; j++) {
        const bool *first = first_set(c, s, j);
        if (s->stays[j] && (!s->two[j] || memcmp(first, c->sets + s->row[j] * c->cpus, (size_t)c->cpus)))
            add_set(w, s->row[j], first, c->cpus);
    }
}

static void give_sets(const change_t *c, const sets_t *s, writes_t *w) {
    for (int stays = 0; stays < 2; stays++)
        for (int64_t j = 0; j < s->count; j++)
            if (s->later[j] && s->stays[j] == (stays == 1)) add_set(w, s->row[j], target_set(c, s->row[j]), c->cpus);
}

static void count_units(const change_t *c, bool give, writes_t *w) {
    for (int64_t i = 0; i < c->n; i++)
        for (int r = 0; c->active[i] && r < R; r++) {
            int64_t at = i * R + r, change = c->wanted_units[at] - c->units[at];
            if (r == CACHE || !c->movable[r] || (r == CPU && c->apart[i])) continue;
            if (give ? change > 0 : change < 0) add(w, CONTROL_OF[r], i, c->wanted_units[at]);
        }
}

/* _plan_ways(): first all that shrink; ``now`` (N,) is what everybody holds then. */
static void take_ways(const change_t *c, int64_t *now, writes_t *w) {
    for (int64_t i = 0; i < c->n; i++) {
        int64_t old = now[i] = c->ways[i], new = c->active[i] ? c->wanted_ways[i] : old;
        int64_t kept = bits(old & new) < c->min_ways ? 0 : old & new;
        if (old == new || (new != 0 && (kept == 0 || kept == old))) continue;
        add(w, WAYS_CONTROL, i, kept);
        now[i] = kept;
    }
}

/* Then each owner into ways that nobody holds any more; return whether every mask arrives. */
static bool give_ways(const change_t *c, int64_t *now, writes_t *w) {
    for (;;) {
        bool waiting = false, moved = false;
        for (int64_t i = 0; i < c->n && !moved; i++) {
            if (!c->active[i] || now[i] == c->wanted_ways[i]) continue;
            int64_t others = 0;
            waiting = true;
            for (int64_t o = 0; o < c->n; o++)
                if (o != i && c->zone[o] == c->zone[i]) others |= now[o];
            if (c->wanted_ways[i] & others) continue;
            add(w, WAYS_CONTROL, i, now[i] = c->wanted_ways[i]);
            moved = true;
        }
        if (!moved) return !waiting;
    }
}

typedef struct {
    buffers_t buffers;
    change_t change;
    writes_t writes;
    sets_t sets;
    int64_t *now;
    char *memory;
} build_t;

enum { BUILD = 16 };
static const char BUILD_OF[] = "build";

static void drop_build(void *room) {
    build_t *p = room;
    let_go(&p->buffers, NULL);
    free(p->memory);
    free(p);
}

/* Take the arrays of _arrays() in plan.py. */
static build_t *open_build(memo_t *m, PyObject *const *tuple) {
    PyObject *args[MOST_ARGS];
    build_t *p = spread(tuple[0], NULL, 0, BUILD, args) ? calloc(1, sizeof *p) : NULL;
    if (!p) return PyErr_Occurred() ? NULL : (void *)PyErr_NoMemory();
    buffers_t *b = &p->buffers;
    change_t *c = &p->change;
    writes_t *w = &p->writes;
    const int64_t *head = take(b, args[0], 'l', 3, false);
    if (head) c->n = head[0], c->cpus = head[1], c->min_ways = head[2];
    if (c->n < 0 || c->n > INT32_MAX || c->cpus < 0 || c->cpus > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "this is no host");
        b->failed = true;
    }
    c->active = take(b, args[1], '?', c->n, false), c->apart = take(b, args[2], '?', c->n, false);
    c->zone = take(b, args[3], 'l', c->n, false), c->movable = take(b, args[4], '?', R, false);
    c->units = take(b, args[5], 'l', c->n * R, false), c->sets = take(b, args[6], '?', c->n * c->cpus, false);
    c->ways = take(b, args[7], 'l', c->n, false), c->wanted_units = take(b, args[8], 'l', c->n * R, false);
    c->wanted_sets = take(b, args[9], '?', c->n * c->cpus, false), c->wanted_ways = take(b, args[10], 'l', c->n, false);
    w->control = take(b, args[11], 'b', 7 * c->n, true), w->vm = take(b, args[12], 'l', 7 * c->n, true);
    w->value = take(b, args[13], 'l', 7 * c->n, true);
    w->cpu_sets = take(b, args[14], '?', 2 * c->n * c->cpus, true);
    p->now = take(b, args[15], 'l', c->n, true);
    size_t n = (size_t)c->n, C = (size_t)c->cpus;
    if (!b->failed && !(p->memory = malloc(16 * n + n * C + 3 * n + 3 * C + 8))) PyErr_NoMemory(), b->failed = true;
    if (b->failed) {
        drop_build(p);
        return NULL;
    }
    sets_t *s = &p->sets;
    s->row = (int64_t *)p->memory, s->at = s->row + n, s->room = (bool *)(p->memory + 16 * n);
    s->two = s->room + n * C, s->stays = s->two + n, s->later = s->stays + n;
    s->taken = s->later + n, s->to_apart = s->taken + C, s->pinned = s->to_apart + C;
    return remember(m, BUILD_OF, tuple, 1, p, drop_build);
}

/* build_plan(): build(memo, arrays) fills control, vm, value (7 N each) and cpu_sets (2 N, C); returns (writes, sets,
 * whole). */
static PyObject *py_build(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 2", count);
    memo_t *m = PyCapsule_GetPointer(args[0], MEMO);
    build_t *p = m ? recall(m, BUILD_OF, args + 1, 1) : NULL;
    if (m && !p) p = open_build(m, args + 1);
    if (!p) return NULL;
    const change_t *c = &p->change;
    writes_t *w = &p->writes;
    bool whole = true;
    w->count = w->sets = p->sets.count = 0;
    for (int64_t i = 0; i < c->n; i++) whole = whole && c->active[i];
    if (c->movable[CPU]) whole = plan_sets(c, &p->sets) && whole;
    take_sets(c, &p->sets, w);
    count_units(c, false, w);
    if (c->movable[CACHE]) take_ways(c, p->now, w);
    give_sets(c, &p->sets, w);
    count_units(c, true, w);
    if (c->movable[CACHE]) whole = give_ways(c, p->now, w) && whole;
    return Py_BuildValue("LLO", (long long)w->count, (long long)w->sets, whole ? Py_True : Py_False);
}

/* Whether a kernel would refuse a write: HeldPlacement._refused(). */
static bool refused(int8_t control, int64_t value, const int64_t *pool, int64_t min_ways, int64_t way_bits,
                    const bool *sets, int64_t some, int64_t cpus) {
    if (value < 0) return true;
    if (control == CPUS_CONTROL) return value >= some || !any(sets + value * cpus, cpus);
    if (control == WAYS_CONTROL) {
        int64_t low = value & -value;
        return (value & (value + low)) || (value && bits(value) < min_ways) || value >> way_bits;
    }
    return value > pool[control == CPU_CONTROL ? CPU : control - 1]; /* MEMORY and IO are one on */
}

/* HeldPlacement.apply(): carries out a plan, the last write to a knob wins; fills ``refusals`` (K,), returns how many. */
static PyObject *py_carry_out(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    buffers_t b = {.count = 0};
    if (count != 14) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 14", count);
    const int64_t *head = take(&b, args[0], 'l', 5, false);
    if (!head) return let_go(&b, NULL);
    int64_t n = head[0], C = head[1], min_ways = head[2], way_bits = head[3], per_cpu = head[4];
    if (n < 0 || n > INT32_MAX || C < 0 || C > INT32_MAX || way_bits < 0 || way_bits > 63) {
        PyErr_SetString(PyExc_ValueError, "this is no host");
        return let_go(&b, NULL);
    }
    const int64_t *pool = take(&b, args[1], 'l', n * R, false);
    const bool *apart = take(&b, args[2], '?', n, false), *present = take(&b, args[3], '?', n, false);
    const int8_t *control = take(&b, args[4], 'b', -1, false);
    int64_t writes = b.failed ? 0 : b.view[b.count - 1].len;
    const int64_t *vm = take(&b, args[5], 'l', writes, false), *value = take(&b, args[6], 'l', writes, false);
    const bool *sets = take(&b, args[7], '?', -1, false);
    int64_t some = b.failed || !C ? 0 : b.view[b.count - 1].len / C;
    int64_t *units = take(&b, args[8], 'l', n * R, true);
    bool *cpus = take(&b, args[9], '?', n * C, true);
    int64_t *ways = take(&b, args[10], 'l', n, true), *gained = take(&b, args[11], 'l', n * R, true);
    bool *refusals = take(&b, args[12], '?', writes, true);
    int64_t *before = take(&b, args[13], 'l', n, true);
    for (int64_t k = 0; !b.failed && k < writes; k++)
        if (vm[k] < 0 || vm[k] >= n || control[k] < 0 || control[k] >= CONTROLS) {
            PyErr_SetString(PyExc_ValueError, "a write to no VM or no control");
            b.failed = true;
        }
    if (b.failed) return let_go(&b, NULL);
    bool *kept = malloc((size_t)(n * C) + 1);
    if (!kept) return let_go(&b, PyErr_NoMemory());
    memcpy(before, ways, (size_t)n * sizeof *ways);
    for (int64_t i = 0; i < n; i++)
        if (apart[i]) memcpy(kept + i * C, cpus + i * C, (size_t)C);
    int64_t bad = 0;
    for (int64_t k = 0; k < writes; k++) {
        int64_t i = vm[k];
        refusals[k] = !present[i] || refused(control[k], value[k], pool + i * R, min_ways, way_bits, sets, some, C);
        bad += refusals[k];
        if (refusals[k]) continue;
        if (control[k] == CPUS_CONTROL) {
            memcpy(cpus + i * C, sets + value[k] * C, (size_t)C);
            if (!apart[i]) continue;
            int64_t held = 0, more = 0;
            for (int64_t c = 0; c < C; c++) {
                held += cpus[i * C + c];
                more += cpus[i * C + c] && !kept[i * C + c];
            }
            units[i * R + CPU] = held * per_cpu;
            gained[i * R + CPU] = more * per_cpu;
        } else if (control[k] == WAYS_CONTROL) {
            ways[i] = value[k];
            units[i * R + CACHE] = bits(value[k]);
            gained[i * R + CACHE] = bits(value[k] & ~before[i]);
        } else if (control[k] != CPU_CONTROL || !apart[i]) { /* they own their cores and have no quota */
            units[i * R + (control[k] == CPU_CONTROL ? CPU : control[k] - 1)] = value[k];
        }
    }
    free(kept);
    return let_go(&b, PyLong_FromLongLong(bad));
}

/* SimulatedHal._command(): what of the controls is in force: a quota buys no more than the CPUs of its set. */
static PyObject *py_in_force(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    buffers_t b = {.count = 0};
    if (count != 5) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 5", count);
    const int64_t *head = take(&b, args[0], 'l', 5, false);
    if (!head) return let_go(&b, NULL);
    int64_t n = head[0], C = head[1], per_cpu = head[4];
    if (n < 0 || n > INT32_MAX || C < 0 || C > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "this is no host");
        return let_go(&b, NULL);
    }
    const bool *present = take(&b, args[1], '?', n, false);
    const int64_t *units = take(&b, args[2], 'l', n * R, false);
    const bool *cpus = take(&b, args[3], '?', n * C, false);
    double *out = take(&b, args[4], 'd', n * R, true);
    if (b.failed) return let_go(&b, NULL);
    for (int64_t i = 0; i < n; i++) {
        int64_t held = count_of(cpus + i * C, C);
        for (int r = 0; r < R; r++) out[i * R + r] = present[i] ? (double)units[i * R + r] : 0.0;
        out[i * R + CPU] = smaller(out[i * R + CPU], (double)(held * per_cpu));
    }
    Py_INCREF(Py_None);
    return let_go(&b, Py_None);
}

static PyMethodDef methods[] = {{"build", (PyCFunction)(void (*)(void))py_build, METH_FASTCALL, NULL},
                                {"carry_out", (PyCFunction)(void (*)(void))py_carry_out, METH_FASTCALL, NULL},
                                {"in_force", (PyCFunction)(void (*)(void))py_in_force, METH_FASTCALL, NULL},
                                {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_plan", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__plan(void) { return PyModule_Create(&module); }
