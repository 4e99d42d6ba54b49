/* One call from Python about one host, or a batch of them: buffers, the host's bounds, room to work in. */
#ifndef FORESHARE_CALL_H
#define FORESHARE_CALL_H
#include "buffers.h"
#include "kernel.h"

typedef struct {
    buffers_t buffers;
    tables_t tables;
    scratch_t scratch;
    Py_ssize_t hosts, n, nr;
    void *memory;
    size_t bytes; /* of it */
} call_t;

/* call.c */
bool begin(call_t *c, PyObject *packed, PyObject *batch);
PyObject *finish(call_t *c, PyObject *answer);
bool out_of_shape(call_t *c);
const int64_t *take_below(call_t *c, PyObject *array, Py_ssize_t count, int64_t end);
const int64_t *take_rows(call_t *c, PyObject *array);
bool counted(Py_ssize_t got, Py_ssize_t wanted);
PyObject *none(void);

/* module.c */
enum { ESTIMATOR = 12 };
void take_estimator(call_t *c, PyObject *const *args, estimator_t *to);

/* An array of ``per`` values a host; short names for what every function below does a dozen times. */
#define REAL(i, per) take(&c.buffers, args[i], 'd', c.hosts * (per), false)
#define REAL_OUT(i, per) take(&c.buffers, args[i], 'd', c.hosts * (per), true)
#define WHOLE(i, per) take(&c.buffers, args[i], 'l', c.hosts * (per), false)
#define WHOLE_OUT(i, per) take(&c.buffers, args[i], 'l', c.hosts * (per), true)
#define FLAG_OUT(i, per) take(&c.buffers, args[i], '?', c.hosts * (per), true)

#endif
