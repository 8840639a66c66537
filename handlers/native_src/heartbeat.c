/* Sockets on which mostly nothing happens: who is asked for a pong when, who has answered, and who says more.
 *
 * They wait on an epoll of their own, which the event loop watches as one descriptor. A pong that is owed, and all
 * there is to read, ends here; for anything else the owner of the socket is named, and nothing of it has been read.
 */
#include "native.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* So many sockets are looked at in one iteration of the loop; the others come first in the next (epoll(7)). */
#define READY_AT_ONCE 256
/* A pong without data: two bytes, and the mask. */
#define PONG_BYTES 6
#define NO_TICK 0xffffffu

/* Flags of an entry. */
#define OWES_PONG 1u
#define IS_WATCHED 2u
#define IS_WITHIN_MESSAGE 4u

/* Of one descriptor, by its number. The owner is NULL where it is not one of ours. */
typedef struct {
    PyObject *owner;
    uint32_t place; /* among those of its tick */
    uint32_t tick : 24, flags : 8;
} Entry;

typedef struct {
    int *descriptors;
    uint32_t count, capacity;
} Tick;

typedef struct {
    PyObject_HEAD
    int epoll;
    size_t capacity; /* of entries */
    Entry *entries;
    Py_ssize_t count; /* entries with an owner */
    Py_ssize_t tick_count;
    Tick *ticks;
} Poller;

/* Sets *entry to that of the descriptor, or to NULL where it is not one of ours. -1 where it is no number. */
static int find(Poller *poller, PyObject *descriptor, Entry **entry)
{
    const long number = PyLong_AsLong(descriptor);
    if (number == -1 && PyErr_Occurred()) return -1;
    *entry = number >= 0 && (size_t)number < poller->capacity ? &poller->entries[number] : NULL;
    if (*entry && !(*entry)->owner) *entry = NULL;
    return 0;
}

static int descriptor_of(const Poller *poller, const Entry *entry) { return (int)(entry - poller->entries); }

static Tick *tick_of(Poller *poller, PyObject *number)
{
    const Py_ssize_t index = PyLong_AsSsize_t(number);
    if (index == -1 && PyErr_Occurred()) return NULL;
    if (index >= 0 && index < poller->tick_count) return &poller->ticks[index];
    PyErr_SetString(PyExc_IndexError, "there is no such tick");
    return NULL;
}

static int make_room_for(Poller *poller, size_t number)
{
    if (number < poller->capacity) return 0;
    const size_t capacity = number + number / 4 + 64;
    Entry *entries = PyMem_Realloc(poller->entries, capacity * sizeof *entries);
    if (!entries) {
        PyErr_NoMemory();
        return -1;
    }
    memset(entries + poller->capacity, 0, (capacity - poller->capacity) * sizeof *entries);
    poller->entries = entries;
    poller->capacity = capacity;
    return 0;
}

static int watch_entry(Poller *poller, Entry *entry)
{
    if (entry->flags & IS_WATCHED) return 0;
    const int descriptor = descriptor_of(poller, entry);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = descriptor};
    if (epoll_ctl(poller->epoll, EPOLL_CTL_ADD, descriptor, &event)) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    entry->flags |= IS_WATCHED;
    return 0;
}

static void unwatch_entry(Poller *poller, Entry *entry)
{
    if (!(entry->flags & IS_WATCHED)) return;
    struct epoll_event ignored = {0};
    epoll_ctl(poller->epoll, EPOLL_CTL_DEL, descriptor_of(poller, entry), &ignored);
    entry->flags &= ~IS_WATCHED;
}

static void displace_entry(Poller *poller, Entry *entry)
{
    if (entry->tick == NO_TICK) return;
    Tick *tick = &poller->ticks[entry->tick];
    const int last = tick->descriptors[--tick->count];
    tick->descriptors[entry->place] = last;
    poller->entries[last].place = entry->place;
    entry->tick = NO_TICK;
    entry->flags &= ~OWES_PONG;
}

