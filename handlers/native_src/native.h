/* What module.c makes a module of: a file of this folder for each part, which says what it is for. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* fanout.c */
extern const char send_all_doc[];
PyObject *send_all(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

/* heartbeat.c */
extern PyType_Spec poller_spec;
