/* What Python calls, beside what stands in module.c. */
#ifndef FORESHARE_BINDINGS_H
#define FORESHARE_BINDINGS_H
#include "buffers.h"

PyObject *py_place(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_place_ways(PyObject *self, PyObject *const *args, Py_ssize_t count);

#endif
