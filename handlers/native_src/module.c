/* handlers._native: what is done for each of many sockets, without a Python call for each of them.
 *
 * It is built where there is a compiler. handlers/native_twin.py does the same in Python, and
 * handlers/native.py chooses between them.
 */
#include "native.h"

PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && PyModule_AddType(module, type) < 0) Py_CLEAR(type);
    return type;
}

static int add_types(PyObject *module)
{
    PyTypeObject *poller = add_type(module, &poller_spec);
    if (!poller) return -1;
    Py_DECREF(poller);
    return add_fanout(module);
}

static PyMethodDef methods[] = {
    {"send_all", (PyCFunction)(void (*)(void))send_all, METH_FASTCALL, send_all_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_types},
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
