/* One tick's service of the simulated hosts: what Simulator.serve() does once commands are in force and requests have
 * arrived. The equations, with their sources, are those of host.py and the modules that it uses, in the same order. */
#include "buffers.h"

#include <math.h>
#include <stdlib.h>

#include "numbers.h"

static const double TRICKLE_UNITS = 0.05, NO_NEED = 1e-12, TRICKLE_RATE = 1e-9, LEAST = 1e-300;
static const double OCCUPANCY_SHARE = 0.25, AT_LIMIT = 0.98;

/* What is the same for all hosts; (N,), (N, R) or single values. */
typedef struct {
    const double *home, *base, *best, *stall, *miss, *need_ways, *fill_ways, *inflate, *isolated, *spread, *threads;
    const int64_t *zone;
    double ways, shared_ways, smt_yield, units_per_cpu, tick_ns;
    bool siblings, liars;
} model_t;

/* One host's arrays, (N,) or (N, R). */
typedef struct {
    const double *expected, *arrivals, *dice, *there, *mix, *holding, *cold;
    double *backlog, *served, *served_total, *ways, *need, *used, *demand, *access, *relief;
    double *latest, *latency_sum, *latency_weight;
    double *late, *late_total, *arrived_total, *before;
    const double *after;
    double *utilisation, *seen_used, *seen_low, *seen_limit, *wait_ns;
    bool *censored;
} host_t;

/* Sums over the VMs of a zone. */
typedef struct {
    double own_ways, crowd, owned_cpus, busy, crowd_cpus, wanted[R];
} zone_t;

/* siblings.time_per_work(), relative to all siblings busy. */
static double relief_of(double busy, double threads, double yield) {
    double b = smaller(busy, threads), doubled = larger(b - 0.5 * threads, 0.0), work = b - doubled * (2.0 - yield);
    return (work > 0.0 ? b / work : 1.0) * (0.5 * yield);
}

/* requests.served_at_random(). */
static double served_at_random(double backlog, double work, double rate, double variance, double u) {
    double net = work - rate, lowest = 0.5 * (net - sqrt(net * net - 2.0 * variance * log1p(-u)));
    double idle = smaller(larger(-(backlog + lowest), 0.0), rate);
    return smaller(rate - idle, backlog + work);
}

/* requests.mean_latency_ticks(). */
static double latency_of(double before, double after, double work, double rate, double thread_ticks) {
    double mean = 0.5 * (before + after), service = 1.0 / rate;
    if (!(after > 0.0)) mean *= before / larger(larger(rate - work, before), LEAST);
    return (mean + 1.0) / rate - service + larger(service, thread_ticks);
}

/* CPUs that VMs with cores of their own leave to the others. */
static double cpus_left(const model_t *m, const zone_t *z, int64_t i) {
    double there = m->home[i * R + CPU];
    return z->owned_cpus < there ? there - z->owned_cpus : there;
}

/* Ways of a VM's zone that anybody may fill: all but those that rest (resting.py). */
static double ways_there(const model_t *m, const host_t *h, int64_t i) { return h->there ? h->there[i] : m->ways; }

