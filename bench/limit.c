/* The limit: what one core can do if it does nothing but send.
 *
 * It takes WebSocket clients, hears `ws:*` from Redis, makes each frame once and gives it to each client of the
 * room with one send(). No heartbeat, no limits, no validation, no coalescing: what is faster than this sends
 * several messages at once, what is slower does something besides.
 *
 *   cc -O2 -std=c11 -o limit limit.c && ./limit PORT REDIS_PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"

#define MOST_FILES 65536
#define TABLE (1 << 16) /* rooms, by hash */
#define ROOM_BYTES 64
#define REDIS_BYTES (8 << 20)
#define MOST_WAITING (64 << 20)

typedef struct Client Client;
typedef struct Room Room;

struct Room {
    char id[ROOM_BYTES];
    Client **clients;
    int count, place;
    Room *next;
};

struct Client {
    int fd;
    Room *room; /* NULL before the handshake */
    int number; /* in the room */
    char head[4096];
    size_t head_bytes;
    char *waiting; /* what the socket did not take, from `waiting_at` */
    size_t waiting_at, waiting_bytes, waiting_place;
};

static Client *clients[MOST_FILES];
static Room *table[TABLE];
static int epoll_fd, listen_fd, redis_fd;
static char *redis_in;
static size_t redis_bytes;

