/* What a call has checked of its arrays, for the next call with the same ones. A tick calls with the arrays of the tick
 * before, a hundred of them, and to ask numpy for each costs as much as to work on it, more where caches are cold. */
#ifndef FORESHARE_MEMO_H
#define FORESHARE_MEMO_H
#include "buffers.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_ARGS = 80 };
static const char *const MEMO = "foreshare.memo";

typedef struct {
    const char *of; /* which function filled it */
    Py_ssize_t count;
    PyObject *args[MOST_ARGS]; /* owned */
    void *room;                /* what the function made of them: begins with buffers_t */
    void (*drop)(void *room);
    struct {
        const char *at;
        size_t bytes;
    } own[2]; /* memory of the function's own */
} memo_t;

static inline void forget(memo_t *m) {
    if (m->room) m->drop(m->room);
    for (Py_ssize_t i = 0; i < m->count; i++) Py_DECREF(m->args[i]);
    m->room = NULL, m->count = 0, m->of = NULL;
}

static inline void let_memo_go(PyObject *capsule) {
    memo_t *m = PyCapsule_GetPointer(capsule, MEMO);
    forget(m);
    free(m);
}

static inline PyObject *new_memo(void) {
    memo_t *m = calloc(1, sizeof *m);
    if (!m) return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(m, MEMO, let_memo_go);
    if (!capsule) free(m);
    return capsule;
}

/* What ``of`` made of these very arguments before, or NULL. */
static inline void *recall(const memo_t *m, const char *of, PyObject *const *args, Py_ssize_t count) {
    if (m->of != of || m->count != count) return NULL;
    for (Py_ssize_t i = 0; i < count; i++)
        if (m->args[i] != args[i]) return NULL;
    return m->room;
}

/* Keep ``room`` for these arguments, in place of what was kept before; ``drop`` lets go of it. */
static inline void *remember(memo_t *m, const char *of, PyObject *const *args, Py_ssize_t count, void *room,
                             void (*drop)(void *)) {
    forget(m);
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_INCREF(args[i]);
        m->args[i] = args[i];
    }
    m->of = of, m->count = count, m->room = room, m->drop = drop;
    memset(m->own, 0, sizeof m->own);
    return room;
}

static inline unsigned read_all(const char *at, size_t bytes) {
    unsigned sum = 0;
    for (size_t i = 0; i < bytes; i += 64) sum += *(const volatile unsigned char *)(at + i);
    return sum;
}

/* Read whatever the next call with the same arrays will: it is in the caches then. */
static inline void touch(const memo_t *m) {
    const buffers_t *b = m->room;
    for (int i = 0; b && i < b->count; i++) read_all(b->view[i].buf, (size_t)b->view[i].len);
    for (int i = 0; b && i < 2; i++) read_all(m->own[i].at, m->own[i].bytes);
}

/* Write a tuple of arrays, and ``more`` that follow it, to ``all`` (MOST_ARGS); ValueError where they are not ``wanted``. */
static inline bool spread(PyObject *tuple, PyObject *const *more, Py_ssize_t behind, Py_ssize_t wanted, PyObject **all) {
    Py_ssize_t first = PyTuple_Check(tuple) ? PyTuple_Size(tuple) : -1;
    if (first < 0 || first + behind > MOST_ARGS || (wanted >= 0 && first + behind != wanted)) {
        PyErr_Format(PyExc_ValueError, "%zd arrays, not %zd", first + behind, wanted);
        return false;
    }
    for (Py_ssize_t i = 0; i < first; i++) all[i] = PyTuple_GetItem(tuple, i);
    for (Py_ssize_t i = 0; i < behind; i++) all[first + i] = more[i];
    return true;
}

#endif
