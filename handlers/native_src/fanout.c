/* Sends what a room is told to all its clients: the loop over send(2).
 *
 * A client is in a room by a `Recipient`, and what it is sent goes through a `Line`, its own or one that it shares
 * with the other rooms of a connection. A line knows whether its socket may be written to directly; whatever closes
 * the socket or leaves something unsent says so there, so that a descriptor is never used for a socket that it does
 * not belong to any more.
 */
#include "native.h"

#include <errno.h>
#include <stddef.h>
#include <structmember.h>
#include <sys/socket.h>

/* Memory is asked for so many places ahead of where it is needed: a thousand clients do not fit into the cache. */
#define LOOKAHEAD 4

typedef struct {
    PyObject_HEAD
    int clear_descriptor;
} Line;

typedef struct {
    PyObject_HEAD
    Line *line;       /* NULL before it is set */
    Py_ssize_t place; /* among the recipients that it is one of, from 1; 0: it is nowhere */
} Recipient;

/* The first `unserved` peers are still to be sent `frames`, which are NULL where there are none such. */
typedef struct {
    PyObject_HEAD
    Recipient **peers;
    Py_ssize_t count, capacity, unserved;
    PyObject *frames; /* a list of (kind, bytes) */
    PyObject *data;   /* all these bytes in one piece */
} Recipients;

static PyTypeObject *line_type, *recipient_type;
static PyObject *took_name;

/* How many bytes the socket takes now; -1 where it is broken, or the descriptor negative. */
static ssize_t offer(int descriptor, PyObject *data)
{
    if (descriptor < 0) return -1;
    /* The GIL is kept, since nothing here waits. */
    const ssize_t sent = send(descriptor, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data),
                              MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return 0;
    return sent;
}

/* --- Line ---------------------------------------------------------------------------------------------------- */

