/* Sends one message to many sockets: the loop over send(2). */
#include "native.h"

#include <errno.h>
#include <sys/socket.h>

const char send_all_doc[] =
    "send_all(descriptors: list[int], data: bytes) -> list[tuple[int, int]]\n\n"
    "Offer the data to each socket. Returns the index of each that did not take all of it, with the number\n"
    "of bytes that it took, or -1 where the socket is broken or the descriptor negative.";

PyObject *send_all(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 2 || !PyList_CheckExact(arguments[0]) || !PyBytes_CheckExact(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "send_all takes a list and bytes");
        return NULL;
    }
    PyObject *descriptors = arguments[0], *missed = PyList_New(0);
    const char *data = PyBytes_AS_STRING(arguments[1]);
    const Py_ssize_t size = PyBytes_GET_SIZE(arguments[1]);
    if (!missed) return NULL;
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(descriptors); index++) {
        const long descriptor = PyLong_AsLong(PyList_GET_ITEM(descriptors, index));
        if (descriptor == -1 && PyErr_Occurred()) goto failed;
        ssize_t sent = -1;
        if (descriptor >= 0) {
            /* The GIL is kept, since nothing here waits. */
            sent = send((int)descriptor, data, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (sent == size) continue;
            if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) sent = 0;
        }
        PyObject *entry = Py_BuildValue("(nn)", index, (Py_ssize_t)sent);
        if (!entry || PyList_Append(missed, entry) < 0) {
            Py_XDECREF(entry);
            goto failed;
        }
        Py_DECREF(entry);
    }
    return missed;
failed:
    Py_DECREF(missed);
    return NULL;
}
