/* Sharing pools out: policies/rounding.py, policies/allocators/water_filling.py and triage.py. */
#include <math.h>
#include <string.h>

#include "kernel.h"

static const double ROUNDING = 1e-9;

enum { FEW = 32 };

/* Where each of a few keys comes is how many come before it: more comparisons than other ways take, but no branch that
 * depends on one. What is no number has no place, and is sorted as it was ever done. */
CLONES static void sort_few(const double *key, int64_t *rows, int64_t count) {
    double x[FEW];
    int64_t row[FEW], place[FEW];
    bool numbers = true;
    for (int64_t i = 0; i < count; i++) {
        row[i] = rows[i];
        x[i] = key[rows[i]];
        numbers &= x[i] == x[i];
    }
    for (int64_t i = count; i < FEW; i++) x[i] = INFINITY; /* behind all others */
    if (!numbers) {
        for (int64_t i = 1; i < count; i++) {
            int64_t j = i;
            for (; j > 0 && key[rows[j - 1]] > x[i]; j--) rows[j] = rows[j - 1];
            rows[j] = row[i];
        }
        return;
    }
    int64_t width = (count + 3) / 4 * 4;
    memset(place, 0, sizeof place);
    for (int64_t j = 0; j < count; j++) {
        double other = x[j];
        int64_t i = 0;
        for (; i <= j; i++) place[i] += other < x[i];
        for (; i < width; i++) place[i] += other <= x[i];
    }
    for (int64_t i = 0; i < count; i++) rows[place[i]] = row[i];
}

/* Bring ``rows`` into the order of their keys, ascending; equal keys stay as they stand. */
void sort_rows(const double *key, int64_t *rows, int64_t count, int64_t *merge) {
    if (count <= FEW) {
        sort_few(key, rows, count);
        return;
    }
    int64_t half = count / 2, a = 0, b = half, k = 0;
    sort_rows(key, rows, half, merge);
    sort_rows(key, rows + half, count - half, merge);
    memcpy(merge, rows, (size_t)half * sizeof *rows);
    while (a < half && b < count) {
        int64_t left = merge[a], right = rows[b];
        bool second = key[right] < key[left];
        rows[k++] = second ? right : left;
        a += !second, b += second;
    }
    while (a < half) rows[k++] = merge[a++];
}

/* host.entitled_units(): min(ask, reservation) in whole granules, at least the floor. */
CLONES void entitle(const tables_t *t, const double *ask, int64_t *low) {
    for (int64_t i = 0; i < t->n * R; i++) {
        double wanted = smaller(ask[i], (double)t->reservation[i]); /* NaN: the reservation */
        int64_t units = (int64_t)ceil(wanted - ROUNDING), granule = t->granule[i];
        if (units < t->floor[i]) units = t->floor[i];
        if (granule > 1) units = (units + granule - 1) / granule * granule;
        if (i % R == CACHE && units > 0 && units < t->min_ways) units = t->min_ways;
        low[i] = units;
    }
}

/* rounding.apportion() of one pool: ``x`` by row of the pool, added to ``out`` (N, R). */
CLONES void apportion(const tables_t *t, const pool_t *p, const double *x, int64_t capacity, int64_t *out, scratch_t *s) {
    int64_t left = capacity, some = 0;
    for (int64_t k = 0; k < p->count; k++) {
        int64_t row = p->rows[k], at = row * R + p->resource;
        double part = x[k] / (double)t->granule[at], down = floor(part + ROUNDING), rest = part - down;
        int64_t units = (int64_t)(down * (double)t->granule[at]);
        out[at] += units;
        left -= units;
        s->key[row] = (double)t->rank[row] * 1e-9 - rest;
        s->order[some] = row; /* one too many at most is written, and there is room for all */
        some += rest > 1e-6;
    }
    if (left <= 0 || !some) return;
    /* Who rounds to nothing takes nothing: only the others need an order. Ties cannot be, ranks differ. */
    sort_rows(s->key, s->order, some, s->merge);
    for (int64_t k = 0; k < some; k++) {
        int64_t at = s->order[k] * R + p->resource;
        left -= t->granule[at];
        if (left < 0) return;
        out[at] += t->granule[at];
    }
}

