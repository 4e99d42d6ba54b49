/* The ring of what was seen and the mixture of forecasts: policies/forecast, History.push() and Mixture.step(). */
#include "forecast.h"

#include <math.h>
#include <string.h>

#include "dense.h"
#include "numbers.h"

static const float AHEAD[HORIZONS] = {1, 5, 10}, LEVEL[LEVELS] = {0.5F, 0.9F, 0.99F};
static const int WIDTHS[HORIZONS] = {1, 5, 5};
static const double MOST = 1e6, FLOOR = 0.01;

/* climate.py: follow_climate() for one series. */
INLINE void follow_climate(float *c, int64_t size, float value, float five, float slow) {
    static const float KEPT[4] = {0.5F, 0.9F, 0.97F, 0.99F};
    float ticks = c[TICKS * size] += 1.0F, gain = 1.0F / ticks;
    c[MEAN * size] += (value - c[MEAN * size]) * above(gain, (float)(1.0 / 4000.0));
    float peak = c[PEAK * size] = above(c[PEAK * size] * 0.9998F, five);
    float top = c[TOP * size] = above(c[TOP * size] * 0.9999F, value);
    float step = above(gain, 0.004F) * peak;
    for (int q = 0; q < 4; q++) {
        float *level = &c[(QUANTILES + q) * size];
        *level = above(*level + step * (KEPT[q] - (five <= *level ? 1.0F : 0.0F)), 0.0F);
    }
    float since = c[SINCE * size];
    bool burst = value > 0.05F * top && value > 3.0F * slow, begun = burst && since > 2.0F;
    float off = begun ? since - c[BETWEEN * size] : 0.0F;
    float most = 2.0F * c[SPREAD * size] + 2.0F;
    c[BETWEEN * size] += 0.2F * below(above(off, -most), most);
    c[SPREAD * size] += 0.2F * (begun ? fabsf(off) - c[SPREAD * size] : 0.0F);
    c[HEIGHT * size] += 0.2F * (begun ? value - c[HEIGHT * size] : 0.0F);
    c[SINCE * size] = burst ? 0.0F : below(since + 1.0F, 3000.0F);
    bool active = value > above(0.3F * slow, 0.01F);
    float on = c[ON * size], idle = c[OFF * size];
    c[LATEST_OFF * size] = active && idle > 0.0F ? idle : c[LATEST_OFF * size];
    c[LATEST_ON * size] = !active && on > 0.0F ? on : c[LATEST_ON * size];
    c[ON * size] = active ? below(on + 1.0F, 3000.0F) : 0.0F;
    c[OFF * size] = active ? 0.0F : below(idle + 1.0F, 3000.0F);
}

/* History._begin() for one series: its first value is its whole past. */
static void give_past(history_t *h, int64_t s, double first) {
    int64_t size = h->size, rows = 2 * WINDOW * size;
    for (int t = 0; t < WINDOW; t++) {
        int64_t at = (h->newest + 1 + t) % WINDOW * size + s;
        for (int twice = 0; twice < 2; twice++, at += WINDOW * size) {
            h->y[at] = (float)first, h->w[at] = 0.0F;
            h->running[at] = t * first, h->running[rows + at] = t * (first * first), h->running[2 * rows + at] = 0.0;
        }
    }
    h->slow[s] = first;
    h->clean[s] = 0;
}

/* push() where nothing is missing and nobody is new: without a branch for each series. */
CLONES static void push_all(history_t *h, const double *demand, const double *waiting, const bool *censored) {
    int64_t series = h->series, size = h->size, rows = 2 * WINDOW * size, now = h->newest * size, last = h->before * size;
    int64_t again = now + WINDOW * size;
    int64_t kept = h->gap ? 0 : INT64_MAX;
    double *sums = h->running, *squares = sums + rows, *waits = squares + rows, *slow = h->slow;
    const double *back = sums + again - 20 * size;
    float *y = h->y + again, *w = h->w + again, *first_y = h->y + now, *first_w = h->w + now;
    float *scale = h->scale, *five = h->five, *age = h->age, *climate = h->climate;
    int64_t *clean = h->clean, *loose = h->loose;
#pragma GCC ivdep
    for (int64_t s = 0; s < series; s++) {
        double value = demand[s], wait = waiting[s] > 0.0 ? smaller(waiting[s], MOST) : 0.0;
        double sum = sums[last + s] + value, square = squares[last + s] + value * value, waited = waits[last + s] + wait;
        sums[now + s] = sums[again + s] = sum;
        squares[now + s] = squares[again + s] = square;
        waits[now + s] = waits[again + s] = waited;
        y[s] = first_y[s] = (float)value, w[s] = first_w[s] = (float)wait;
        double level = slow[s] + (value - slow[s]) * (1.0 / SLOW_TICKS);
        slow[s] = level;
        scale[s] = (float)larger(((sum - back[s]) * (1.0 / 20.0) + level) * 0.5, FLOOR);
    }
#pragma GCC ivdep
    for (int64_t s = 0; s < series; s++) {
        clean[s] = (clean[s] + 1) & kept;
        loose[s] = censored[s] ? 0 : loose[s] + 1;
    }
#pragma GCC ivdep
    for (int64_t s = 0; s < series; s++) {
        float sum = 0.0F;
        for (int t = WIDTH - 1; t >= 0; t--) sum += y[s - t * size];
        five[s] = sum * (float)(1.0 / WIDTH);
        age[s] = 0.0F;
    }
#pragma GCC ivdep
    for (int64_t s = 0; s < series; s++) follow_climate(climate + s, size, y[s], five[s], (float)slow[s]);
}

