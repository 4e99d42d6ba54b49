/* The learned policy's network: policies/learned/network.py. A VM's numbers are worked out in one order, whoever stands
 * beside it, so that padding and batches change nothing to the bit. */
#include <string.h>

#include "kernel.h"
#include "squash.h"

enum { LANES = 4, BLOCK = 2 * LANES };
typedef float lanes_t __attribute__((vector_size(4 * LANES)));
typedef float block_t __attribute__((vector_size(4 * BLOCK)));

/* y[j] += sum over k of x[k] w[k][j], with rows of w and y padded to a multiple of BLOCK. */
static void multiply(const float *x, int64_t count, const float *w, int64_t width, float *y) {
    for (int64_t j = 0; j < width; j += BLOCK) {
        lanes_t low, high, a, b;
        memcpy(&low, y + j, sizeof low);
        memcpy(&high, y + j + LANES, sizeof high);
        for (int64_t k = 0; k < count; k++) {
            const float *row = w + k * width + j;
            memcpy(&a, row, sizeof a);
            memcpy(&b, row + LANES, sizeof b);
            low += x[k] * a;
            high += x[k] * b;
        }
        memcpy(y + j, &low, sizeof low);
        memcpy(y + j + LANES, &high, sizeof high);
    }
}

enum { TOGETHER = 4 };

/* As multiply(), for four rows of ``y`` from as many of x: none waits for the other's sum. */
CLONES static void multiply_four(const float *const *x, int64_t count, const float *w, int64_t width, float *y) {
    for (int64_t j = 0; j < width; j += BLOCK) {
        block_t sum[TOGETHER], row;
        for (int v = 0; v < TOGETHER; v++) memcpy(&sum[v], y + v * width + j, sizeof sum[v]);
        for (int64_t k = 0; k < count; k++) {
            memcpy(&row, w + k * width + j, sizeof row);
            for (int v = 0; v < TOGETHER; v++) sum[v] += x[v][k] * row;
        }
        for (int v = 0; v < TOGETHER; v++) memcpy(y + v * width + j, &sum[v], sizeof sum[v]);
    }
}

/* tanh of a row. ``width``: padded. */
CLONES static void squash(float *y, int64_t width) {
    for (int64_t j = 0; j < width; j++) {
        float x = y[j] < -SQUASH_REACH ? -SQUASH_REACH : y[j];
        x = x > SQUASH_REACH ? SQUASH_REACH : x;
        float square = x * x, above = SQUASH_ODD[0] * square + SQUASH_ODD[1];
        for (int i = 2; i < 7; i++) above = above * square + SQUASH_ODD[i];
        float below = SQUASH_EVEN[0] * square + SQUASH_EVEN[1];
        for (int i = 2; i < 4; i++) below = below * square + SQUASH_EVEN[i];
        x = x * above / below;
        x = x < -1.0f ? -1.0f : x;
        y[j] = x > 1.0f ? 1.0f : x;
    }
}

static int64_t padded(int64_t width) { return (width + BLOCK - 1) / BLOCK * BLOCK; }

int64_t network_floats(const network_t *m) {
    int64_t e = padded(m->e), c = padded(m->c), d = padded(m->d), a = padded(m->a);
    return 2 * (m->f + m->g) + (1 + m->f) * e + (1 + 2 * m->e + m->g) * c + (1 + m->e + m->c) * d + (1 + m->d + m->f) * a;
}

int64_t network_room(const network_t *m, int64_t n) {
    return n * (m->f + padded(m->e)) + 2 * m->e + m->g + padded(m->c) + 2 * padded(m->d) +
           TOGETHER * padded(m->a);
}

void network(const network_t *m, int64_t n, const float *vms, const bool *there, const float *host, float *room,
             float *out) {
    int64_t e = padded(m->e), c = padded(m->c), d = padded(m->d), a = padded(m->a);
    const float *vm_mean = m->weights, *vm_scale = vm_mean + m->f, *host_mean = vm_scale + m->f;
    const float *host_scale = host_mean + m->g, *enc_b = host_scale + m->g, *enc_w = enc_b + e;
    const float *ctx_b = enc_w + m->f * e, *ctx_w = ctx_b + c, *head_b = ctx_w + (2 * m->e + m->g) * c;
    const float *head_w = head_b + d, *out_b = head_w + (m->e + m->c) * d, *out_w = out_b + a, *lin_w = out_w + m->d * a;
    float *x = room, *code = x + n * m->f, *seen = code + n * e, *context = seen + 2 * m->e + m->g;
    float *whole = context + c, *z = whole + d, *action = z + d;
    int64_t count = 0;
    float *mean = seen, *most = seen + m->e, *features = seen + 2 * m->e;
    memset(seen, 0, sizeof *seen * (size_t)(2 * m->e));
    for (int64_t i = 0; i < n; i++) {
        if (!there[i]) continue;
        float *mine = x + i * m->f, *h = code + i * e;
        for (int64_t k = 0; k < m->f; k++) mine[k] = (vms[i * m->f + k] - vm_mean[k]) * vm_scale[k];
        memcpy(h, enc_b, sizeof *h * (size_t)e);
        multiply(mine, m->f, enc_w, e, h);
        squash(h, e);
        for (int64_t j = 0; j < m->e; j++) {
            mean[j] += h[j];
            most[j] = count && most[j] > h[j] ? most[j] : h[j];
        }
        count++;
    }
    for (int64_t j = 0; count && j < m->e; j++) mean[j] /= (float)count;
    for (int64_t k = 0; k < m->g; k++) features[k] = (host[k] - host_mean[k]) * host_scale[k];
    memcpy(context, ctx_b, sizeof *context * (size_t)c);
    multiply(seen, 2 * m->e + m->g, ctx_w, c, context);
    squash(context, c);
    memcpy(whole, head_b, sizeof *whole * (size_t)d);
    multiply(context, m->c, head_w + m->e * d, d, whole);
    const float *seen_by[TOGETHER];
    float *to[TOGETHER];
    int some = 0;
    for (int64_t i = 0; i < n; i++) {
        float *mine = out + i * m->a, *acts = action + some * a;
        memset(mine, 0, sizeof *mine * (size_t)m->a);
        if (there[i]) {
            memcpy(z, whole, sizeof *z * (size_t)d);
            multiply(code + i * e, m->e, head_w, d, z);
            squash(z, d);
            memcpy(acts, out_b, sizeof *acts * (size_t)a);
            multiply(z, m->d, out_w, a, acts);
            seen_by[some] = x + i * m->f, to[some++] = mine;
        }
        if (some < TOGETHER && (i + 1 < n || !some)) continue;
        for (int v = some; v < TOGETHER; v++) seen_by[v] = seen_by[0]; /* what comes of these nobody looks at */
        multiply_four(seen_by, m->f, lin_w, a, action);
        squash(action, some * a);
        for (int v = 0; v < some; v++) memcpy(to[v], action + v * a, sizeof *action * (size_t)m->a);
        some = 0;
    }
}