static PyObject *poller_enter(Poller *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "enter takes a descriptor and its owner");
        return NULL;
    }
    const long number = PyLong_AsLong(arguments[0]);
    if (number == -1 && PyErr_Occurred()) return NULL;
    if (number < 0 || number > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "this is no descriptor");
        return NULL;
    }
    if (make_room_for(self, (size_t)number) < 0) return NULL;
    Entry *entry = &self->entries[number];
    if (entry->owner) {
        PyErr_SetString(PyExc_ValueError, "this descriptor is here already");
        return NULL;
    }
    *entry = (Entry){.owner = Py_NewRef(arguments[1]), .tick = NO_TICK};
    self->count++;
    if (watch_entry(self, entry) < 0) {
        entry = &self->entries[number]; /* to make an error may run the collector, which moves them */
        self->count--;
        Py_CLEAR(entry->owner);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *poller_leave(Poller *self, PyObject *descriptor)
{
    Entry *entry;
    if (find(self, descriptor, &entry) < 0) return NULL;
    if (entry) {
        unwatch_entry(self, entry);
        displace_entry(self, entry);
        self->count--;
        PyObject *owner = entry->owner;
        entry->owner = NULL;
        Py_DECREF(owner);
    }
    Py_RETURN_NONE;
}

static PyObject *poller_watch(Poller *self, PyObject *descriptor)
{
    Entry *entry;
    if (find(self, descriptor, &entry) < 0) return NULL;
    if (entry && watch_entry(self, entry) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *poller_unwatch(Poller *self, PyObject *descriptor)
{
    Entry *entry;
    if (find(self, descriptor, &entry) < 0) return NULL;
    if (entry) unwatch_entry(self, entry);
    Py_RETURN_NONE;
}

static PyObject *poller_set_within_message(Poller *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "set_within_message takes a descriptor and a bool");
        return NULL;
    }
    Entry *entry;
    if (find(self, arguments[0], &entry) < 0) return NULL;
    if (entry && arguments[1] == Py_True) entry->flags |= IS_WITHIN_MESSAGE;
    if (entry && arguments[1] != Py_True) entry->flags &= ~IS_WITHIN_MESSAGE;
    Py_RETURN_NONE;
}

static PyObject *poller_place(Poller *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "place takes a descriptor and a tick");
        return NULL;
    }
    Entry *entry;
    if (find(self, arguments[0], &entry) < 0) return NULL;
    Tick *tick = tick_of(self, arguments[1]);
    if (!tick) return NULL;
    if (!entry) Py_RETURN_NONE;
    displace_entry(self, entry);
    if (tick->count == tick->capacity) {
        const uint32_t capacity = tick->capacity + tick->capacity / 2 + 8;
        int *descriptors = PyMem_Realloc(tick->descriptors, capacity * sizeof *descriptors);
        if (!descriptors) return PyErr_NoMemory();
        tick->descriptors = descriptors;
        tick->capacity = capacity;
    }
    entry->tick = (uint32_t)(tick - self->ticks) & NO_TICK;
    entry->place = tick->count;
    tick->descriptors[tick->count++] = descriptor_of(self, entry);
    Py_RETURN_NONE;
}

static PyObject *poller_displace(Poller *self, PyObject *descriptor)
{
    Entry *entry;
    if (find(self, descriptor, &entry) < 0) return NULL;
    if (entry) displace_entry(self, entry);
    Py_RETURN_NONE;
}

static PyObject *poller_ask(Poller *self, PyObject *descriptor)
{
    Entry *entry;
    if (find(self, descriptor, &entry) < 0) return NULL;
    if (entry) entry->flags |= OWES_PONG;
    Py_RETURN_NONE;
}

static PyObject *poller_ask_all(Poller *self, PyObject *number)
{
    Tick *tick = tick_of(self, number);
    if (!tick) return NULL;
    PyObject *owners = PyList_New(0);
    for (uint32_t index = 0; owners && index < tick->count; index++) {
        Entry *entry = &self->entries[tick->descriptors[index]];
        entry->flags |= OWES_PONG;
        if (PyList_Append(owners, entry->owner) < 0) Py_CLEAR(owners);
    }
    return owners;
}

static PyObject *poller_answered(Poller *self, PyObject *descriptor)
{
    Entry *entry;
    if (find(self, descriptor, &entry) < 0) return NULL;
    if (entry) entry->flags &= ~OWES_PONG;
    Py_RETURN_NONE;
}

static PyObject *poller_owes_pong(Poller *self, PyObject *descriptor)
{
    Entry *entry;
    if (find(self, descriptor, &entry) < 0) return NULL;
    return PyBool_FromLong(entry && entry->flags & OWES_PONG);
}

static PyObject *poller_silent(Poller *self, PyObject *number)
{
    Tick *tick = tick_of(self, number);
    if (!tick) return NULL;
    PyObject *owners = PyList_New(0);
    for (uint32_t index = 0; owners && index < tick->count; index++) {
        const Entry *entry = &self->entries[tick->descriptors[index]];
        if (entry->flags & OWES_PONG && PyList_Append(owners, entry->owner) < 0) Py_CLEAR(owners);
    }
    return owners;
}

/* True if a pong that is owed was all that there was to read, or nothing: the owner need not be asked. It is
 * for whatever nobody has asked for, so that it is counted, and waits until its turn.
 */