CLONES bool push(history_t *h, const double *demand, const double *waiting, const bool *censored) {
    int64_t series = h->series, size = h->size, rows = 2 * WINDOW * size, now = h->newest * size, last = h->before * size;
    int64_t again = now + WINDOW * size, back = again - 20 * size;
    int missing = 0;
    bool old = true;
    for (int64_t s = 0; s < series; s++) missing |= !(demand[s] >= 0.0) | !(demand[s] <= MOST);
    if (h->whole && !missing) {
        push_all(h, demand, waiting, censored);
        return true;
    }
    for (int64_t s = 0; s < series; s++) {
        bool known = demand[s] >= 0.0 && demand[s] <= MOST;
        double value = known ? demand[s] : (double)h->y[last + s];
        double wait = known ? smaller(fmax(waiting[s], 0.0), MOST) : (double)h->w[last + s];
        h->age[s] = known ? 0.0F : h->age[s] + 1.0F;
        h->clean[s] = known && !h->gap ? h->clean[s] + 1 : 0;
        h->loose[s] = censored[s] ? 0 : h->loose[s] + 1;
        double sums[3] = {value, value * value, wait};
        for (int i = 0; i < 3; i++) {
            double *at = h->running + i * rows + s;
            at[now] = at[again] = at[last] + sums[i];
        }
        h->y[now + s] = h->y[again + s] = (float)value;
        h->w[now + s] = h->w[again + s] = (float)wait;
        old = old && h->seen[s] >= SLOW_TICKS;
        bool fresh = known && h->seen[s] == 0;
        h->seen[s] += known;
        if (fresh) give_past(h, s, value);
        if (known) {
            int64_t ticks = h->seen[s] < SLOW_TICKS ? (h->seen[s] > 1 ? h->seen[s] : 1) : SLOW_TICKS;
            h->slow[s] += (value - h->slow[s]) * (1.0 / (double)ticks);
        }
        double level = ((h->running[again + s] - h->running[back + s]) * (1.0 / 20.0) + h->slow[s]) * 0.5;
        h->scale[s] = (float)larger(level, FLOOR);
        float five = 0.0F;
        for (int t = WIDTH - 1; t >= 0; t--) five += h->y[again - t * size + s];
        h->five[s] = five * (float)(1.0 / WIDTH);
        if (known) follow_climate(h->climate + s, size, h->y[now + s], h->five[s], (float)h->slow[s]);
    }
    return !missing && old;
}