static PyMemberDef line_members[] = {
    {"clear_descriptor", T_INT, offsetof(Line, clear_descriptor), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot line_slots[] = {
    {Py_tp_members, line_members},
    {0, NULL},
};

static PyType_Spec line_spec = {
    .name = "handlers._native.Line",
    .basicsize = sizeof(Line),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = line_slots,
};

/* --- Recipient ----------------------------------------------------------------------------------------------- */

static PyObject *get_outgoing(Recipient *self, void *Py_UNUSED(closure))
{
    if (self->line) return Py_NewRef((PyObject *)self->line);
    PyErr_SetString(PyExc_AttributeError, "outgoing");
    return NULL;
}

static int set_outgoing(Recipient *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (!value || !PyObject_TypeCheck(value, line_type)) {
        PyErr_SetString(PyExc_TypeError, "outgoing is a Line");
        return -1;
    }
    Py_INCREF(value);
    Py_XSETREF(self->line, (Line *)value);
    return 0;
}

static int traverse_recipient(Recipient *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->line);
    return 0;
}

static int clear_recipient(Recipient *self)
{
    Py_CLEAR(self->line);
    return 0;
}

static void dealloc_recipient(Recipient *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear_recipient(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyGetSetDef recipient_getset[] = {
    {"outgoing", (getter)get_outgoing, (setter)set_outgoing, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot recipient_slots[] = {
    {Py_tp_getset, recipient_getset},
    {Py_tp_traverse, traverse_recipient},
    {Py_tp_clear, clear_recipient},
    {Py_tp_dealloc, dealloc_recipient},
    {0, NULL},
};

static PyType_Spec recipient_spec = {
    .name = "handlers._native.Recipient",
    .basicsize = sizeof(Recipient),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = recipient_slots,
};

/* --- Recipients ---------------------------------------------------------------------------------------------- */

static int is_in(const Recipients *self, PyObject *peer)
{
    if (!PyObject_TypeCheck(peer, recipient_type)) return 0;
    const Py_ssize_t place = ((Recipient *)peer)->place;
    return place && place <= self->count && self->peers[place - 1] == (Recipient *)peer;
}

static void put_at(Recipients *self, Py_ssize_t place, Recipient *peer)
{
    self->peers[place - 1] = peer;
    peer->place = place;
}

static int is_served(const Recipients *self, const Recipient *peer) { return peer->place > self->unserved; }

/* What is let go of last: that may run any Python. */
static void end_round_if_served(Recipients *self)
{
    if (self->unserved || !self->frames) return;
    PyObject *frames = self->frames, *data = self->data;
    self->frames = self->data = NULL;
    Py_DECREF(frames);
    Py_DECREF(data);
}

/* Take a peer that is still to be served out of the round. */
static void take_out(Recipients *self, Recipient *peer)
{
    const Py_ssize_t place = peer->place, last = self->unserved--;
    put_at(self, place, self->peers[last - 1]);
    put_at(self, last, peer);
}

static PyObject *add(Recipients *self, PyObject *peer)
{
    if (!PyObject_TypeCheck(peer, recipient_type) || !((Recipient *)peer)->line) {
        PyErr_SetString(PyExc_TypeError, "a Recipient with a Line is wanted");
        return NULL;
    }
    if (((Recipient *)peer)->place) {
        PyErr_SetString(PyExc_ValueError, "it is in an audience already");
        return NULL;
    }
    if (self->count == self->capacity) {
        const Py_ssize_t capacity = self->capacity + self->capacity / 2 + 2;
        Recipient **peers = PyMem_Realloc(self->peers, (size_t)capacity * sizeof *peers);
        if (!peers) return PyErr_NoMemory();
        self->peers = peers;
        self->capacity = capacity;
    }
    put_at(self, ++self->count, (Recipient *)Py_NewRef(peer));
    Py_RETURN_NONE;
}

/* Take out the peer, which is among them, without its reference being given up. */
static void pull(Recipients *self, Recipient *peer)
{
    if (!is_served(self, peer)) take_out(self, peer);
    put_at(self, peer->place, self->peers[--self->count]);
    peer->place = 0;
}

static PyObject *remove_peer(Recipients *self, PyObject *peer)
{
    if (!is_in(self, peer)) {
        PyErr_SetObject(PyExc_KeyError, peer);
        return NULL;
    }
    pull(self, (Recipient *)peer);
    end_round_if_served(self);
    Py_DECREF(peer);
    Py_RETURN_NONE;
}

static PyObject *pop(Recipients *self, PyObject *Py_UNUSED(ignored))
{
    if (!self->count) {
        PyErr_SetString(PyExc_KeyError, "nobody is there");
        return NULL;
    }
    Recipient *peer = self->peers[self->count - 1];
    pull(self, peer);
    end_round_if_served(self);
    return (PyObject *)peer;
}

/* All bytes of the frames in one piece: a new reference. */
static PyObject *joined(PyObject *frames)
{
    Py_ssize_t size = 0;
    const Py_ssize_t count = PyList_GET_SIZE(frames);
    for (Py_ssize_t index = 0; index < count; index++) {
        PyObject *frame = PyList_GET_ITEM(frames, index);
        if (!PyTuple_CheckExact(frame) || PyTuple_GET_SIZE(frame) != 2 || !PyBytes_Check(PyTuple_GET_ITEM(frame, 1))) {
            PyErr_SetString(PyExc_TypeError, "a frame is a pair of its kind and bytes");
            return NULL;
        }
        size += PyBytes_GET_SIZE(PyTuple_GET_ITEM(frame, 1));
    }
    if (count == 1) return Py_NewRef(PyTuple_GET_ITEM(PyList_GET_ITEM(frames, 0), 1));
    PyObject *data = PyBytes_FromStringAndSize(NULL, size);
    if (!data) return NULL;
    char *at = PyBytes_AS_STRING(data);
    for (Py_ssize_t index = 0; index < count; index++) {
        PyObject *frame = PyTuple_GET_ITEM(PyList_GET_ITEM(frames, index), 1);
        memcpy(at, PyBytes_AS_STRING(frame), (size_t)PyBytes_GET_SIZE(frame));
        at += PyBytes_GET_SIZE(frame);
    }
    return data;
}

static PyObject *begin(Recipients *self, PyObject *frames)
{
    if (!PyList_CheckExact(frames) || !PyList_GET_SIZE(frames) || self->unserved) {
        PyErr_SetString(PyExc_TypeError, "a round begins with a list of frames, when the last one is over");
        return NULL;
    }
    PyObject *data = joined(frames);
    if (!data) return NULL;
    end_round_if_served(self); /* the last of it may be keeping its rest just now */
    self->frames = Py_NewRef(frames);
    self->data = data;
    self->unserved = self->count;
    end_round_if_served(self);
    Py_RETURN_NONE;
}

static PyObject *skip(Recipients *self, PyObject *peer)
{
    if (!is_in(self, peer) || is_served(self, (Recipient *)peer)) Py_RETURN_NONE;
    PyObject *frames = Py_NewRef(self->frames);
    take_out(self, (Recipient *)peer);
    end_round_if_served(self);
    return frames;
}

/* Have the peer keep the rest. Whoever comes, leaves or is caught up with meanwhile is seen in the round. */
static int keep_rest(Recipient *peer, PyObject *frames, ssize_t sent)
{
    PyObject *size = PyLong_FromSsize_t(sent);
    if (!size) return -1;
    Py_INCREF(peer);
    Py_INCREF(frames);
    PyObject *outcome = PyObject_CallMethodObjArgs((PyObject *)peer, took_name, frames, size, NULL);
    Py_DECREF(frames);
    Py_DECREF(peer);
    Py_DECREF(size);
    Py_XDECREF(outcome);
    return outcome ? 0 : -1;
}

static PyObject *serve(Recipients *self, PyObject *argument)
{
    const Py_ssize_t most = PyLong_AsSsize_t(argument);
    if (most == -1 && PyErr_Occurred()) return NULL;
    for (Py_ssize_t served = 0; self->unserved && served < most; served++) {
        Recipient *peer = self->peers[--self->unserved];
        if (self->unserved >= 2 * LOOKAHEAD) {
            __builtin_prefetch(self->peers[self->unserved - 2 * LOOKAHEAD]);
            __builtin_prefetch(self->peers[self->unserved - LOOKAHEAD]->line);
        }
        const ssize_t sent = offer(peer->line ? peer->line->clear_descriptor : -1, self->data);
        if (sent != PyBytes_GET_SIZE(self->data) && keep_rest(peer, self->frames, sent) < 0) {
            end_round_if_served(self);
            return NULL;
        }
    }
    end_round_if_served(self);
    return PyLong_FromSsize_t(self->unserved);
}

static Py_ssize_t length(Recipients *self) { return self->count; }

static int contains(Recipients *self, PyObject *peer) { return is_in(self, peer); }

static PyObject *iterate(Recipients *self)
{
    /* It is empty when the collector may run, which may change who is here. */
    PyObject *peers = PyList_New(0);
    for (Py_ssize_t place = 0; peers && place < self->count; place++)
        if (PyList_Append(peers, (PyObject *)self->peers[place]) < 0) Py_CLEAR(peers);
    PyObject *iterator = peers ? PyObject_GetIter(peers) : NULL;
    Py_XDECREF(peers);
    return iterator;
}

static int traverse_recipients(Recipients *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (Py_ssize_t place = 0; place < self->count; place++) Py_VISIT(self->peers[place]);
    Py_VISIT(self->frames);
    Py_VISIT(self->data);
    return 0;
}

static int clear_recipients(Recipients *self)
{
    self->unserved = 0;
    while (self->count) {
        Recipient *peer = self->peers[--self->count];
        peer->place = 0;
        Py_DECREF(peer);
    }
    end_round_if_served(self);
    return 0;
}

static void dealloc_recipients(Recipients *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear_recipients(self);
    PyMem_Free(self->peers);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef recipients_members[] = {
    {"unserved", T_PYSSIZET, offsetof(Recipients, unserved), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef recipients_methods[] = {
    {"add", (PyCFunction)add, METH_O, NULL},
    {"remove", (PyCFunction)remove_peer, METH_O, NULL},
    {"pop", (PyCFunction)pop, METH_NOARGS, NULL},
    {"begin", (PyCFunction)begin, METH_O, NULL},
    {"skip", (PyCFunction)skip, METH_O, NULL},
    {"serve", (PyCFunction)serve, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot recipients_slots[] = {
    {Py_tp_members, recipients_members},
    {Py_tp_methods, recipients_methods},
    {Py_tp_iter, iterate},
    {Py_sq_length, length},
    {Py_sq_contains, contains},
    {Py_tp_traverse, traverse_recipients},
    {Py_tp_clear, clear_recipients},
    {Py_tp_dealloc, dealloc_recipients},
    {0, NULL},
};

static PyType_Spec recipients_spec = {
    .name = "handlers._native.Recipients",
    .basicsize = sizeof(Recipients),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = recipients_slots,
};

/* --- send_all ------------------------------------------------------------------------------------------------ */

const char send_all_doc[] =
    "send_all(descriptors: list[int], data: bytes) -> list[tuple[int, int]]\n\n"
    "Offer the data to each socket. Returns the index of each that did not take all of it, with the number\n"
    "of bytes that it took, or -1 where the socket is broken or the descriptor negative.";

PyObject *send_all(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyList_CheckExact(arguments[0]) || !PyBytes_CheckExact(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "send_all takes a list and bytes");
        return NULL;
    }
    PyObject *descriptors = arguments[0], *data = arguments[1], *missed = PyList_New(0);
    for (Py_ssize_t index = 0; missed && index < PyList_GET_SIZE(descriptors); index++) {
        const long descriptor = PyLong_AsLong(PyList_GET_ITEM(descriptors, index));
        if (descriptor == -1 && PyErr_Occurred()) {
            Py_CLEAR(missed);
            break;
        }
        const ssize_t sent = offer((int)descriptor, data);
        if (sent == PyBytes_GET_SIZE(data)) continue;
        PyObject *entry = Py_BuildValue("(nn)", index, (Py_ssize_t)sent);
        if (!entry || PyList_Append(missed, entry) < 0) Py_CLEAR(missed);
        Py_XDECREF(entry);
    }
    return missed;
}

/* --- the module ---------------------------------------------------------------------------------------------- */

int add_fanout(PyObject *module)
{
    took_name = PyUnicode_InternFromString("took");
    line_type = add_type(module, &line_spec);
    recipient_type = add_type(module, &recipient_spec);
    PyTypeObject *recipients_type = add_type(module, &recipients_spec);
    const int is_done = took_name && line_type && recipient_type && recipients_type;
    Py_XDECREF(recipients_type);
    return is_done ? 0 : -1;
}