static int is_dealt_with(Entry *entry, int descriptor)
{
    unsigned char bytes[PONG_BYTES + 1];
    if (!(entry->flags & OWES_PONG) || entry->flags & IS_WITHIN_MESSAGE) return 0;
    const ssize_t size = recv(descriptor, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT);
    if (size < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    if (size != PONG_BYTES || bytes[0] != 0x8a || bytes[1] != 0x80) return 0;
    recv(descriptor, bytes, PONG_BYTES, MSG_DONTWAIT);
    entry->flags &= ~OWES_PONG;
    return 1;
}

static PyObject *poller_ready(Poller *self, PyObject *Py_UNUSED(ignored))
{
    struct epoll_event events[READY_AT_ONCE];
    PyObject *owners = PyList_New(0);
    if (!owners) return NULL;
    const int count = epoll_wait(self->epoll, events, READY_AT_ONCE, 0);
    if (count < 0 && errno != EINTR) {
        Py_DECREF(owners);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    for (int index = 0; index < count; index++) {
        const int descriptor = events[index].data.fd;
        Entry *entry = &self->entries[descriptor];
        if (!entry->owner || is_dealt_with(entry, descriptor)) continue;
        if (PyList_Append(owners, entry->owner) < 0) {
            Py_DECREF(owners);
            return NULL;
        }
    }
    return owners;
}

static PyObject *poller_owners(Poller *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *found = PyList_New(0);
    for (size_t number = 0; found && number < self->capacity; number++) {
        PyObject *owner = self->entries[number].owner;
        if (owner && PyList_Append(found, owner) < 0) Py_CLEAR(found);
    }
    return found;
}

static PyObject *poller_fileno(Poller *self, PyObject *Py_UNUSED(ignored)) { return PyLong_FromLong(self->epoll); }

static Py_ssize_t length(PyObject *self) { return ((Poller *)self)->count; }

static PyObject *new_poller(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"ticks", NULL};
    Py_ssize_t ticks;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "n:Poller", names, &ticks)) return NULL;
    if (ticks < 1 || ticks >= (Py_ssize_t)NO_TICK) {
        PyErr_SetString(PyExc_ValueError, "so many ticks are not possible");
        return NULL;
    }
    Poller *self = (Poller *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->tick_count = ticks;
    self->ticks = PyMem_Calloc((size_t)ticks, sizeof *self->ticks);
    self->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (self->ticks && self->epoll >= 0) return (PyObject *)self;
    if (self->ticks) PyErr_SetFromErrno(PyExc_OSError);
    else PyErr_NoMemory();
    Py_DECREF(self);
    return NULL;
}

static int traverse(Poller *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (size_t number = 0; number < self->capacity; number++) Py_VISIT(self->entries[number].owner);
    return 0;
}

static int clear(Poller *self)
{
    for (size_t number = 0; number < self->capacity; number++) Py_CLEAR(self->entries[number].owner);
    for (Py_ssize_t tick = 0; self->ticks && tick < self->tick_count; tick++) self->ticks[tick].count = 0;
    self->count = 0;
    return 0;
}

static void dealloc(Poller *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    if (self->epoll >= 0) close(self->epoll);
    for (Py_ssize_t tick = 0; self->ticks && tick < self->tick_count; tick++)
        PyMem_Free(self->ticks[tick].descriptors);
    PyMem_Free(self->ticks);
    PyMem_Free(self->entries);
    type->tp_free(self);
    Py_DECREF(type);
}

#define METHOD(name, flags, text) {#name, (PyCFunction)(void (*)(void))poller_##name, flags, PyDoc_STR(text)}

static PyMethodDef methods[] = {
    METHOD(enter, METH_FASTCALL, "enter(descriptor, owner)\n\nHave a socket here, and watch it."),
    METHOD(leave, METH_O, "leave(descriptor)\n\nForget the socket; to be called before it is closed."),
    METHOD(watch, METH_O, "watch(descriptor)\n\nSay when there is something to read, as at the beginning."),
    METHOD(unwatch, METH_O, "unwatch(descriptor)\n\nDo not look at it."),
    METHOD(set_within_message, METH_FASTCALL,
           "set_within_message(descriptor, is_within)\n\nWithin a message the owner has all to read, also pongs."),
    METHOD(place, METH_FASTCALL, "place(descriptor, tick)\n\nHave it asked for a pong at this tick."),
    METHOD(displace, METH_O, "displace(descriptor)\n\nHave it asked no more; what it owes is forgotten."),
    METHOD(ask, METH_O, "ask(descriptor)\n\nIt owes a pong from now on."),
    METHOD(ask_all, METH_O, "ask_all(tick)\n\nAll of this tick owe a pong from now on. Returns their owners."),
    METHOD(answered, METH_O, "answered(descriptor)\n\nIts owner has read a pong."),
    METHOD(owes_pong, METH_O, "owes_pong(descriptor)\n\nTrue if it was asked, and has not answered since."),
    METHOD(silent, METH_O, "silent(tick)\n\nThe owners of those of this tick that owe a pong."),
    METHOD(ready, METH_NOARGS,
           "ready()\n\nTake the pongs that are owed; the owners of sockets that have anything else to read."),
    METHOD(owners, METH_NOARGS, "owners()\n\nOf all sockets that are here."),
    METHOD(fileno, METH_NOARGS, "fileno()\n\nCan be read when `ready` has something to do."),
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Poller(ticks)\n\nSockets that are pinged at one of so many ticks each.")},
    {Py_tp_new, new_poller},
    {Py_tp_dealloc, dealloc},
    {Py_tp_traverse, traverse},
    {Py_tp_clear, clear},
    {Py_tp_methods, methods},
    {Py_sq_length, length},
    {0, NULL},
};

PyType_Spec poller_spec = {
    .name = "handlers._native.Poller",
    .basicsize = sizeof(Poller),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