/* FeatureMaker.make() for ``n`` series from ``s`` on. */
CLONES static void features(const history_t *h, int64_t s, int n, row_t *x) {
    static const int FROM[BLOCKS] = {20, 30, 50, 100, 0, 0, 0, 1}, TO[BLOCKS] = {30, 50, 100, 200, 10, 100, 1, 10};
    static const int OF[BLOCKS] = {0, 0, 0, 0, 1, 1, 2, 2};
    int64_t size = h->size, now = (h->newest + WINDOW) * size + s, rows = 2 * WINDOW * size;
    float per[BLOCK];
    for (int j = 0; j < n; j++) per[j] = 1.0F / h->scale[s + j];
    for (int l = 0; l < LAGS; l++) {
        const float *y = h->y + now - (LAGS - 1 - l) * size;
        for (int j = 0; j < n; j++) x[l][j] = below(sqrtf(y[j] * per[j]), 8.0F);
    }
    for (int b = 0; b < BLOCKS; b++) {
        const double *sums = h->running + OF[b] * rows + now, *a = sums - FROM[b] * size, *z = sums - TO[b] * size;
        double share = 1.0 / (TO[b] - FROM[b]);
        float *to = x[LAGS + b];
        if (OF[b] == 1)
            for (int j = 0; j < n; j++) to[j] = (float)sqrt(larger((a[j] - z[j]) * share, 0.0));
        else
            for (int j = 0; j < n; j++) to[j] = (float)larger((a[j] - z[j]) * share, 0.0);
        for (int j = 0; j < n; j++) to[j] = below(sqrtf(to[j] * per[j]), 8.0F);
    }
    const float *c = h->climate + s, *newest = h->y + now;
    for (int j = 0; j < n; j++) {
        x[PLAIN][j] = below(newest[j] * per[j], 64.0F);
        x[PLAIN + 1][j] = below(h->five[s + j] * per[j], 64.0F);
        x[ONE][j] = 1.0F;
        x[AGE][j] = below(h->age[s + j] * (1.0F / 16.0F), 1.0F);
        for (int kind = 0; kind < KINDS; kind++) x[KIND + kind][j] = (s + j) % KINDS == kind ? 1.0F : 0.0F;
        x[ROOTS][j] = below(sqrtf((float)h->slow[s + j] * per[j]), 20.0F);
        x[ROOTS + 1][j] = below(sqrtf(c[MEAN * size + j] * per[j]), 20.0F);
        x[ROOTS + 2][j] = below(sqrtf(c[PEAK * size + j] * per[j]), 20.0F);
        float since = c[SINCE * size + j], between = c[BETWEEN * size + j];
        x[RHYTHM][j] = sqrtf(since) * 0.1F;
        x[RHYTHM + 1][j] = sqrtf(between) * 0.1F;
        x[RHYTHM + 2][j] = below(since / between, 3.0F);
        x[RHYTHM + 3][j] = below(c[SPREAD * size + j] / between, 3.0F);
        x[RHYTHM + 4][j] = below(sqrtf(c[HEIGHT * size + j] * per[j]), 20.0F);
        float width = c[SPREAD * size + j] * 0.5F + 3.0F;
        for (int due = 0; due < 2; due++) {
            float off = (since + (due ? 8.0F : 3.0F) - between) / width;
            x[RHYTHM + 5 + due][j] = 1.0F / (1.0F + off * off);
        }
        x[SCALE][j] = below(sqrtf(sqrtf(h->scale[s + j])), 20.0F);
    }
    for (int q = 0; q < 4; q++)
        for (int j = 0; j < n; j++) x[ROOTS + 3 + q][j] = below(sqrtf(c[(QUANTILES + q) * size + j] * per[j]), 20.0F);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < n; j++) x[RUNS + i][j] = sqrtf(c[(ON + i) * size + j]) * 0.1F;
    static const int OF_PARTNER[4 + SHOWN] = {RUNS, RUNS + 1, RUNS + 2, RUNS + 3, LAGS - 1, PLAIN + 1, LAGS, LAGS + 2};
    for (int i = 0; i < 4 + SHOWN; i++) {
        const float *from = x[OF_PARTNER[i]];
        float *to = x[PARTNER + i];
        for (int j = 0; j < BLOCK; j += KINDS) {
            for (int kind = 0; kind < KINDS; kind++) to[j + kind] = from[j + CPU];
            to[j + CPU] = from[j + IO];
        }
    }
}

void show(const history_t *h, float *out) {
    _Alignas(64) row_t x[FEATURES] = {{0.0F}};
    for (int64_t s = 0; s < h->series; s += BLOCK) {
        int n = h->series - s < BLOCK ? (int)(h->series - s) : BLOCK;
        features(h, s, n, x);
        for (int i = 0; i < FEATURES; i++) memcpy(out + i * h->series + s, x[i], sizeof(float) * (size_t)n);
    }
}

/* A hidden layer: what is below 0 is 0, and a unit that is always 1 comes last. */
CLONES static void hidden(const float *w, int rows, int cols, const row_t *x, row_t *out) {
    dense(w, rows, cols, (const lanes_t *)x, (lanes_t *)out);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < BLOCK; j++) out[i][j] = above(out[i][j], 0.0F);
    for (int j = 0; j < BLOCK; j++) out[rows][j] = 1.0F;
}

