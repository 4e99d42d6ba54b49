/* Making any proposal feasible: policies/guard.py. */
#include <math.h>
#include <string.h>

#include "kernel.h"

static int64_t whole(int64_t units, int64_t granule) {
    return granule > 1 ? (units + granule - 1) / granule * granule : units;
}

/* Guard._classes(): the smallest claims on ways go to the shared class until owners fit into the hardware's classes. */
static void fit_classes(const tables_t *t, int64_t *x, scratch_t *s) {
    int64_t owners = 0, some = 0;
    for (int64_t i = 0; i < t->n; i++) {
        int64_t *ways = x + i * R + CACHE;
        if (*ways > 0 && *ways < t->min_ways) *ways = t->min_ways;
        owners += *ways != 0;
        if (*ways > 0 && s->low[i * R + CACHE] <= 0) {
            s->key[i] = (double)(*ways * t->n + t->importance[i]);
            s->order[some++] = i;
        }
    }
    int64_t spare = owners - (t->max_classes - 1);
    if (!t->max_classes || spare <= 0) return;
    sort_rows(s->key, s->order, some, s->merge);
    for (int64_t k = 0; k < some && k < spare; k++) x[s->order[k] * R + CACHE] = 0;
}

/* Guard._fit(): shrink what stands above entitlement, in proportion, until the pool's column fits. */
static void fit_pool(const tables_t *t, const pool_t *p, int64_t *x, scratch_t *s) {
    int64_t sum = 0, base = 0;
    for (int64_t k = 0; k < p->count; k++) {
        int64_t at = p->rows[k] * R + p->resource;
        sum += x[at];
        base += s->low[at];
    }
    if (sum <= p->capacity) return;
    int64_t room = p->capacity > base ? p->capacity - base : 0, above = sum - base;
    double shrink = (double)room / (double)(above > 1 ? above : 1);
    for (int64_t k = 0; k < p->count; k++) {
        int64_t at = p->rows[k] * R + p->resource;
        s->x[k] = (double)(x[at] - s->low[at]) * shrink;
        s->fitted[at] = s->low[at];
    }
    apportion(t, p, s->x, room, s->fitted, s);
    for (int64_t k = 0; k < p->count; k++) {
        int64_t at = p->rows[k] * R + p->resource;
        x[at] = s->fitted[at];
        if (p->resource == CACHE && x[at] > 0 && x[at] < t->min_ways) x[at] = s->low[at];
    }
}

/* Guard._keep(): VMs keep what nobody else wants, smallest surplus first, ties by rank. */
static void keep_pool(const tables_t *t, const pool_t *p, int64_t *x, const int64_t *previous, const bool *frozen,
                      scratch_t *s) {
    int64_t spare = p->capacity, some = 0;
    for (int64_t k = 0; k < p->count; k++) {
        int64_t row = p->rows[k], at = row * R + p->resource;
        int64_t had = previous[at] < t->cap[at] ? previous[at] : t->cap[at], more = had - x[at];
        spare -= x[at];
        if (t->granule[at] > 1 && more > 0) more -= more % t->granule[at];
        if (more <= 0 || (frozen && frozen[row]) || (p->resource == CACHE && x[at] <= 0)) continue;
        s->key[row] = (double)(more * (t->n + 1) + t->rank[row]);
        s->first[row] = (double)more;
        s->order[some++] = row;
    }
    sort_rows(s->key, s->order, some, s->merge);
    for (int64_t k = 0; k < some; k++) {
        int64_t row = s->order[k], more = (int64_t)s->first[row];
        spare -= more;
        if (spare < 0) return;
        x[row * R + p->resource] += more;
    }
}

/* Guard._oblige(): raise entitlements to ``share`` of the anchor; returns how many proposals lie below that. */
static int64_t oblige(const tables_t *t, const anchor_t *a, const int64_t *wanted, int64_t *low) {
    int64_t raised = 0;
    for (int64_t i = 0; a->units && i < t->n * R; i++) {
        if (i % R == CACHE) continue; /* best effort */
        int64_t units = whole((int64_t)ceil((double)a->units[i] * a->share - 1e-9), t->granule[i]);
        if (units > a->units[i]) units = a->units[i];
        if (units <= low[i]) continue;
        low[i] = units;
        raised += wanted[i] < units;
    }
    return raised;
}

/* Guard.admit() of one host; returns how many entries were altered before hysteresis, and adds up who was raised. */
CLONES int64_t admit(const tables_t *t, const int64_t *wanted, const double *ask, const int64_t *previous, const bool *frozen,
              bool hysteresis, anchor_t *anchor, int64_t *out, scratch_t *s) {
    int64_t changed = 0;
    entitle(t, ask, s->low);
    anchor->raised += oblige(t, anchor, wanted, s->low);
    for (int64_t i = 0; i < t->n * R; i++) {
        int64_t units = wanted[i] > s->low[i] ? wanted[i] : s->low[i];
        if (units > t->cap[i]) units = t->cap[i];
        out[i] = whole(units, t->granule[i]);
    }
    fit_classes(t, out, s);
    for (int64_t q = 0; q < t->pools; q++) fit_pool(t, t->pool + q, out, s);
    for (int64_t i = 0; i < t->n * R; i++) changed += out[i] != wanted[i];
    for (int64_t q = 0; hysteresis && q < t->pools; q++) keep_pool(t, t->pool + q, out, previous, frozen, s);
    return changed;
}
