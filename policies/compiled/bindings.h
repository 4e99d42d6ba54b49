/* What Python calls, beside what stands in module.c. */
#ifndef FORESHARE_BINDINGS_H
#define FORESHARE_BINDINGS_H
#include "buffers.h"

PyObject *py_correct(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_difference(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_due(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_encode(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_shrink(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_place_ways(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_memo(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_touch(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_foresee(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_consult(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_serve(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_conclude(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *py_settle(PyObject *self, PyObject *const *args, Py_ssize_t count);

#endif