static void watch(int fd, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

/* ---- the handshake: SHA-1 and base64 of key and GUID (RFC 6455 4.2.2) ---- */

static uint32_t rotated(uint32_t word, int bits) { return word << bits | word >> (32 - bits); }

static void sha1(const uint8_t *data, size_t bytes, uint8_t digest[20]) {
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    uint8_t padded[256] = {0};
    size_t blocks = (bytes + 8) / 64 + 1;
    if (blocks * 64 > sizeof padded) fail("a key of %zu bytes", bytes);
    memcpy(padded, data, bytes);
    padded[bytes] = 0x80;
    for (int byte = 0; byte < 8; byte++) padded[blocks * 64 - 1 - byte] = (uint8_t)((uint64_t)bytes * 8 >> (8 * byte));
    for (size_t block = 0; block < blocks; block++) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) {
            const uint8_t *p = padded + block * 64 + i * 4;
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++) w[i] = rotated(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t f, k;
            if (i < 20) f = (b & c) | (~b & d), k = 0x5A827999;
            else if (i < 40) f = b ^ c ^ d, k = 0x6ED9EBA1;
            else if (i < 60) f = (b & c) | (b & d) | (c & d), k = 0x8F1BBCDC;
            else f = b ^ c ^ d, k = 0xCA62C1D6;
            uint32_t next = rotated(a, 5) + f + e + k + w[i];
            e = d, d = c, c = rotated(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const uint8_t *data, int bytes, char *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int at = 0; at < bytes; at += 3) {
        int left = bytes - at;
        uint32_t three = (uint32_t)data[at] << 16 | (left > 1 ? data[at + 1] : 0) << 8 | (left > 2 ? data[at + 2] : 0);
        *out++ = digits[three >> 18];
        *out++ = digits[three >> 12 & 63];
        *out++ = left > 1 ? digits[three >> 6 & 63] : '=';
        *out++ = left > 2 ? digits[three & 63] : '=';
    }
    *out = 0;
}

/* ---- rooms ---- */

static Room *room_named(const char *id, size_t bytes, bool creates) {
    if (bytes >= ROOM_BYTES) return NULL;
    uint32_t hash = 2166136261u;
    for (size_t at = 0; at < bytes; at++) hash = (hash ^ (uint8_t)id[at]) * 16777619u;
    Room **place = &table[hash & (TABLE - 1)];
    for (Room *room = *place; room; room = room->next)
        if (strlen(room->id) == bytes && !memcmp(room->id, id, bytes)) return room;
    if (!creates) return NULL;
    Room *room = calloc(1, sizeof *room);
    if (!room) fail("out of memory");
    memcpy(room->id, id, bytes);
    room->next = *place;
    return *place = room;
}

static void join(Client *client, Room *room) {
    if (room->count == room->place) {
        room->place = room->place ? room->place * 2 : 4;
        room->clients = realloc(room->clients, room->place * sizeof *room->clients);
        if (!room->clients) fail("out of memory");
    }
    client->room = room;
    client->number = room->count;
    room->clients[room->count++] = client;
}

static void drop(Client *client) {
    Room *room = client->room;
    if (room) {
        room->clients[client->number] = room->clients[--room->count];
        room->clients[client->number]->number = client->number;
    }
    clients[client->fd] = NULL;
    close(client->fd);
    free(client->waiting);
    free(client);
}

/* ---- sending ---- */

static bool keep(Client *client, const char *data, size_t bytes) {
    size_t held = client->waiting_bytes - client->waiting_at;
    if (held + bytes > MOST_WAITING) return false;
    if (client->waiting_at) {
        memmove(client->waiting, client->waiting + client->waiting_at, held);
        client->waiting_at = 0;
        client->waiting_bytes = held;
    }
    if (held + bytes > client->waiting_place) {
        client->waiting_place = (held + bytes) * 2;
        client->waiting = realloc(client->waiting, client->waiting_place);
        if (!client->waiting) fail("out of memory");
    }
    memcpy(client->waiting + held, data, bytes);
    client->waiting_bytes += bytes;
    return true;
}

/* False: the client is gone. What the socket does not take waits, in order, until it does. */
static bool send_to(Client *client, const char *data, size_t bytes) {
    if (client->waiting_bytes) return keep(client, data, bytes);
    ssize_t sent = send(client->fd, data, bytes, MSG_NOSIGNAL);
    if (sent == (ssize_t)bytes) return true;
    if (sent < 0) {
        if (errno != EAGAIN) return false;
        sent = 0;
    }
    watch(client->fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    return keep(client, data + sent, bytes - sent);
}

static bool send_waiting(Client *client) {
    while (client->waiting_at < client->waiting_bytes) {
        ssize_t sent = send(client->fd, client->waiting + client->waiting_at, client->waiting_bytes - client->waiting_at,
                            MSG_NOSIGNAL);
        if (sent < 0) return errno == EAGAIN;
        client->waiting_at += sent;
    }
    client->waiting_at = client->waiting_bytes = 0;
    watch(client->fd, EPOLLIN, EPOLL_CTL_MOD);
    return true;
}

static void deliver(const char *channel, size_t channel_bytes, const char *message, size_t bytes) {
    static char *frame;
    static size_t frame_place;
    if (channel_bytes < 3) return;
    Room *room = room_named(channel + 3, channel_bytes - 3, false);
    if (!room) return;
    if (bytes + 10 > frame_place) {
        frame_place = bytes + 10;
        frame = realloc(frame, frame_place);
        if (!frame) fail("out of memory");
    }
    size_t head = bytes < 126 ? 2 : bytes < 65536 ? 4 : 10;
    frame[0] = (char)0x81;
    frame[1] = (char)(head == 2 ? bytes : head == 4 ? 126 : 127);
    for (size_t byte = 2; byte < head; byte++) frame[byte] = (char)((uint64_t)bytes >> (8 * (head - 1 - byte)));
    memcpy(frame + head, message, bytes);
    for (int number = room->count - 1; number >= 0; number--)
        if (!send_to(room->clients[number], frame, head + bytes)) drop(room->clients[number]);
}

/* ---- Redis: only what PSUBSCRIBE answers: arrays of bulk strings and integers ---- */

typedef struct {
    const char *data;
    size_t bytes;
} Text;

/* The end of the line after `at`; NULL if it is not here yet. */
static char *line_end(char *at, char *end) {
    char *found = memchr(at, '\n', end - at);
    return found ? found + 1 : NULL;
}

/* The end of one reply; NULL if it is not here yet. */
static char *read_reply(char *at, char *end, Text texts[4], int *count) {
    *count = 0;
    if (at == end) return NULL;
    if (*at != '*') fail("Redis: %.*s", (int)(end - at < 80 ? end - at : 80), at);
    int items = atoi(at + 1);
    if (items > 4) fail("Redis: %d items", items);
    char *next = line_end(at, end);
    for (int item = 0; item < items && next; item++) {
        if (next == end) return NULL;
        char kind = *next;
        char *after = line_end(next, end);
        if (!after) return NULL;
        long bytes = atol(next + 1);
        next = after;
        if (kind == ':') texts[item] = (Text){"", 0};
        else if (kind == '$' && bytes >= 0) {
            if (end - next < bytes + 2) return NULL;
            texts[item] = (Text){next, (size_t)bytes};
            next += bytes + 2;
        } else fail("Redis: unexpected %c", kind);
        *count = item + 1;
    }
    return next;
}

static void read_redis(void) {
    ssize_t got = recv(redis_fd, redis_in + redis_bytes, REDIS_BYTES - redis_bytes, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) fail("Redis closed the connection");
    redis_bytes += got;
    char *at = redis_in, *end = redis_in + redis_bytes, *next;
    Text texts[4];
    int count;
    while ((next = read_reply(at, end, texts, &count))) {
        if (count == 4 && texts[0].bytes == 8 && !memcmp(texts[0].data, "pmessage", 8))
            deliver(texts[2].data, texts[2].bytes, texts[3].data, texts[3].bytes);
        at = next;
    }
    redis_bytes = end - at;
    memmove(redis_in, at, redis_bytes);
}

/* ---- clients ---- */

static void accept_clients(void) {
    for (;;) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= MOST_FILES) {
            close(fd);
            continue;
        }
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        clients[fd] = calloc(1, sizeof(Client));
        if (!clients[fd]) fail("out of memory");
        clients[fd]->fd = fd;
        watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static bool upgrade(Client *client) {
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    client->head[client->head_bytes] = 0;
    if (!strstr(client->head, "\r\n\r\n")) return client->head_bytes < sizeof client->head - 1;
    char *id = strstr(client->head, "sessionId="), *key = strcasestr(client->head, "\r\nSec-WebSocket-Key:");
    if (!id || !key) return false;
    id += 10;
    key += 20;
    key += strspn(key, " ");
    char text[128], answer[256], accepted[32];
    uint8_t digest[20];
    int bytes = snprintf(text, sizeof text, "%.*s%s", (int)strcspn(key, " \r"), key, guid);
    if (bytes >= (int)sizeof text) return false;
    sha1((uint8_t *)text, bytes, digest);
    base64(digest, 20, accepted);
    Room *room = room_named(id, strcspn(id, " &\r"), true);
    if (!room) return false;
    bytes = snprintf(answer, sizeof answer,
                     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Accept: %s\r\n\r\n",
                     accepted);
    join(client, room);
    return send_to(client, answer, bytes);
}

/* What clients say after the handshake is read and forgotten. */
static bool read_client(Client *client) {
    static char forgotten[65536];
    if (client->room) {
        ssize_t got = recv(client->fd, forgotten, sizeof forgotten, 0);
        return got > 0 || (got < 0 && errno == EAGAIN);
    }
    ssize_t got = recv(client->fd, client->head + client->head_bytes, sizeof client->head - 1 - client->head_bytes, 0);
    if (got <= 0) return got < 0 && errno == EAGAIN;
    client->head_bytes += got;
    return upgrade(client);
}

static struct sockaddr_in loopback(const char *port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(port)),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

int main(int argc, char **argv) {
    if (argc != 3) fail("limit PORT REDIS_PORT");
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    redis_in = malloc(REDIS_BYTES);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct sockaddr_in redis = loopback(argv[2]), own = loopback(argv[1]);
    redis_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(redis_fd, (struct sockaddr *)&redis, sizeof redis)) fail("Redis: %s", strerror(errno));
    static const char subscribe[] = "*2\r\n$10\r\nPSUBSCRIBE\r\n$4\r\nws:*\r\n";
    if (send(redis_fd, subscribe, sizeof subscribe - 1, 0) < 0) fail("Redis: %s", strerror(errno));
    read_redis(); /* its confirmation, before anybody can connect */
    fcntl(redis_fd, F_SETFL, O_NONBLOCK);
    watch(redis_fd, EPOLLIN, EPOLL_CTL_ADD);
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listen_fd, (struct sockaddr *)&own, sizeof own) || listen(listen_fd, 511)) fail("%s", strerror(errno));
    watch(listen_fd, EPOLLIN, EPOLL_CTL_ADD);
    for (;;) {
        struct epoll_event events[1024];
        int count = epoll_wait(epoll_fd, events, 1024, -1);
        for (int number = 0; number < count; number++) {
            int fd = events[number].data.fd;
            uint32_t what = events[number].events;
            if (fd == listen_fd) accept_clients();
            else if (fd == redis_fd) read_redis();
            else {
                Client *client = clients[fd];
                if (!client) continue; /* dropped earlier in this turn */
                bool stays = true;
                if (what & EPOLLOUT) stays = send_waiting(client);
                if (stays && what & ~(uint32_t)EPOLLOUT) stays = read_client(client);
                if (!stays) drop(client);
            }
        }
    }
}
