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

typedef int32_t places_t[TABLES * BLOCK];
enum { WELL_AHEAD = 4 * LANES };

/* Where the cells of tick ``count`` lie, in numbers from the first cell of series ``s`` on. */
CLONES static void find(const mixture_t *m, int64_t count, int64_t s, places_t at) {
    const float *was = m->was + count % REMEMBERED * (1 + TABLES) * m->size + s;
    int columns = m->size - s < BLOCK ? (int)(m->size - s) : BLOCK;
    for (int i = 0; i < TABLES; i++) {
        for (int j = 0; j < columns; j++) at[i * BLOCK + j] = ((int32_t)was[(1 + i) * m->size + j] + j * CELLS) * CELL;
        for (int j = columns; j < BLOCK; j++) at[i * BLOCK + j] = 0;
    }
}

/* The cells that a tick needs are scattered: those that it reads are fetched while other things are done. */
void fetch_cells(const mixture_t *m, int64_t s, int n) {
    places_t at;
    find(m, m->count, s, at);
    for (int i = 0; i < TABLES; i++)
        for (int j = 0; j < n; j++) __builtin_prefetch(m->cells + s * CELLS * CELL + at[i * BLOCK + j], 0, 2);
}

/* Cells are read and written LANES at a time, those of as many series: their numbers are turned so that each stands in
 * a vector of its own, and back. */
typedef int32_t chosen_t __attribute__((vector_size(4 * LANES)));
typedef float loose_t __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float entry_t __attribute__((vector_size(4 * ENTRY), aligned(4), may_alias));

#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define FOUR(a, of) __builtin_shufflevector(a, a, of, of + 1, of + 2, of + 3)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (chosen_t){__VA_ARGS__})
#define FOUR(a, of) ((entry_t){(a)[of], (a)[of + 1], (a)[of + 2], (a)[of + 3]})
#endif

/* Macros: where there is no AVX, gcc tells of every function that takes or returns such a vector, also inlined ones. */
#define OF_ALL(x) ((lanes_t){x, x, x, x, x, x, x, x})
#define EITHER(which, a, b) ((lanes_t)(((which) & (chosen_t)(a)) | (~(which) & (chosen_t)(b))))
#define LARGER(a, b) EITHER((a) > (b), a, b)
#define SMALLER(a, b) EITHER((a) < (b), a, b)

