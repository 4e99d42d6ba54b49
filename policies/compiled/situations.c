/* Quantiles by situation: policies/forecast/situations.py. */
#include <string.h>

#include "dense.h"
#include "forecast.h"

static const float FLOOR = 0.01F;
static const int AHEAD[HORIZONS] = {1, 5, 10};
static const float AT_LEVEL[LEVEL_EDGES] = {0.03F, 0.1F, 0.3F, 0.6F, 1.0F}, AT_TREND[TREND_EDGES] = {0.5F, 1.0F, 2.0F};
static const float AT_IDLE[IDLE_EDGES] = {1, 3, 6, 12, 25, 50, 90, 110, 150}, AT_BUSY[BUSY_EDGES] = {3, 8, 20, 60, 110};
static const float AT_RUN[RUN_EDGES] = {3, 8, 20, 60}, AT_SHORT[SHORT_EDGES] = {3, 20, 110};
static const int WIDTHS[HORIZONS] = {1, 5, 5};

/* How many edges ``x`` has reached. */
INLINE float bin(float x, const float *edges, int count) {
    float out = 0.0F;
    for (int i = 0; i < count; i++) out += x >= edges[i] ? 1.0F : 0.0F;
    return out;
}

CLONES void look(const history_t *h, mixture_t *m, int64_t s, int n) {
    int64_t size = h->size, now = (int64_t)(h->newest + WINDOW) * size + s;
    const float *newest = h->y + now, *five = h->five + s, *usual = h->climate + (QUANTILES + 1) * size + s;
    const double *sums = h->running + now;
    float *base = m->now + s, *idle = m->now + h->series + s;
    float *was = m->was + m->count % REMEMBERED * (1 + TABLES) * size + s, own[BLOCK], run[BLOCK];
    const float *on = h->climate + ON * size + s, *off = h->climate + OFF * size + s;
    for (int j = 0; j < n; j++) {
        base[j] += (h->seen[s + j] <= 1 ? 1.0F : 0.1F) * (newest[j] - base[j]);
        idle[j] = newest[j] > FLOOR ? 0.0F : below(idle[j] + 1.0F, 500.0F);
        own[j] = bin((five[j] + FLOOR) / (usual[j] + FLOOR), AT_LEVEL, LEVEL_EDGES);
        run[j] = on[j] > 0.0F ? bin(on[j], AT_RUN, RUN_EDGES) : bin(off[j], AT_RUN, RUN_EDGES) + (RUN_EDGES + 1);
    }
    for (int j = 0; j < n; j++) {
        float before = (float)((sums[j - 5 * size] - sums[j - 25 * size]) * (1.0 / 20.0));
        float trend = bin((five[j] + FLOOR) / (before + FLOOR), AT_TREND, TREND_EDGES);
        was[j] = base[j];
        was[size + j] = own[j] * (TREND_EDGES + 1) + trend;
        was[2 * size + j] = IDLE + bin(idle[j], AT_IDLE, IDLE_EDGES);
        was[3 * size + j] = BUSY + bin(idle[j], AT_BUSY, BUSY_EDGES) * (LEVEL_EDGES + 1) + own[j / KINDS * KINDS];
        float partner = run[j / KINDS * KINDS + (j % KINDS == CPU ? IO : CPU)];
        was[4 * size + j] = RUN + partner * (SHORT_EDGES + 1) + bin(idle[j], AT_SHORT, SHORT_EDGES);
    }
}

/* The cells that a tick reads and those that it learns are scattered: they are fetched while other things are done. */
void fetch_cells(const mixture_t *m, int k, int64_t s, int n) {
    const float *now = m->was + m->count % REMEMBERED * (1 + TABLES) * m->size + s;
    const float *past = m->was + (m->count + REMEMBERED - AHEAD[k]) % REMEMBERED * (1 + TABLES) * m->size + s;
    for (int i = 1; i <= TABLES; i++)
        for (int j = 0; j < n; j++) {
            const float *cells = m->cells + (s + j) * CELLS * HORIZONS * ENTRY;
            const float *read = cells + (int64_t)now[i * m->size + j] * HORIZONS * ENTRY;
            __builtin_prefetch(cells + ((int64_t)past[i * m->size + j] * HORIZONS + k) * ENTRY, 1);
            __builtin_prefetch(read, 1);
            __builtin_prefetch(read + HORIZONS * ENTRY - 1, 1);
        }
}

