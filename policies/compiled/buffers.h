/* Numpy arrays as checked buffers: what every compiled part needs. */
#ifndef FORESHARE_BUFFERS_H
#define FORESHARE_BUFFERS_H
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

enum { MOST_ARRAYS = 80 };

/* The buffers of one call; all are let go together. */
typedef struct {
    Py_buffer view[MOST_ARRAYS];
    int count;
    bool failed;
} buffers_t;

static inline void *take(buffers_t *b, PyObject *array, char kind, Py_ssize_t items, bool writable) {
    if (b->failed) return NULL;
    if (b->count == MOST_ARRAYS) {
        PyErr_SetString(PyExc_ValueError, "too many arrays");
        b->failed = true;
        return NULL;
    }
    Py_buffer *view = &b->view[b->count];
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    b->failed = true;
    if (PyObject_GetBuffer(array, view, flags) < 0) return NULL;
    b->count++;
    char format = view->format[0];
    if (format == 'q') format = 'l';
    if (format != kind || view->format[1] || (items >= 0 && view->len != items * view->itemsize)) {
        PyErr_Format(PyExc_ValueError, "array %d: type '%s' and %zd bytes, not %zd of '%c'", b->count - 1, view->format,
                     view->len, items, kind);
        return NULL;
    }
    b->failed = false;
    return view->buf;
}

static inline PyObject *let_go(buffers_t *b, PyObject *answer) {
    for (int i = 0; i < b->count; i++) PyBuffer_Release(&b->view[i]);
    if (b->failed || PyErr_Occurred()) {
        Py_XDECREF(answer);
        return NULL;
    }
    return answer;
}

#endif
