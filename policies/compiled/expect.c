/* What the next tick of a history and its mixture will read, read ahead: kernel.touch() of policies/forecast/mixture.py. */
#include "forecast.h"

#include <stddef.h>

static const int AHEAD[HORIZONS] = {1, 5, 10};
/* Rows of the running sums behind the newest: push(), features(), look(), notice_steps(). */
static const int SUMS[] = {0, 1, 3, 5, 10, 20, 25, 30, 50, 100, 200, 203}, SQUARES[] = {0, 1, 3, 10, 100, 203},
                 WAITS[] = {0, 1, 10};
enum { COUNT_SUMS = sizeof SUMS / sizeof *SUMS, COUNT_SQUARES = sizeof SQUARES / sizeof *SQUARES,
       COUNT_WAITS = sizeof WAITS / sizeof *WAITS };

static void read_all(const void *at, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) (void)*((const volatile char *)at + i);
}

static void read_rows(const history_t *h, int of, const int *back, int count, int newest) {
    for (int i = 0; i < count; i++)
        read_all(h->running + ((int64_t)of * 2 * WINDOW + newest + WINDOW - back[i]) * h->size, (size_t)h->series * 8);
}

void expect(const history_t *h, const mixture_t *m) {
    int newest = (h->newest + 1) % WINDOW;
    int64_t size = h->size, count = m->count + 1;
    size_t n = (size_t)h->series, row = (size_t)size * 4;
    read_all(h->y + (int64_t)newest * size, n * 4), read_all(h->w + (int64_t)newest * size, n * 4);
    read_all(h->w + (int64_t)(newest + WINDOW) * size, n * 4);
    read_all(h->y + (int64_t)(newest + WINDOW - LAGS + 1) * size, LAGS * row);
    for (int of = 0; of < 3; of++) { /* push() goes on from the first half */
        read_all(h->running + ((int64_t)of * 2 * WINDOW + newest) * size, n * 8);
        read_all(h->running + ((int64_t)of * 2 * WINDOW + h->newest) * size, n * 8);
    }
    read_rows(h, 0, SUMS, COUNT_SUMS, newest), read_rows(h, 1, SQUARES, COUNT_SQUARES, newest);
    read_rows(h, 2, WAITS, COUNT_WAITS, newest);
    read_all(h->seen, n * 8), read_all(h->clean, n * 8), read_all(h->loose, n * 8), read_all(h->slow, n * 8);
    read_all(h->age, n * 4), read_all(h->scale, n * 4), read_all(h->five, n * 4);
    read_all(h->climate, CLIMATE * row);
    size_t answers = HORIZONS * LEVELS * row, kept = (size_t)(m->members + 1) * LEVELS * row;
    read_all(m->weights, (size_t)m->members * answers);
    read_all(m->offset, answers), read_all(m->factor, answers), read_all(m->loss, answers);
    read_all(m->error, HORIZONS * row), read_all(m->now, 2 * n * 4), read_all(m->stepped, n * 4);
    if (m->out) read_all(m->out, HORIZONS * LEVELS * n * 4);
    int k = (int)(count % HORIZONS);
    read_all(m->past[k] + count / HORIZONS % m->slots[k] * (int64_t)kept / 4, kept);
    for (int i = 0; i < HORIZONS; i++) {
        int64_t due = count + AHEAD[i];
        if (due % HORIZONS == i) read_all(m->past[i] + due / HORIZONS % m->slots[i] * (int64_t)kept / 4, kept);
    }
    read_all(m->was + count % REMEMBERED * (1 + TABLES) * size, (1 + TABLES) * row);
    const float *now = m->was + m->count % REMEMBERED * (1 + TABLES) * size; /* where most will be again */
    const float *past = m->was + (count + REMEMBERED - AHEAD[k]) % REMEMBERED * (1 + TABLES) * size;
    for (int i = 1; i <= TABLES; i++)
        for (int64_t s = 0; s < h->series; s++) {
            const float *cells = m->cells + s * CELLS * CELL;
            const float *learnt = cells + (int64_t)past[i * size + s] * CELL + k * ENTRY;
            read_all(cells + (int64_t)now[i * size + s] * CELL, 4), read_all(learnt, 4), read_all(learnt + EXCESS, 4);
        }
    for (int i = 0, rows[] = {m->hidden[0], m->hidden[1], HORIZONS * LEVELS}, cols = FEATURES; i < 3 && rows[0]; i++) {
        read_all(m->layer[i], (size_t)rows[i] * (size_t)cols * 4);
        cols = rows[i] + 1;
    }
}