/* QuantileNetwork.predict() */
CLONES static void network(const history_t *h, const mixture_t *m, int64_t s, int n, row_t *x, row_t *each) {
    _Alignas(64) row_t one[MOST_HIDDEN + 1], two[MOST_HIDDEN + 1];
    hidden(m->layer[0], m->hidden[0], FEATURES, x, one);
    hidden(m->layer[1], m->hidden[1], m->hidden[0] + 1, one, two);
    dense(m->layer[2], HORIZONS * LEVELS, m->hidden[1] + 1, (const lanes_t *)two, (lanes_t *)each);
    for (int i = 0; i < HORIZONS * LEVELS; i++)
        for (int j = 0; j < n; j++) {
            float z = each[i][j], reach = i % LEVELS == LEVELS - 1 ? above(x[ROOTS + 2][j], 1.0F) : 1.0F;
            each[i][j] = (sqrtf(z * z + 4.0F) + z) * (h->scale[s + j] * 0.5F) * reach;
            if (i % LEVELS) each[i][j] += each[i - 1][j];
        }
}

/* Mixture._learn() */
CLONES static void learn(const history_t *h, mixture_t *m, const mixture_options_t *o, int k, int64_t s, int n) {
    int64_t size = h->size;
    int members = m->members;
    const float *past = m->past[k] + m->count / HORIZONS % m->slots[k] * (members + 1) * LEVELS * size + s;
    const float *truth = k ? h->five + s : h->y + (int64_t)h->newest * size + s;
    float judged[BLOCK], loose[BLOCK];
    for (int j = 0; j < n; j++) {
        judged[j] = (float)h->clean[s + j] > AHEAD[k] ? 1.0F : 0.0F;
        loose[j] = h->loose[s + j] < WIDTHS[k] ? 1.0F : 0.0F;
    }
    float *error = m->error + k * size + s;
    float before[BLOCK]; /* of the error, which changes with the median alone */
    for (int j = 0; j < n; j++) {
        float miss = truth[j] - past[members * LEVELS * size + j];
        before[j] = error[j] + (fabsf(miss) - error[j]) * o->error_gain * judged[j];
    }
    memcpy(error, before, sizeof(float) * (size_t)n);
    const float *said = past + members * LEVELS * size;
    for (int q = 0; q < LEVELS; q++, said += size) {
        float slope[BLOCK], pull[BLOCK], sum[BLOCK] = {0.0F};
        float *usual = m->loss + (k * LEVELS + q) * size + s;
        for (int j = 0; j < n; j++) {
            float miss = truth[j] - said[j], under = miss <= 0.0F ? 1.0F : 0.0F;
            slope[j] = (LEVEL[q] - under) * judged[j] * (1.0F - under * loose[j]);
            usual[j] += (miss * slope[j] - usual[j]) * o->error_gain * judged[j];
            pull[j] = slope[j] * o->eta[q] / (usual[j] + 1e-6F);
        }
        for (int i = 0; i < members; i++) {
            float *weight = m->weights + ((i * HORIZONS + k) * LEVELS + q) * size + s;
            const float *each = past + (i * LEVELS + q) * size;
            for (int j = 0; j < n; j++) {
                weight[j] *= below(above((each[j] - said[j]) * pull[j], -0.5F), 3.0F) + 1.0F;
                sum[j] += weight[j];
            }
        }
        for (int j = 0; j < n; j++) sum[j] = (1.0F - o->share) / sum[j];
        for (int i = 0; i < members; i++) {
            float *weight = m->weights + ((i * HORIZONS + k) * LEVELS + q) * size + s;
            float shared = o->share * o->prior[i][q];
            for (int j = 0; j < n; j++) weight[j] = weight[j] * sum[j] + shared;
        }
        float *offset = m->offset + (k * LEVELS + q) * size + s;
        const float *recent = past + q * size;
        for (int j = 0; j < n; j++) {
            float miss = truth[j] - recent[j], under = miss <= 0.0F ? 1.0F : 0.0F;
            float over = recent[j] > 0.0F || miss > 0.0F ? 1.0F : 0.0F;
            offset[j] += (LEVEL[q] - under) * judged[j] * (1.0F - under * loose[j]) * over * o->offset_rate[q] * error[j];
        }
        float *factor = m->factor + (k * LEVELS + q) * size + s;
        for (int j = 0; j < n; j++) {
            float busy = said[j] >= (float)FLOOR ? 1.0F : 0.0F;
            float now = factor[j] * (slope[j] * o->factor_rate[q] * busy + 1.0F);
            factor[j] = above(below(now, 5.0F), (float)(1.0 / 5.0));
        }
    }
}