static void serve_host(const model_t *m, const host_t *h, int64_t n, zone_t *zones, int64_t count, double *rates,
                       bool *waits) {
    double io_wanted = 0.0, thread_ticks = 1.0 / m->units_per_cpu;
    for (int64_t z = 0; z < count; z++) zones[z] = (zone_t){0};
    for (int64_t i = 0; i < n; i++) {
        zone_t *z = zones + m->zone[i];
        double own = h->holding[i * R + CACHE];
        z->own_ways += own;
        if (own <= 0.0) z->crowd += h->access[i] + 1e-12;
        if (m->isolated[i] > 0.0) z->owned_cpus += h->holding[i * R + CPU];
        else z->busy += h->used[i * R + CPU];
    }
    for (int64_t i = 0; i < n; i++) { /* what each could be served by itself */
        zone_t *z = zones + m->zone[i];
        const double *held = h->holding + i * R, *cold = h->cold + i * R, *base = m->base + i * R, *mix = h->mix + i * R;
        double *need = h->need + i * R, own = held[CACHE], pool = larger(ways_there(m, h, i) - z->own_ways, m->shared_ways);
        double ways = own <= 0.0 ? (h->access[i] + 1e-12) * (pool / larger(z->crowd, LEAST)) : own - cold[CACHE];
        double none = m->miss[i], all = m->miss[n + i], half = m->miss[2 * n + i], steepness = m->miss[3 * n + i];
        double misses = all + (none - all) / (1.0 + pow(ways / half, steepness));
        h->ways[i] = ways;
        need[CPU] = base[CPU] * (1.0 + m->stall[i] * misses) * mix[CPU];
        need[CACHE] = 0.0;
        need[MEMORY] = base[MEMORY] * misses * mix[MEMORY];
        need[IO] = base[IO] * mix[IO];
        if (m->siblings) {
            bool apart = m->isolated[i] > 0.0;
            h->relief[i] = apart ? relief_of(h->used[i * R + CPU], held[CPU], m->smt_yield)
                                 : relief_of(z->busy, cpus_left(m, z, i), m->smt_yield);
            need[CPU] *= h->relief[i];
        }
        double by[R];
        for (int r = 0; r < R; r++) by[r] = larger(held[r] - cold[r], TRICKLE_UNITS);
        by[CPU] = smaller(by[CPU], m->threads[i]);
        for (int r = 0; r < R; r++) by[r] /= larger(need[r], NO_NEED);
        double rate = smaller(by[CPU], by[MEMORY]);
        waits[2 * i] = by[CPU] <= smaller(by[MEMORY], by[IO]);
        waits[2 * i + 1] = by[IO] < rate;
        rates[i] = rate = smaller(rate, by[IO]);
        double a = h->arrivals[i], served = smaller(h->backlog[i] + a, rate);
        if (h->dice) served = served_at_random(h->backlog[i], a, rate, h->expected[i] * m->spread[i], h->dice[i]);
        h->served[i] = served;
        z->wanted[CPU] += served * need[CPU];
        z->wanted[MEMORY] += served * need[MEMORY];
        io_wanted += served * need[IO];
        if (!(m->isolated[i] > 0.0)) z->crowd_cpus += served * need[CPU];
    }
    for (int64_t i = 0; i < n; i++) { /* what the host has for all of them together */
        zone_t *z = zones + m->zone[i];
        const double *need = h->need + i * R, *home = m->home + i * R, *mix = h->mix + i * R, *held = h->holding + i * R;
        double *used = h->used + i * R, *demand = h->demand + i * R;
        double factor = 1.0, served = h->served[i], total[R] = {z->wanted[CPU], 0.0, z->wanted[MEMORY], io_wanted};
        double left = cpus_left(m, z, i), a = h->arrivals[i];
        if (!(m->isolated[i] > 0.0) && z->crowd_cpus > left) factor = left / larger(z->crowd_cpus, LEAST);
        for (int r = 0; r < R; r++)
            if (r != CACHE && total[r] > home[r] && served * need[r] > 0.0)
                factor = smaller(factor, home[r] / larger(total[r], LEAST));
        served *= factor;
        double rate = larger(factor < 1.0 ? served : rates[i], TRICKLE_RATE), before = h->backlog[i];
        double after = larger(before + a - served, 0.0);
        h->latest[i] = latency_of(before, after, a, rate, need[CPU] * thread_ticks);
        h->latency_sum[i] += h->latest[i] * h->expected[i];
        h->latency_weight[i] += h->expected[i];
        h->served[i] = served;
        h->backlog[i] = after;
        h->served_total[i] += served;
        h->access[i] += OCCUPANCY_SHARE * (served * (m->base[i * R + MEMORY] * mix[MEMORY]) - h->access[i]);

        double best[R];
        for (int r = 0; r < R; r++) {
            used[r] = served * need[r];
            best[r] = m->best[i * R + r] * mix[r];
        }
        used[CACHE] = served > 0.0 ? smaller(h->ways[i], m->fill_ways[i]) : 0.0;
        if (m->siblings) best[CPU] *= h->relief[i];
        double asked = smaller(a, m->threads[i] / best[CPU]);
        for (int r = 0; r < R; r++) demand[r] = asked * best[r];
        demand[CACHE] = asked > 0.0 ? m->need_ways[i] : 0.0;

        h->arrived_total[i] += a; /* lateness.py */
        double since = larger(h->arrived_total[i] - after, h->before[i]);
        h->late[i] = smaller(larger(h->after[i] - since, 0.0), h->after[i] - h->before[i]);
        h->late_total[i] += h->late[i];
        h->before[i] = h->after[i];

        double limit[R]; /* counters.py */
        for (int r = 0; r < R; r++) {
            limit[r] = held[r];
            h->utilisation[r] += used[r];
        }
        limit[CPU] = smaller(limit[CPU], m->threads[i]);
        if (held[CACHE] <= 0.0) limit[CACHE] = larger(ways_there(m, h, i) - z->own_ways, m->shared_ways);
        double idle = larger(m->threads[i] - used[CPU], 0.0);
        double waiting = waits[2 * i] ? smaller(after * need[CPU], idle) * thread_ticks : 0.0;
        double held_back = waits[2 * i + 1] ? smaller(after * need[IO], limit[IO]) : 0.0;
        double shown[R] = {used[CPU], used[CACHE], used[MEMORY], used[IO]}, lie = m->inflate[i];
        if (m->liars && lie != 1.0) {
            double most_cpu = larger(limit[CPU], used[CPU]), most_io = larger(limit[IO], used[IO]);
            waiting = waiting * lie + larger(used[CPU] * lie - most_cpu, 0.0) * thread_ticks;
            held_back = held_back * lie + larger(used[IO] * lie - most_io, 0.0);
            for (int r = 0; r < R; r++)
                if (r != CACHE) shown[r] = smaller(used[r] * lie, larger(limit[r], used[r]));
        }
        for (int r = 0; r < R; r++) {
            int64_t at = i * R + r;
            h->seen_used[at] += shown[r];
            h->seen_low[at] += shown[r];
            h->seen_limit[at] = limit[r];
            h->censored[at] = h->censored[at] || shown[r] >= AT_LIMIT * limit[r];
        }
        h->seen_low[i * R + CPU] += waiting / thread_ticks;
        h->seen_low[i * R + IO] += held_back;
        h->wait_ns[i] += waiting * m->tick_ns;
    }
}

