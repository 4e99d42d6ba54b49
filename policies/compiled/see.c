/* What a learned policy sees, and what becomes of its answer: policies/deadlines.py, features.py, corrected.py. */
#include "see.h"

#include <math.h>
#include <string.h>

enum { LANES = 8, LOGS = 32, CENSORED = 4 }; /* policies/reading.py: Quality */
typedef float lanes_t __attribute__((vector_size(4 * LANES)));
typedef int32_t whole_t __attribute__((vector_size(4 * LANES)));

static const double TINY = 1e-9, LEAST_RATE = 0.05, MOST_FALL = 0.002; /* features.py */

/* Deadlines.update() of one host. */
void due(const tables_t *t, const due_t *k, const double *usage, const double *need, const double *backlog,
         due_state_t *s) {
    for (int64_t i = 0; i < t->n; i++) {
        double worked = 0.0, queued = 0.0, usual = 0.0;
        for (int r = 0; r < R; r++) {
            worked += usage[i * R + r] * k->per_capacity[r];
            queued += backlog[i * R + r] * k->per_capacity[r];
            usual += need[i * R + r] * k->per_capacity[r];
        }
        usual = larger(usual, TINY);
        s->done[i] += worked;
        s->ring[k->at * k->stride + i] = s->done[i] + queued;
        s->rate[i] = s->rates[STEPS * k->stride + i] = queued / (double)k->target[i] / usual;
        for (int look = 0; look < LOOKS; look++) {
            int64_t slot = k->at - k->lag[look * t->n + i];
            double came = s->ring[(slot < 0 ? slot + k->slots : slot) * k->stride + i];
            double left = smaller(larger(came - s->done[i], 0.0), queued);
            if (!look) {
                s->overdue[i] = left / usual;
                continue;
            }
            double rate = left / (double)k->within[(look - 1) * t->n + i] / usual;
            s->rates[(look - 1) * k->stride + i] = rate;
            s->rate[i] = larger(rate, s->rate[i]);
        }
    }
}

/* Natural logarithms of positive numbers, in place, to about 1e-7; what is no number stays none. The polynomial is that
 * of the Cephes library's logf (Moshier 1989). */