/* A 4 x 4 matrix in either half of four vectors, turned. */
INLINE void turn_halves(const lanes_t *row, lanes_t *to) {
    lanes_t low[2], high[2];
    for (int i = 0; i < 2; i++) {
        low[i] = PICK(row[2 * i], row[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        high[i] = PICK(row[2 * i], row[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    to[0] = PICK(low[0], low[1], 0, 1, 8, 9, 4, 5, 12, 13), to[1] = PICK(low[0], low[1], 2, 3, 10, 11, 6, 7, 14, 15);
    to[2] = PICK(high[0], high[1], 0, 1, 8, 9, 4, 5, 12, 13), to[3] = PICK(high[0], high[1], 2, 3, 10, 11, 6, 7, 14, 15);
}

/* An entry of each of eight cells to a vector for each of its numbers, and back. */
INLINE void turn(const float *cells, const int32_t *at, lanes_t *to) {
    lanes_t row[ENTRY]; /* what is read beyond an entry is of the same cache line: the next, or what is one over */
    for (int i = 0; i < ENTRY; i++)
        row[i] = PICK(*(const loose_t *)(cells + at[i]), *(const loose_t *)(cells + at[i + ENTRY]), 0, 1, 2, 3, 8, 9, 10, 11);
    turn_halves(row, to);
}
INLINE void turn_back(const lanes_t *from, float *cells, const int32_t *at) {
    lanes_t row[ENTRY];
    turn_halves(from, row);
    for (int i = 0; i < ENTRY; i++) {
        *(entry_t *)(cells + at[i]) = FOUR(row[i], 0);
        *(entry_t *)(cells + at[i + ENTRY]) = FOUR(row[i], ENTRY);
    }
}

CLONES void recall_cells(const history_t *h, mixture_t *m, int64_t s, int n, const row_t *recent, row_t *each) {
    static const int AT[LEVELS] = {QUANTILES, QUANTILES + 1, QUANTILES + 3};
    const lanes_t zero = OF_ALL(0.0F);
    int64_t size = h->size;
    const float *was = m->was + m->count % REMEMBERED * (1 + TABLES) * size + s;
    float *cells = m->cells + s * CELLS * CELL;
    places_t at;
    find(m, m->count, s, at);
    for (int i = 0; i < TABLES; i++, each += HORIZONS * LEVELS)
        for (int j = 0; j < n; j += LANES) {
            const int32_t *here = at + i * BLOCK + j;
            if (i < TABLES - 1 || j + WELL_AHEAD < n)
                for (int l = 0; l < LANES; l++) __builtin_prefetch(cells + here[WELL_AHEAD + l], 0);
            for (int l = 0; l < LANES && j + l < n; l++)
                for (int k = 0; k < HORIZONS; k++) {
                    float *new = cells + here[l] + k * ENTRY;
                    if (new[VISITS] != 0.0F) continue;
                    int64_t of = s + j + l;
                    for (int q = 0; q < LEVELS; q++) {
                        new[q] = i ? h->climate[AT[q] * size + of] : recent[k * LEVELS + q][j + l] - was[j + l];
                        new[EXCESS + q] = above(m->error[k * size + of], 0.02F * h->climate[PEAK * size + of]);
                    }
                }
            lanes_t base = zero, q[ENTRY];
            if (!i) memcpy(&base, was + j, sizeof base);
            for (int k = 0; k < HORIZONS; k++) {
                turn(cells + k * ENTRY, here, q);
                for (int l = 0; l < LEVELS; l++) *(lanes_t *)(each[k * LEVELS + l] + j) = LARGER(q[l] + base, zero);
            }
        }
}

CLONES void learn_cells(const history_t *h, mixture_t *m, int k, int64_t s, int n) {
    static const float LEVEL[] = {0.5F, 0.9F, 0.99F}, INVERSE[] = {2.0F, 10.0F, 100.0F};
    static const float FEWEST[] = {4.0F, 20.0F, 100.0F}, MOST[] = {3000.0F, 4000.0F, 8000.0F};
    const lanes_t zero = OF_ALL(0.0F), one = OF_ALL(1.0F), most = OF_ALL(0.5F), least = OF_ALL(0.05F);
    int64_t then = m->count - AHEAD[k];
    const float *base_of = m->was + then % REMEMBERED * (1 + TABLES) * m->size + s;
    const float *now = k ? h->five + s : h->y + (int64_t)h->newest * m->size + s;
    float *cells = m->cells + s * CELLS * CELL + k * ENTRY;
    _Alignas(64) row_t truth = {0.0F}, judged = {0.0F}, sure = {0.0F};
    places_t at;
    find(m, then, s, at);
    for (int j = 0; j < n; j++) {
        truth[j] = now[j];
        judged[j] = h->clean[s + j] > AHEAD[k] ? 1.0F : 0.0F;
        sure[j] = h->loose[s + j] < WIDTHS[k] ? 0.0F : 1.0F;
    }
    for (int i = 0; i < TABLES; i++)
        for (int j = 0; j < n; j += LANES) {
            const int32_t *here = at + i * BLOCK + j;
            if (i < TABLES - 1 || j + WELL_AHEAD < n)
                for (int l = 0; l < LANES; l++) {
                    const float *next = cells + here[WELL_AHEAD + l];
                    __builtin_prefetch(next, 1), __builtin_prefetch(next + EXCESS, 1);
                }
            lanes_t base = zero, q[ENTRY], excess[ENTRY];
            if (!i) memcpy(&base, base_of + j, sizeof base);
            turn(cells, here, q), turn(cells + EXCESS, here, excess);
            lanes_t seen = *(lanes_t *)(truth + j) - base, yes = *(lanes_t *)(judged + j), known = *(lanes_t *)(sure + j);
            for (int l = 0; l < LEVELS; l++) {
                lanes_t over = seen - q[l], enough = OF_ALL(MOST[l]), visits = q[VISITS] + OF_ALL(FEWEST[l]);
                chosen_t up = over > zero;
                lanes_t counts = yes * EITHER(up, one, known), gain = OF_ALL(INVERSE[l]) / SMALLER(visits, enough);
                lanes_t few = SMALLER(gain, most), share = LARGER(few, least);
                excess[l] += EITHER(up, (over - excess[l]) * (counts * share), zero);
                lanes_t moved = q[l] + gain * excess[l] * (OF_ALL(LEVEL[l]) - EITHER(up, zero, one)) * counts;
                q[l] = LARGER(moved, -base);
            }
            q[VISITS] += yes * known;
            turn_back(q, cells, here), turn_back(excess, cells + EXCESS, here);
        }
}