/* A number for each level, one over: a cell is two of these, its quantiles with the visits and its mean excesses. */
typedef float four_t __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t chosen_t __attribute__((vector_size(16)));
enum { EXCESS = 4 };

INLINE four_t of_all(float x) { return (four_t){x, x, x, x}; }
INLINE four_t either(chosen_t which, four_t a, four_t b) {
    return (four_t)((which & (chosen_t)a) | (~which & (chosen_t)b));
}
INLINE four_t larger_of(four_t a, four_t b) { return either(a > b, a, b); }
INLINE four_t smaller_of(four_t a, four_t b) { return either(a < b, a, b); }

void recall_cells(const history_t *h, mixture_t *m, int64_t s, int n, const row_t *recent, row_t *each) {
    static const int AT[LEVELS] = {QUANTILES, QUANTILES + 1, QUANTILES + 3};
    int64_t size = h->size;
    const float *was = m->was + m->count % REMEMBERED * (1 + TABLES) * size + s;
    for (int i = 0; i < TABLES; i++, each += HORIZONS * LEVELS)
        for (int j = 0; j < n; j++) {
            float *cell = m->cells + ((s + j) * CELLS + (int64_t)was[(1 + i) * size + j]) * HORIZONS * ENTRY;
            float base = i ? 0.0F : was[j];
            for (int k = 0; k < HORIZONS; k++, cell += ENTRY) {
                if (cell[VISITS] == 0.0F)
                    for (int q = 0; q < LEVELS; q++) {
                        float start = above(m->error[k * size + s + j], 0.02F * h->climate[PEAK * size + s + j]);
                        float usual = h->climate[AT[q] * size + s + j];
                        cell[q] = i ? usual : recent[k * LEVELS + q][j] - base;
                        cell[EXCESS + q] = start;
                    }
                four_t answer = larger_of(*(four_t *)cell + of_all(base), of_all(0.0F));
                for (int q = 0; q < LEVELS; q++) each[k * LEVELS + q][j] = answer[q];
            }
        }
}

void learn_cells(const history_t *h, mixture_t *m, int k, int64_t s, int n) {
    static const four_t LEVEL = {0.5F, 0.9F, 0.99F, 0.0F}, INVERSE = {2.0F, 10.0F, 100.0F, 0.0F};
    static const four_t FEWEST = {4.0F, 20.0F, 100.0F, 1.0F}, MOST = {3000.0F, 4000.0F, 8000.0F, 1.0F};
    const four_t none = of_all(0.0F), one = of_all(1.0F);
    int64_t size = m->size;
    const float *was = m->was + (m->count - AHEAD[k]) % REMEMBERED * (1 + TABLES) * size + s;
    const float *truth = k ? h->five + s : h->y + (int64_t)h->newest * size + s;
    float judged[BLOCK], loose[BLOCK];
    for (int j = 0; j < n; j++) {
        judged[j] = h->clean[s + j] > AHEAD[k] ? 1.0F : 0.0F;
        loose[j] = h->loose[s + j] < WIDTHS[k] ? 1.0F : 0.0F;
    }
    for (int i = 0; i < TABLES; i++)
        for (int j = 0; j < n; j++) {
            int64_t at = (s + j) * CELLS + (int64_t)was[(1 + i) * size + j];
            four_t *cell = (four_t *)(m->cells + (at * HORIZONS + k) * ENTRY), q = cell[0], excess = cell[1];
            float base = i ? 0.0F : was[j], sure = 1.0F - loose[j], visits = q[VISITS];
            four_t over = of_all(truth[j] - base) - q;
            chosen_t up = over > none;
            four_t counts = of_all(judged[j]) * either(up, one, of_all(sure));
            four_t gain = INVERSE / smaller_of(of_all(visits) + FEWEST, MOST);
            four_t share = larger_of(smaller_of(gain, of_all(0.5F)), of_all(0.05F));
            excess += either(up, (over - excess) * (counts * share), none);
            q = larger_of(q + gain * excess * (LEVEL - either(up, none, one)) * counts, of_all(-base));
            q[VISITS] = visits + judged[j] * sure;
            cell[0] = q, cell[1] = excess;
        }
}