INLINE void logarithms(float *y) {
    static const float p[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,  -1.2420140846e-1f, 1.4249322787e-1f,
                              -1.6668057665e-1f, 2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    for (int j = 0; j < LOGS; j += LANES) {
        lanes_t x, m, z, e, up;
        whole_t bits, low, none;
        memcpy(&x, y + j, sizeof x);
        memcpy(&bits, &x, sizeof bits);
        none = x != x;
        low = (bits & 0x007fffff) | 0x3f000000; /* mantissa in [0.5, 1) */
        memcpy(&m, &low, sizeof m);
        low = m < 0.707106781186547524f; /* below the root of a half: twice it, one power less */
        e = __builtin_convertvector(((bits >> 23) & 0xff) - 126 + low, lanes_t);
        up = __builtin_convertvector(-low, lanes_t);
        m = m + m * up - 1.0f;
        z = m * m;
        lanes_t sum = p[0] * m + p[1];
        for (int i = 2; i < 9; i++) sum = sum * m + p[i];
        sum = sum * m * z - 2.12194440e-4f * e - 0.5f * z;
        m = m + sum + 0.693359375f * e;
        memcpy(&low, &m, sizeof low);
        low = (none & bits) | (~none & low);
        memcpy(y + j, &low, sizeof low);
    }
}

/* Bring each of ``count`` features within its bounds: (3, features), low, high and default. */
INLINE void bring_within(float *restrict x, const float *restrict bounds, int count, int features) {
    for (int f = 0; f < count; f++) {
        float low = bounds[f], high = bounds[features + f], none = bounds[2 * features + f];
        float y = x[f] < low ? low : x[f];
        y = y > high ? high : y;
        x[f] = x[f] == x[f] ? y : none;
    }
}

static double within_three(double x) { return x < -3.0 ? -3.0 : x > 3.0 ? 3.0 : x; }

/* What is needed of CPU, memory and IO, in shares of the host. */
INLINE double size_of(const view_t *v, const double *need) {
    double size = 0.0;
    for (int r = 0; r < R; r++) size += r == CACHE ? 0.0 : need[r] * v->per_capacity[r];
    return size;
}

INLINE double grown_to(double most, double size) { return most / (size < TINY ? TINY : size); } /* no number stays none */

/* One VM's row; ``short_of``: what is asked beyond the scarcest resource of the host. */
INLINE void see_vm(const tables_t *t, const view_t *v, const seen_t *in, int64_t i, double room, double last,
                   double hidden, double grown, double share, float short_of, float *out) {
    const double *per_fair = v->per_fair, *ask = in->ask + i * R, *need = in->need + i * R;
    const int64_t *held = in->held + i * R, *owed = t->reservation + i * R;
    float y[LOGS];
    double over = 0.0, served = 1.0;
    for (int r = 0; r < R; r++) {
        float scale = (float)per_fair[r];
        float amounts[] = {(float)ask[r], (float)need[r], (float)held[r], (float)owed[r], (float)in->backlog[i * R + r]};
        for (int k = 0; k < 5; k++) {
            float x = amounts[k] * scale;
            y[k * R + r] = (x < 0.0f ? 0.0f : x) + 1.0f;
        }
        out[LOAD + r] = (float)(need[r] / larger((double)held[r], 1.0));
        if (r == CACHE) continue;
        over = larger((double)(held[r] - owed[r]) * per_fair[r], over);
        double part = (double)held[r] / (ask[r] < 1e-6 ? 1e-6 : ask[r]); /* what is no number stays none */
        served = isnan(served) || part >= served ? served : part;
    }
    double rate = in->rate[i];
    y[AMOUNTS] = (float)(1.0 + in->delay[i]);
    for (int k = 0; k < RATES; k++) y[AMOUNTS + 1 + k] = (float)(1.0 + in->rates[k * in->stride + i]);
    float *rest = y + AMOUNTS + 1 + RATES;
    rest[0] = (float)(1.0 + in->overdue[i]), rest[1] = (float)(1.0 + hidden), rest[2] = (float)(1.0 + over);
    rest[3] = (float)larger(rate, LEAST_RATE), rest[4] = (float)grown, rest[5] = (float)(1.0 + (grown - 1.0) * share);
    logarithms(y);
    memcpy(out, y, sizeof *y * AMOUNTS);
    out[DELAY] = y[AMOUNTS];
    out[TREND] = (float)((need[CPU] - last) * per_fair[CPU]);
    out[PRIORITY] = (float)v->priority[i], out[FITS] = (float)room, out[ISOLATED] = (float)v->isolated[i];
    out[TARGET] = (float)v->log_target[i], out[SLACK] = (float)(1.0 - in->delay[i] / v->target[i]);
    memcpy(out + DUE, y + AMOUNTS + 1, sizeof *y * RATES);
    double log_rate = within_three((double)rest[3]);
    out[RATE] = (float)log_rate, out[OVERDUE] = rest[0], out[HIDDEN] = rest[1];
    out[WEIGHT] = (float)v->weight[i], out[OVER] = rest[2];
    out[SERVED] = (float)served, out[SHORT] = short_of;
    out[SEEN_RATE] = in->unsure[i] ? 0.0f : (float)log_rate, out[SHORT_RATE] = (float)(log_rate * (double)short_of);
    out[BELOW] = rest[4], out[STANDBY] = rest[5];
    bring_within(out, v->vm_bounds, LATELY, VM_FEATURES);
}

/* Encoder._remember() of one VM. */
INLINE void remember(const int64_t *restrict kept, float *restrict lately, float *restrict out) {
    const float gain = 1.0f / LATELY_TICKS;
    for (int k = 0; k < KEPT; k++) {
        float x = out[kept[k]], mean = lately[k], swing = lately[KEPT + k], off = x - mean;
        bool new = mean != mean;
        float size = off < 0.0f ? -off : off;
        mean += gain * off, swing += gain * (size - swing);
        out[LATELY + k] = lately[k] = new ? x : mean;
        out[SWING + k] = lately[KEPT + k] = new ? 0.0f : swing;
    }
}

/* Encoder.encode() of one host. ``room`` (N,): to work in. */
CLONES void encode(const tables_t *t, const view_t *v, const seen_t *in, const remembered_t *m, double *room, float *vms,
            float *whole) {
    double asked[R] = {0.0}, needed[R] = {0.0}, pressed[R] = {0.0}, wanted[R] = {0.0}, delay = 0.0, share = 1.0;
    room_left(t, in->ask, v->order, v->per_movable, room);
    for (int64_t i = 0; i < t->n; i++) {
        double size = size_of(v, in->need + i * R);
        m->most[i] = fmax(m->most[i] * (1.0 - MOST_FALL), size); /* not for what is no number */
        double grown = grown_to(m->most[i], size) - 1.0;
        for (int r = 0; r < R; r++) {
            wanted[r] += in->need[i * R + r] * grown;
            asked[r] += in->ask[i * R + r];
            needed[r] += in->need[i * R + r];
            pressed[r] += in->need[i * R + r] * in->rate[i];
        }
        delay += in->delay[i];
    }
    float most = 0.0f;
    for (int r = 0; r < R; r++) {
        whole[ASKED + r] = (float)(asked[r] * v->per_capacity[r]);
        whole[NEEDED + r] = (float)(needed[r] * v->per_capacity[r]);
        whole[PRESSED + r] = (float)(pressed[r] * v->per_capacity[r]);
        double left = 1.0 - (double)whole[ASKED + r], want = wanted[r] * v->per_capacity[r];
        left = left < 0.0 ? 0.0 : left;
        if (r != CACHE && want > left) share = smaller(left / want, share);
        if (r != CACHE && !isnan(most) && !(whole[ASKED + r] <= most)) most = whole[ASKED + r];
    }
    most -= 1.0f;
    most = most < -1.0f ? -1.0f : most > 1.0f ? 1.0f : most;
    whole[VMS] = (float)*v->count;
    whole[MEAN_DELAY] = (float)log1p(delay / larger((double)t->n, 1.0));
    bring_within(whole, v->host_bounds, HOST_FEATURES, HOST_FEATURES);
    for (int64_t i = 0; i < t->n; i++) {
        m->hidden[i] = in->unsure[i] ? m->hidden[i] + 1.0 : 0.0;
        double grown = grown_to(m->most[i], size_of(v, in->need + i * R));
        see_vm(t, v, in, i, room[i], m->last[i], m->hidden[i], grown, share, most, vms + i * VM_FEATURES);
        remember(v->kept, m->lately + i * 2 * KEPT, vms + i * VM_FEATURES);
        m->last[i] = in->need[i * R + CPU];
    }
}

static double clipped(double x, int64_t low, int64_t high) {
    return x < (double)low ? (double)low : x > (double)high ? (double)high : x;
}

/* Corrected.allocate() of one host, but for asking triage. */
void correct(const tables_t *t, double limit, const float *action, const double *ask, const double *need,
             double *favour, double *ask_out, double *need_out) {
    for (int64_t i = 0; i < t->n; i++) {
        double factor[ACTIONS];
        for (int k = 0; k < ACTIONS; k++) {
            double x = (double)action[i * ACTIONS + k];
            x = isnan(x) ? 0.0 : x < -limit ? -limit : smaller(x, limit);
            factor[k] = exp(x);
        }
        favour[i] = factor[0];
        for (int r = 0; r < R; r++) {
            int64_t at = i * R + r;
            need_out[at] = r == CACHE ? need[at] : clipped(need[at] * factor[1 + r], t->floor[at], t->cap[at]);
            double more = larger(ask[at], need_out[at]);
            ask_out[at] = clipped(r == CACHE ? more * factor[1 + r] : more, t->floor[at], t->cap[at]);
        }
    }
}

/* Assessor.propose(): shrink a proposal to what fits. */
void shrink(const tables_t *t, double *given) {
    for (const pool_t *p = t->pool; p < t->pool + t->pools; p++) {
        double total = 0.0;
        for (int64_t k = 0; k < p->count; k++) total += given[p->rows[k] * R + p->resource];
        double over = total / larger((double)p->capacity, 1.0);
        for (int64_t k = 0; over > 1.0 && k < p->count; k++) given[p->rows[k] * R + p->resource] /= over;
    }
}

/* Assessor.score(): by how much more of what is due ``policy`` leaves undone than ``other``. */
double difference(const tables_t *t, const due_demand_t *d, const double *policy, const double *other) {
    double sum = 0.0;
    for (int64_t i = 0; i < t->n; i++) {
        double least[2] = {1.0, 1.0}, pressing = d->rate[i];
        pressing = pressing < d->least ? d->least : pressing > 1.0 ? 1.0 : pressing;
        for (int r = 0; r < R; r++) {
            int64_t at = i * R + r;
            double wanted = fmax(d->demand_low[at], d->usage[at]); /* observed_demand() */
            if ((d->quality[at] & CENSORED) && !(d->demand_low[at] > d->usage[at] * 1.02)) wanted *= d->probe;
            if (!d->judged[r] || !isfinite(wanted) || wanted * pressing <= 0.0) continue;
            least[0] = smaller(larger(policy[at] / (wanted * pressing), 0.0), least[0]);
            least[1] = smaller(larger(other[at] / (wanted * pressing), 0.0), least[1]);
        }
        sum += (least[1] - least[0]) * d->weight[i];
    }
    return sum;
}