enum { CONSTANTS = 12, SETTINGS = 7, STATE = 30 };

/* serve(constants, settings, zones, hosts, state): tuples of arrays in the order of model_t and host_t (compiled.py). */
static PyObject *py_serve(PyObject *self, PyObject *const *args, Py_ssize_t got) {
    buffers_t b = {.count = 0, .failed = false};
    if (got != 5 || PyTuple_Size(args[0]) != CONSTANTS || PyTuple_Size(args[4]) != STATE) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "not the arguments of serve()");
        return NULL;
    }
    Py_ssize_t zones = PyLong_AsSsize_t(args[2]), hosts = PyLong_AsSsize_t(args[3]);
    if (PyErr_Occurred()) return NULL;
    model_t m = {0};
    m.zone = take(&b, PyTuple_GetItem(args[0], 11), 'l', -1, false);
    Py_ssize_t n = b.failed ? 0 : b.view[0].len / 8, k = 0, nr = n * R;
#define CONSTANT(name, items) m.name = take(&b, PyTuple_GetItem(args[0], k++), 'd', items, false)
    CONSTANT(home, nr), CONSTANT(base, nr), CONSTANT(best, nr), CONSTANT(stall, n), CONSTANT(miss, 4 * n);
    CONSTANT(need_ways, n), CONSTANT(fill_ways, n), CONSTANT(inflate, n), CONSTANT(isolated, n), CONSTANT(spread, n);
    CONSTANT(threads, n);
    const double *s = take(&b, args[1], 'd', SETTINGS, false);
    host_t h = {0};
    k = 0;