/* Mixture._notice_steps() */
static void notice_steps(const history_t *h, mixture_t *m, int64_t s, int n) {
    int64_t size = h->size, now = (int64_t)(h->newest + WINDOW) * size + s, rows = 2 * WINDOW * size;
    for (int j = 0; j < n; j++) {
        const double *sums = h->running + now + j;
        double mean = (sums[-3 * size] - sums[-203 * size]) * (1.0 / 200.0);
        double square = (sums[rows - 3 * size] - sums[rows - 203 * size]) * (1.0 / 200.0) - mean * mean;
        double most = 4.0 * sqrt(larger(square, 0.0)) + 0.1 * mean + FLOOR;
        const float *y = h->y + now + j;
        float low = below(below(y[0], y[-size]), y[-2 * size]), high = above(above(y[0], y[-size]), y[-2 * size]);
        if (low > mean + most || (high < mean - most && h->loose[s + j] >= 3)) m->stepped[s + j] = 0.95F;
    }
}

/* The members' answers, (M, K * Q, BLOCK). Mixture._predict() */
CLONES static void predict(const history_t *h, mixture_t *m, int64_t s, int n, row_t *x, row_t *each) {
    enum { KQ = HORIZONS * LEVELS };
    const float *five = h->five + s;
    for (int i = 0; i < KQ; i++) {
        const float *offset = m->offset + i * h->size + s;
        for (int j = 0; j < n; j++) each[i][j] = above(five[j] + offset[j], 0.0F);
    }
    if (m->hidden[0]) {
        features(h, s, n, x);
        network(h, m, s, n, x, each + (1 + TABLES) * KQ);
    }
    recall_cells(h, m, s, n, (const row_t *)each, each + KQ);
}

CLONES void mix(const history_t *h, mixture_t *m, const mixture_options_t *o, float *out) {
    enum { KQ = HORIZONS * LEVELS };
    _Alignas(64) row_t x[FEATURES] = {{0.0F}}, each[MOST_MEMBERS * KQ], said[KQ];
    int64_t size = h->size, series = h->series;
    int now = (int)(m->count % HORIZONS);
    for (int64_t s = 0; s < series; s += BLOCK) {
        int n = series - s < BLOCK ? (int)(series - s) : BLOCK;
        look(h, m, s, n);
        fetch_cells(m, s, n);
        if (m->count > (int64_t)AHEAD[now] + HORIZONS) {
            learn(h, m, o, now, s, n);
            learn_cells(h, m, now, s, n);
        }
        for (int j = 0; j < n; j++) m->stepped[s + j] *= 0.8F;
        if (m->count % 2) notice_steps(h, m, s, n);
        predict(h, m, s, n, x, each);
        for (int i = 0; i < KQ; i++) {
            for (int j = 0; j < n; j++) said[i][j] = 0.0F;
            for (int member = 0; member < m->members; member++) {
                const float *weight = m->weights + (member * KQ + i) * size + s, *answer = each[member * KQ + i];
                for (int j = 0; j < n; j++) said[i][j] += weight[j] * answer[j];
            }
            for (int j = 0; j < n; j++) said[i][j] += (each[i][j] - said[i][j]) * m->stepped[s + j];
        }
        for (int i = 0; i < KQ; i++) { /* Mixture._correct() */
            const float *factor = m->factor + i * size + s;
            float *to = out + i * series + s;
            int q = i % LEVELS;
            const float *median = said[i - q];
            if (q)
                for (int j = 0; j < n; j++) to[j] = above(said[i][j] - median[j], 0.0F) * factor[j] + median[j];
            else
                for (int j = 0; j < n; j++) to[j] = above(median[j], 0.0F);
            for (int j = 0; j < n; j++) to[j] = to[j] < (float)FLOOR ? 0.0F : to[j];
            if (q > 1)
                for (int j = 0; j < n; j++) to[j] = above(to[j], to[j - series]);
        }
        for (int k = 0; k < HORIZONS; k++) { /* Mixture._keep() */
            int64_t due = m->count + (int64_t)AHEAD[k];
            if (due % HORIZONS != k) continue;
            float *kept = m->past[k] + due / HORIZONS % m->slots[k] * (m->members + 1) * LEVELS * size + s;
            for (int q = 0; q < LEVELS; q++) {
                for (int i = 0; i < m->members; i++)
                    memcpy(kept + (i * LEVELS + q) * size, each[i * KQ + k * LEVELS + q], sizeof(float) * (size_t)n);
                memcpy(kept + (m->members * LEVELS + q) * size, out + (k * LEVELS + q) * series + s,
                       sizeof(float) * (size_t)n);
            }
        }
    }
}
