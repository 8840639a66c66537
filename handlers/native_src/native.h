/* What module.c makes a module of: a file of this folder for each part, which says what it is for. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* module.c: the type, which the module has from now on; NULL and an exception where that fails. */
PyTypeObject *add_type(PyObject *module, PyType_Spec *spec);

/* fanout.c: Line, Recipient, Recipients */
int add_fanout(PyObject *module);
extern const char send_all_doc[];
PyObject *send_all(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

/* heartbeat.c: Poller */
extern PyType_Spec poller_spec;
