/* What a call over arrays that are checked once (memo.h) keeps of them: a call_t, and what follows it. */
#ifndef FORESHARE_ROOMS_H
#define FORESHARE_ROOMS_H
#include "bindings.h"
#include "call.h"
#include "memo.h"

static inline memo_t *memo_of(PyObject *capsule) { return PyCapsule_GetPointer(capsule, MEMO); }

static inline void drop(void *room) {
    call_t *c = room; /* the first in each room */
    let_go(&c->buffers, NULL);
    free(c->memory);
    free(c);
}

/* Room for a function that begins with a call about one host; NULL where there is none, with an exception. */
static inline void *open_room(size_t size, PyObject *tables) {
    call_t *c = calloc(1, size);
    PyObject *one = c ? PyLong_FromLong(1) : PyErr_NoMemory();
    bool fine = one && begin(c, tables, one);
    Py_XDECREF(one);
    if (fine) return c;
    if (c) drop(c);
    return NULL;
}

/* As remember(), with the memory that the room has: the call's, and ``bytes`` at ``own``. */
static inline void *keep_room(memo_t *m, const char *of, PyObject *const *args, Py_ssize_t count, void *room,
                       void (*let)(void *), const void *own, size_t bytes) {
    const call_t *c = room;
    remember(m, of, args, count, room, let);
    m->own[0].at = c->memory, m->own[0].bytes = c->bytes;
    m->own[1].at = own, m->own[1].bytes = bytes;
    return room;
}

/* Keep what was made of ``args``, or let go of it where an array was none that it should be. */
static inline void *close_room(memo_t *m, const char *of, PyObject *const *args, Py_ssize_t count, void *room) {
    call_t *c = room;
    if (!c->buffers.failed) return keep_room(m, of, args, count, room, drop, NULL, 0);
    drop(room);
    return NULL;
}

static inline bool number(PyObject *of, double *to) {
    *to = PyFloat_AsDouble(of);
    return *to != -1.0 || !PyErr_Occurred();
}

#endif
