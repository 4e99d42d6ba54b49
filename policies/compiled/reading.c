/* From a reading to what is believed of it, and from a forecast to what is asked: policies/trust.py, allocators/base.py,
 * and how much a VM's taking counts against it: allocators/triage.py. */
#include <math.h>

#include "kernel.h"

enum { MISSING = 1, STALE = 2, CENSORED = 4 }; /* policies/reading.py: Quality */

/* Trust._frozen() for one entry: whether it stands still though it cannot. */
static bool stands_still(const trust_t *k, double usage, uint8_t quality, double last, int64_t *same) {
    bool stale = quality & STALE;
    if (!k->moved && !k->any_stale) return false;
    bool still = usage == last && usage > 0.0 && !(quality & CENSORED) && (k->moved || stale);
    *same = still ? *same + 1 : 0;
    return still && *same >= (stale ? k->lost_ticks : k->frozen_ticks);
}

static void note_quiet(const trust_t *k, double usage, int64_t *quiet) {
    if (usage == 0.0) *quiet = *quiet < 0 ? 1 : *quiet < k->lost_ticks ? *quiet + 1 : *quiet;
    else if (!isnan(usage)) *quiet = *quiet > 0 ? -k->waking_ticks : *quiet < 0 ? *quiet + 1 : 0;
}

/* Trust.check() of one host: fill ``lies``; returns how many entries are bad. */
int64_t check(const tables_t *t, const trust_t *k, const double *usage, const uint8_t *quality, const int64_t *held,
              trust_state_t *s, bool *lies) {
    int64_t nr = t->n * R, bad = 0;
    for (int64_t at = 0; at < nr; at++) {
        bool still = stands_still(k, usage[at], quality[at], s->last[at], &s->same[at]);
        s->last[at] = usage[at];
        note_quiet(k, usage[at], &s->quiet[at]);
        s->good[at] = k->passed && usage[at] >= 0.0 && usage[at] <= k->top[at] && !still;
    }
    for (int64_t q = 0; q < t->pools; q++) {
        const pool_t *p = t->pool + q;
        double sum = 0.0;
        for (int64_t j = 0; j < p->count; j++) sum += usage[p->rows[j] * R + p->resource];
        if (!(sum > k->most[q])) continue;
        for (int64_t j = 0; j < p->count; j++) {
            int64_t at = p->rows[j] * R + p->resource;
            if (usage[at] > 2.0 * (double)held[at] + 1.0) s->good[at] = false;
        }
    }
    for (int64_t at = 0; at < nr; at++) {
        s->known[at] = s->known[at] || s->good[at];
        s->bad[at] = s->good[at] ? 0 : s->bad[at] + 1;
        lies[at] = !s->good[at] && !isnan(usage[at]);
        s->liar[at] = !s->good[at] && (s->liar[at] || (lies[at] && k->passed));
        bad += !s->good[at];
    }
    return bad;
}

static const double LENDER_KEEPS = 5.0; /* trust.py */

/* Trust.entitle() of one host. */
void keep_back(const tables_t *t, const trust_t *k, const bool *present, const double *usage, const double *limit,
             const uint8_t *quality, const trust_state_t *s, bool *aged, double *ask, double *need) {
    for (int64_t i = 0; i < t->n; i++) {
        int64_t first = i * R, mem = first + MEMORY;
        bool quiet[R], runs = usage[first + CPU] > 0.0 || usage[mem] > 0.0 || usage[first + IO] > 0.0;
        for (int r = 0; r < R; r++)
            quiet[r] = s->quiet[first + r] < 0 ||
                       (runs && s->quiet[first + r] > 0 && s->quiet[first + r] < k->lost_ticks);
        bool old = quality[mem] & STALE, near = old && limit[mem] > 0.0 && usage[mem] >= k->near_limit * limit[mem];
        bool whole = quiet[CPU] || quiet[MEMORY] || near, before = aged[i];
        aged[i] = old;
        if (!present[i]) continue;
        for (int r = 0; r < R; r++) {
            int64_t at = first + r;
            double reserved = (double)t->reservation[at];
            bool doubt = s->bad[at] >= k->doubt_ticks;
            bool due = doubt || (r != CACHE && whole) || (r == MEMORY && (old || before)) || (r == IO && quiet[IO]);
            double kept = r == CACHE ? 0.0 : LENDER_KEEPS * usage[at]; /* what is no number stays none, and raises nothing */
            if (due || kept > reserved) kept = reserved;
            if (ask[at] < kept) ask[at] = kept;
            if (doubt && (s->liar[at] || s->bad[at] >= k->lost_ticks) && k->movable[r]) {
                ask[at] = reserved;
                if (need[at] > reserved) need[at] = reserved;
            }
        }
    }
}

static double between(double x, int64_t low, int64_t high) { /* what is no number stays none */
    if (x < (double)low) x = (double)low;
    return x > (double)high ? (double)high : x;
}

/* make_request() of one host. ``unsure`` and ``quality``: NULL where the forecaster knows. */
void request(const tables_t *t, double headroom, const double *mean, const double *upper, const double *clearing,
             const uint8_t *quality, const uint8_t *in_doubt, const bool *unsure, const bool *present, double *ask,
             double *need) {
    for (int64_t i = 0; i < t->n; i++) {
        bool doubt = unsure && unsure[i];
        for (int r = 0; quality && r < R; r++) doubt = doubt || (quality[i * R + r] & in_doubt[r]);
        for (int64_t at = i * R; at < (i + 1) * R; at++) {
            ask[at] = between(upper[at] * headroom + clearing[at], t->floor[at], t->cap[at]);
            need[at] = between(mean[at], t->floor[at], t->cap[at]);
            if (doubt && ask[at] < (double)t->reservation[at]) ask[at] = (double)t->reservation[at];
            if (!present[i]) ask[at] = need[at] = (double)t->floor[at];
        }
    }
}

/* Triage: how much each VM weighs, who has taken more than his reservation lately less. */
void stand_back(const tables_t *t, const double *weight, const double *over, double thrift, double *out) {
    for (int64_t i = 0; i < t->n; i++) out[i] = over[i] > 0.0 ? weight[i] * pow(1.0 + over[i], -thrift) : weight[i];
}

/* Triage: take note of what was granted beyond the reservations, in shares of what these leave. */
void note_over(const tables_t *t, const int64_t *units, const double *per_share, double ticks, double *over) {
    for (int64_t i = 0; i < t->n; i++) {
        double most = 0.0;
        for (int64_t at = i * R; at < (i + 1) * R; at++) {
            int64_t more = units[at] - t->reservation[at];
            if (more > 0) most = larger(most, (double)more * per_share[at]);
        }
        over[i] += (most - over[i]) / ticks;
    }
}