/* rounding.fill_extras() of one column: add min(extra, level) to ``x``; every ``stride``-th of ``extra`` by row. */
static void fill(const pool_t *p, const double *extra, double room, double *x, double *open) {
    double total = 0.0;
    for (int64_t k = 0; k < p->count; k++) total += extra[k];
    double level = INFINITY;
    if (total > room) {
        /* Whose extra is below the level that the others would share is filled; until nobody is. */
        int64_t waiting = p->count;
        memcpy(open, extra, (size_t)waiting * sizeof *open);
        for (;;) {
            int64_t still = 0;
            level = room / (double)waiting;
            for (int64_t k = 0; k < waiting; k++) {
                double mine = open[k];
                bool filled = mine <= level;
                room -= filled ? mine : 0.0;
                open[still] = mine;
                still += !filled;
            }
            if (still == waiting || !still) break;
            waiting = still;
        }
    }
    for (int64_t k = 0; k < p->count; k++) x[k] += smaller(extra[k], level);
}

/* WaterFilling.allocate() of one host. */
void water_fill(const tables_t *t, const double *ask, int64_t *out, scratch_t *s) {
    entitle(t, ask, s->low);
    memset(out, 0, (size_t)(t->n * R) * sizeof *out);
    for (const pool_t *p = t->pool; p < t->pool + t->pools; p++) {
        double base = 0.0;
        for (int64_t k = 0; k < p->count; k++) {
            int64_t at = p->rows[k] * R + p->resource;
            base += s->x[k] = (double)s->low[at];
            s->first[k] = larger(ask[at] - s->x[k], 0.0);
        }
        fill(p, s->first, larger((double)p->capacity - base, 0.0), s->x, s->rest);
        apportion(t, p, s->x, p->capacity, out, s);
    }
}

/* Encoder._fits(): what is left of the scarcest resource once all who come before each VM have what they ask. */
void room_left(const tables_t *t, const double *ask, const int64_t *order, const double *per_capacity, double *out) {
    double ahead[R] = {0.0};
    for (int64_t j = 0; j < t->n; j++) {
        double most = 0.0;
        for (int r = 0; r < R; r++) {
            most = larger(most, ahead[r] * per_capacity[r]);
            ahead[r] += ask[order[j] * R + r];
        }
        out[order[j]] = 1.0 - most;
    }
}

/* PrioritySort.allocate() of one host; ``order`` holds the rows, first served first. */
void priority_sort(const tables_t *t, const double *ask, const int64_t *order, bool *refused, int64_t *out,
                   scratch_t *s) {
    for (int64_t q = 0; q < t->pools; q++) s->left[q] = (double)t->pool[q].capacity;
    for (int64_t at = 0; at < t->n * R; at++) {
        double granule = (double)t->granule[at];
        int64_t units = (int64_t)(ceil(ask[at] / granule - ROUNDING) * granule);
        s->low[at] = units < t->cap[at] ? units : t->cap[at]; /* what is asked, in units */
        int64_t owed = t->reservation[at];
        if (at % R == CACHE && s->low[at] < owed) owed = s->low[at];
        s->left[t->pool_of[at]] -= (double)owed;
    }
    for (int64_t j = 0; j < t->n; j++) {
        int64_t row = order[j], first = row * R;
        bool fits = true;
        for (int64_t at = first; at < first + R; at++) {
            double extra = (double)(s->low[at] - t->reservation[at]);
            if (at != first + CACHE) fits = fits && (extra <= 0.0 || extra <= s->left[t->pool_of[at]]);
        }
        refused[row] = !fits;
        for (int64_t at = first; at < first + R; at++) {
            int64_t extra = s->low[at] - t->reservation[at];
            double *left = &s->left[t->pool_of[at]];
            if (at == first + CACHE) { /* best effort: as far as they go */
                int64_t given = extra < 0 ? 0 : extra, most = *left > 0.0 ? (int64_t)*left : 0;
                out[at] = (extra < 0 ? s->low[at] : t->reservation[at]) + (given < most ? given : most);
                *left -= (double)given;
            } else {
                out[at] = fits ? s->low[at] : t->reservation[at];
                if (fits) *left -= (double)extra;
            }
        }
    }
}

