/* handlers._native: what is done for each of many sockets, without a Python call for each of them.
 *
 * It is built where there is a compiler. handlers/native_twin.py does the same in Python, and
 * handlers/native.py chooses between them.
 */
#include "native.h"

static PyMethodDef methods[] = {
    {"send_all", (PyCFunction)(void (*)(void))send_all, METH_FASTCALL, send_all_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