#define STATE_IN(name, per) h.name = take(&b, PyTuple_GetItem(args[4], k++), 'd', hosts * (per), false)
#define STATE_OUT(name, per) h.name = take(&b, PyTuple_GetItem(args[4], k++), 'd', hosts * (per), true)
    STATE_IN(expected, n), STATE_IN(arrivals, n);
    bool random = PyTuple_GetItem(args[4], k) != Py_None;
    if (random) STATE_IN(dice, n);
    else k++;
    bool rests = PyTuple_GetItem(args[4], k) != Py_None;
    if (rests) STATE_IN(there, n);
    else k++;
    STATE_IN(mix, nr), STATE_IN(holding, nr), STATE_IN(cold, nr), STATE_OUT(backlog, n), STATE_OUT(served, n);
    STATE_OUT(served_total, n), STATE_OUT(ways, n), STATE_OUT(need, nr), STATE_OUT(used, nr), STATE_OUT(demand, nr);
    STATE_OUT(access, n), STATE_OUT(relief, n), STATE_OUT(latest, n), STATE_OUT(latency_sum, n);
    STATE_OUT(latency_weight, n), STATE_OUT(late, n), STATE_OUT(late_total, n), STATE_OUT(arrived_total, n);
    STATE_OUT(before, n), STATE_IN(after, n), STATE_OUT(utilisation, R), STATE_OUT(seen_used, nr);
    STATE_OUT(seen_low, nr), STATE_OUT(seen_limit, nr), STATE_OUT(wait_ns, n);
    h.censored = take(&b, PyTuple_GetItem(args[4], k++), '?', hosts * nr, true);
    for (Py_ssize_t i = 0; !b.failed && i < n; i++)
        if (m.zone[i] < 0 || m.zone[i] >= zones) {
            PyErr_SetString(PyExc_ValueError, "a VM of a zone that there is not");
            b.failed = true;
        }
    char *memory = b.failed ? NULL : malloc((size_t)zones * sizeof(zone_t) + (size_t)n * 10 + 8);
    if (!b.failed && !memory) {
        PyErr_NoMemory();
        b.failed = true;
    }
    if (!b.failed) {
        m.ways = s[0], m.shared_ways = s[1], m.smt_yield = s[2], m.units_per_cpu = s[3], m.tick_ns = s[4];
        m.siblings = s[5] != 0.0, m.liars = s[6] != 0.0;
        double *rates = (double *)(memory + (size_t)zones * sizeof(zone_t));
        for (Py_ssize_t host = 0; host < hosts; host++) {
            serve_host(&m, &h, n, (zone_t *)memory, zones, rates, (bool *)(rates + n));
            h.expected += n, h.arrivals += n, h.mix += nr, h.holding += nr, h.cold += nr, h.backlog += n, h.served += n;
            if (random) h.dice += n;
            if (rests) h.there += n;
            h.served_total += n, h.ways += n, h.need += nr, h.used += nr, h.demand += nr, h.access += n, h.relief += n;
            h.latest += n, h.latency_sum += n, h.latency_weight += n, h.late += n, h.late_total += n;
            h.arrived_total += n, h.before += n, h.after += n, h.utilisation += R, h.seen_used += nr, h.seen_low += nr;
            h.seen_limit += nr, h.wait_ns += n, h.censored += nr;
        }
    }
    free(memory);
    Py_INCREF(Py_None);
    return let_go(&b, Py_None);
}

/* Simulator.command(): (H, N) alive, (H, N, R) units, what is new of them or None, and the state. */
static PyObject *py_command(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    buffers_t b = {.count = 0};
    if (count != 5) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 5", count);
    const bool *alive = take(&b, args[0], '?', -1, false);
    Py_ssize_t vms = b.failed ? 0 : b.view[0].len;
    const double *units = take(&b, args[1], 'd', vms * R, false);
    const double *gained = args[2] == Py_None ? NULL : take(&b, args[2], 'd', vms * R, false);
    double *commanded = take(&b, args[3], 'd', vms * R, true), *fresh = take(&b, args[4], 'd', vms * R, true);
    for (Py_ssize_t at = 0; !b.failed && at < vms * R; at++) {
        double there = alive[at / R] ? 1.0 : 0.0, wanted = units[at] * there;
        double more = larger(wanted - commanded[at], 0.0);
        fresh[at] += gained ? larger(gained[at], more) * there : more;
        commanded[at] = wanted;
    }
    Py_INCREF(Py_None);
    return let_go(&b, Py_None);
}

static PyMethodDef methods[] = {{"serve", (PyCFunction)(void (*)(void))py_serve, METH_FASTCALL, NULL},
                                {"command", (PyCFunction)(void (*)(void))py_command, METH_FASTCALL, NULL},
                                {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_serve", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__serve(void) { return PyModule_Create(&module); }