/* Triage._admit(): fill ``admitted``; ``first`` is what admission takes beyond the low end. */
static void choose(const tables_t *t, const double *need, const double *backlog, const double *weight,
                   const triage_knobs_t *k, bool *admitted, scratch_t *s) {
    for (int64_t q = 0; q < t->pools; q++) {
        double least = larger(s->room[q], 1e-9);
        s->left[q] = s->is_short[q] ? s->room[q] + ROUNDING : INFINITY;
        s->price[q] = s->is_short[q] ? pow(larger(s->want[q] / least - 1.0, 0.0), k->price_power) / least : 0.0;
    }
    for (int64_t i = 0; i < t->n; i++) {
        double cost = 0.0;
        for (int64_t at = i * R; at < (i + 1) * R; at++) {
            double lasting = backlog[at] / k->horizon_ticks + need[at] - (double)s->low[at];
            if (lasting > 0.0) cost += lasting * s->price[t->pool_of[at]];
        }
        s->key[i] = -weight[i] / pow(larger(cost, 1e-9), k->cost_power) * (admitted[i] ? k->stick : 1.0);
    }
    memcpy(s->order, t->by_rank, (size_t)t->n * sizeof *s->order);
    sort_rows(s->key, s->order, t->n, s->merge);
    for (int64_t j = 0; j < t->n; j++) {
        int64_t row = s->order[j];
        const double *asked = s->first + row * R;
        const int64_t *of = t->pool_of + row * R;
        bool fits = true;
        for (int r = 0; r < R; r++) fits = fits && (asked[r] <= s->left[of[r]] || asked[r] <= 0.0);
        admitted[row] = fits;
        for (int r = 0; fits && r < R; r++) s->left[of[r]] -= asked[r];
    }
}

/* Triage.allocate() of one host. */
CLONES void triage(const tables_t *t, const double *ask, const double *need, const double *backlog, const double *weight,
            const triage_knobs_t *k, bool *admitted, int64_t *out, scratch_t *s) {
    int64_t n = t->n;
    bool scarce = false;
    entitle(t, ask, s->low);
    for (int64_t q = 0; q < t->pools; q++) {
        const pool_t *p = t->pool + q;
        double base = 0.0, want = 0.0;
        for (int64_t j = 0; j < p->count; j++) {
            int64_t at = p->rows[j] * R + p->resource;
            base += (double)s->low[at];
            want += s->extra[at] = larger(ask[at] - (double)s->low[at], 0.0);
        }
        s->room[q] = larger((double)p->capacity - base, 0.0);
        s->want[q] = want;
        s->is_short[q] = p->resource != CACHE && want > s->room[q] + ROUNDING;
        scarce = scarce || s->is_short[q];
    }
    if (scarce) {
        for (int64_t i = 0; i < n * R; i++) {
            double sure = smaller(larger(ask[i] - need[i], 0.0) * k->margin_share + need[i], ask[i]);
            s->first[i] = i % R == CACHE ? 0.0 : larger(sure - (double)s->low[i], 0.0);
        }
        choose(t, need, backlog, weight, k, admitted, s);
    } else {
        memset(admitted, 1, (size_t)n);
    }
    memset(out, 0, (size_t)(n * R) * sizeof *out);
    double *open = s->key, *margin = s->rest; /* the keys have done their work */
    for (int64_t q = 0; q < t->pools; q++) {
        const pool_t *p = t->pool + q;
        double taken = 0.0, missing = 0.0, left = s->room[q];
        for (int64_t j = 0; j < p->count; j++) {
            int64_t row = p->rows[j], at = row * R + p->resource;
            double whole = admitted[row] ? s->extra[at] : 0.0;
            s->x[j] = scarce && admitted[row] ? s->first[at] : 0.0;
            margin[j] = scarce ? whole - s->x[j] : s->extra[at];
            taken += s->x[j];
            missing += margin[j];
        }
        left = larger(left - taken, 0.0);
        if (scarce && missing <= left + ROUNDING) { /* the admitted are served whole, the others share the rest */
            left = larger(left - missing, 0.0);
            for (int64_t j = 0; j < p->count; j++) {
                int64_t row = p->rows[j], at = row * R + p->resource;
                s->x[j] = admitted[row] ? s->extra[at] : 0.0;
                margin[j] = s->extra[at] - s->x[j];
            }
        }
        fill(p, margin, left, s->x, open);
        for (int64_t j = 0; j < p->count; j++) s->x[j] += (double)s->low[p->rows[j] * R + p->resource];
        apportion(t, p, s->x, p->capacity, out, s);
    }
}
