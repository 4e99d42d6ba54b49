/* Demand and backlog from readings, and the forecast that follows them: policies/estimate.py, backlog_forecast.py. */
#include <math.h>

#include "kernel.h"

enum { CENSORED = 4 }; /* policies/reading.py: Quality */
static const double TINY = 1e-9;

/* Estimator.update() for one VM. */
static void estimate_vm(const tables_t *t, const double *scale, const estimate_options_t *o, const reading_t *in,
                        estimate_t *e, int64_t i) {
    double base[R], w[R], seen = 0.0, served = 0.0, rate = 0.0;
    double *u = e->usage + i * R, *d = e->demand + i * R;
    bool missing[R], censored[R], none = true;
    double most_cpu = (double)t->cap[i * R + CPU];
    for (int r = 0; r < R; r++) {
        int64_t at = i * R + r;
        double raw = in->usage[at], limit = in->limit[at], least = larger((double)t->floor[at], TINY) * 0.01;
        double units = larger((double)t->floor[at], 1.0);
        double beyond = (limit > units || isnan(limit) ? limit : units) * o->over_limit;
        bool zero = r != CACHE && raw == 0.0 && u[r] > least;
        missing[r] = !(raw >= 0.0 && raw <= o->most[r]) || raw > beyond;
        e->still[at] = zero ? e->still[at] + 1 : 0;
        zero = zero && (double)e->still[at] <= o->still_ticks;
        missing[r] = missing[r] || zero;
        none = none && missing[r];
        if (!missing[r]) u[r] = raw;
        w[r] = zero ? in->demand_low[at] : in->demand_low[at] - u[r];
        if (r == CPU && o->wait_scale > 0.0) {
            double waited = in->wait_ns[i] * o->wait_scale, free = larger(most_cpu - u[r], 0.0);
            w[r] = fmax(w[r], waited > free ? free : waited); /* what is no number is passed over */
        }
        w[r] = r == CACHE || (missing[r] && !zero) ? 0.0 : smaller(fmax(w[r], 0.0), o->most[r]);
        censored[r] = (in->quality[at] & CENSORED) != 0;
        base[r] = larger(fmax(d[r] * o->idle_share, u[r]), least);
        seen = larger(seen, w[r] / base[r]);
        served += u[r] * scale[at];
        rate += base[r] * scale[at];
    }
    if (seen < o->noise_share) seen = 0.0;
    bool hidden = censored[MEMORY] && seen <= 0.0;
    bool blind = (w[CPU] + u[CPU] >= o->seen_share * most_cpu && (censored[CPU] || w[CPU] > 0.0)) ||
                 (w[IO] >= o->seen_share * in->limit[i * R + IO] && (censored[IO] || w[IO] > 0.0));
    bool gap = missing[CPU] || missing[MEMORY] || missing[IO], unsure = hidden || blind || gap;
    rate = larger(rate, TINY);
    double before = e->work[i], level = e->level[i], usual = e->usual[i];
    double arrived = larger(level, served * (hidden && before <= 0.1 * served ? o->probe : o->hold));
    double work = seen * rate, least = e->sure[i] && !gap ? served + work - before : 0.0; /* is seen to have arrived */
    if (unsure) work = larger(smaller(before + arrived - served, o->most_ticks * larger(level, TINY)), work);
    double demand = larger(served + work - before, 0.0);
    if (unsure || !e->sure[i]) {
        double low = smaller(served, level), high = larger(larger(served * o->probe, level), least);
        demand = smaller(larger(demand, low), high);
    }
    if (unsure) e->level[i] += larger(arrived - level, 0.0) + o->revert * (usual - level);
    else {
        e->level[i] += (demand - level) * o->gain;
        e->usual[i] += (demand - usual) * o->usual_gain;
    }
    if (!e->known[i] && !none) {
        e->level[i] = e->usual[i] = demand;
        e->known[i] = true;
    }
    e->work[i] = work;
    e->sure[i] = !unsure;
    e->delay_ticks[i] = work / rate;
    for (int r = 0; r < R; r++) {
        if (r == CACHE) {
            e->backlog[i * R + r] = 0.0;
            if (!missing[r]) d[r] = censored[r] ? in->usage[i * R + r] * o->probe : in->usage[i * R + r];
        } else {
            e->backlog[i * R + r] = base[r] * e->delay_ticks[i];
            d[r] = base[r] * (demand / rate);
        }
        if (!e->known[i]) d[r] = NAN;
    }
}

void estimate(const tables_t *t, const double *scale, const estimate_options_t *o, const reading_t *in, estimate_t *e) {
    for (int64_t i = 0; i < t->n; i++) estimate_vm(t, scale, o, in, e, i);
}

/* BacklogForecaster.update(): Ewma.learn(), the latest rise, the claim on ways, what clears the backlog. */
void follow(const tables_t *t, const follow_knobs_t *k, const double *demand, const double *backlog, follow_t *f,
            double *mean, double *upper, double *clearing) {
    for (int64_t i = 0; i < t->n; i++) {
        bool complete = true;
        for (int r = 0; r < R; r++) complete = complete && isfinite(demand[i * R + r]);
        for (int64_t at = i * R; at < (i + 1) * R; at++) {
            bool missing = !isfinite(demand[at]);
            if (f->fresh[i] && complete) f->level[at] = demand[at];
            double gap = missing ? 0.0 : demand[at] - f->level[at];
            f->level[at] += (gap > 0.0 ? k->rise : k->fall) * gap;
            if (missing) f->error[at] = smaller(f->error[at] * k->widen, larger((double)t->cap[at], 1.0));
            else f->error[at] += (fabs(gap) - f->error[at]) * k->error_gain;
            mean[at] = f->level[at];
            upper[at] = f->level[at] + f->error[at] * k->margin + fmax(demand[at] - f->before[at], 0.0) * k->trend;
            f->before[at] = demand[at];
        }
        f->fresh[i] = f->fresh[i] && !complete;
        int64_t at = i * R + CACHE;
        double reserved = (double)t->reservation[at];
        /* A gap leaves ``level`` where it was, and the filled-in demand is that level. */
        double seen = isfinite(demand[at]) ? demand[at] : f->level[at];
        f->ways[i] += k->cache_gain * (seen - f->ways[i]);
        mean[at] = upper[at] = reserved + k->cache_share * larger(f->ways[i] - reserved, 0.0);
        for (at = i * R; at < (i + 1) * R; at++)
            clearing[at] = smaller(backlog[at] / k->clear_ticks, k->clear_most * mean[at]);
    }
}
