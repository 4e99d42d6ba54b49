/* The recurrent network: policies/forecast/lstm.py, LstmModel.refresh(). */
#include <math.h>
#include <string.h>

#include "dense.h"
#include "forecast.h"
#include "squash.h"

/* tanh of ``count`` numbers, in place. */
INLINE void squash(float *x, int count) {
    for (int j = 0; j < count; j++) {
        float at = above(below(x[j], SQUASH_REACH), -SQUASH_REACH), square = at * at;
        float over = SQUASH_ODD[0], under = SQUASH_EVEN[0];
        for (int i = 1; i < 7; i++) over = over * square + SQUASH_ODD[i];
        for (int i = 1; i < 4; i++) under = under * square + SQUASH_EVEN[i];
        x[j] = at * over / under;
    }
}

/* inputs_of(), for ``n`` series from ``s`` on. */
INLINE void inputs(const history_t *h, int64_t s, int n, row_t *x) {
    const int64_t now = (int64_t)(h->newest + WINDOW) * h->size + s;
    for (int t = 0; t < STRIDE; t++) {
        const float *y = h->y + now - (STRIDE - 1 - t) * h->size, *w = h->w + now - (STRIDE - 1 - t) * h->size;
        for (int j = 0; j < n; j++) x[t][j] = below(sqrtf(y[j] / h->scale[s + j]), 8.0F);
        for (int j = 0; j < n; j++) x[STRIDE + t][j] = below(sqrtf(w[j] / h->scale[s + j]), 8.0F);
    }
    for (int j = 0; j < n; j++) {
        x[2 * STRIDE][j] = (float)(h->slow[s + j] / (double)h->scale[s + j]);
        x[2 * STRIDE + 1][j] = below(h->age[s + j], 16.0F) * (1.0F / 16.0F);
    }
}

CLONES void lstm(const history_t *h, lstm_t *l, float *out) {
    enum { KQ = HORIZONS * LEVELS };
    _Alignas(64) row_t x[LSTM_INPUTS + MOST_HIDDEN + 1] = {{0.0F}}, a[4 * MOST_HIDDEN], z[KQ];
    int hidden = l->hidden, cols = LSTM_INPUTS + hidden + 1;
    for (int64_t s = 0; s < l->size; s += BLOCK) {
        int n = l->size - s < BLOCK ? (int)(l->size - s) : BLOCK;
        row_t *code = x + LSTM_INPUTS;
        inputs(h, s, n, x);
        for (int i = 0; i < hidden; i++) memcpy(code[i], l->h + i * l->size + s, sizeof(float) * (size_t)n);
        for (int j = 0; j < BLOCK; j++) code[hidden][j] = 1.0F;
        dense(l->gates, 4 * hidden, cols, (const lanes_t *)x, (lanes_t *)a);
        squash(a[0], 4 * hidden * BLOCK);
        for (int i = 0; i < hidden; i++) {
            float *c = l->c + i * l->size + s;
            const float *in = a[i], *keep = a[hidden + i], *new = a[2 * hidden + i];
            for (int j = 0; j < n; j++)
                c[j] = c[j] * ((keep[j] + 1.0F) * 0.5F) + (in[j] + 1.0F) * 0.5F * new[j];
            memcpy(code[i], c, sizeof(float) * (size_t)n);
        }
        squash(code[0], hidden * BLOCK);
        for (int i = 0; i < hidden; i++) {
            const float *show = a[3 * hidden + i];
            for (int j = 0; j < n; j++) code[i][j] *= (show[j] + 1.0F) * 0.5F;
            memcpy(l->h + i * l->size + s, code[i], sizeof(float) * (size_t)n);
        }
        dense(l->head, KQ, hidden + 1, (const lanes_t *)code, (lanes_t *)z);
        for (int i = 0; i < KQ; i++) { /* quantiles_of() */
            float *to = out + i * l->size + s;
            for (int j = 0; j < n; j++) to[j] = (sqrtf(z[i][j] * z[i][j] + 4.0F) + z[i][j]) * (h->scale[s + j] * 0.5F);
            if (i % LEVELS)
                for (int j = 0; j < n; j++) to[j] += to[j - l->size];
        }
    }
}
