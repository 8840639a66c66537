/* A load generator for WebSocket fan-out that is never the bottleneck.
 *
 * It opens clients, spread over rooms, waits until all have joined, publishes on Redis by itself and counts
 * every message at every client. A publication carries its number as 16 digits, so that each receipt is
 * checked (lost, twice, out of order) and timed. With --switch the rooms are running sessions at version 2,
 * switched by REST instead, and the version that comes is the number. With --deflate compression is offered; a
 * message that comes compressed is not inflated, but counted as the publication that is under way. With --events the
 * clients are those of event streams, and a message is an event; with --lines a frame holds a message per line. One
 * thread, epoll, no libraries:
 *
 *   cc -O2 -std=c11 -o generator generator.c
 *   generator --ports=8001,8002 --redis=6379 --clients=1000 --rooms=FILE --payload=FILE --in-flight=8 ...
 *
 * Stdout: "ready", "measuring" and "measured" as each begins, one line of JSON, "done". All of them are flushed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

#define SEQUENCE_DIGITS 16
#define SEQUENCE_MARK "@@@@@@@@@@@@@@@@"
#define ROOM_MARK "00000000-0000-0000-0000-000000000000"
#define ROOM_LENGTH 36
#define RING (1 << 16)           /* publications that may be on their way at once */
#define CONNECTING_AT_ONCE 64    /* below every server's listen backlog */
#define BUFFER_BYTES (4 << 20)
#define SUB_BITS 7               /* histogram: 128 buckets per power of two, below 0.8 % off */
#define BUCKETS ((64 - SUB_BITS) << SUB_BITS)
#define STALLED_NS 5000000000LL
#define JOIN_NS 120000000000LL

typedef struct {
    int fd;
    int room;
    int port;
    bool is_open, is_joined;
    int64_t last_sequence;
    char *rest; /* the beginning of a frame whose end is not here yet */
    size_t rest_bytes;
} Client;

typedef struct {
    char id[ROOM_LENGTH + 1];
    int clients;
} Room;

typedef struct {
    int64_t sequence, at_ns;
    int missing;
} Publication;

static struct {
    int ports[64], port_count;
    int redis_port; /* or, with is_switching, that of the server which is asked by REST */
    bool is_switching;
    int clients;
    const char *rooms_file, *payload_file, *path, *channel, *hello, *joined, *find, *question, *answer, *subprotocol;
    int in_flight;
    double rate, warm_up_s, seconds;
    bool by_room; /* all clients of a room at one port */
    bool deflates, are_events, are_lines;
    pid_t pids[64];
    int pid_count;
} options = {.path = "/ws?sessionId=%s", .channel = "ws:%s", .find = "\"sequence\":\"", .in_flight = 1,
             .warm_up_s = 1, .seconds = 4, .clients = 100};

static Client *clients;
static Room *rooms;
static int room_count;
static char *payload;
static size_t payload_bytes, sequence_at, room_at;
static bool has_room_mark;
static Publication *ring;
static int epoll_fd, redis_fd, timer_fd;
static char *buffer;

static int opened, joined, closed;
static int64_t published, completed, received, other, twice, misordered, unheard;
static int64_t measured_received, measured_bytes, measured_published, skipped, progress_ns;
static bool is_measuring;
static int64_t *histogram, timed, longest_ns;

static char *redis_out;
static size_t redis_out_bytes, redis_out_room;
static bool redis_waits;
static char redis_in[65536];
static size_t redis_in_bytes;

/* All threads of a process, to the nanosecond; its zombie or absence is 0. */
static double cpu_s(pid_t pid) {
    clockid_t clock;
    struct timespec used;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &used)) return 0;
    return used.tv_sec + used.tv_nsec / 1e9;
}

/* ---- histogram ---- */

static int bucket_of(int64_t ns) {
    if (ns < (1 << SUB_BITS)) return ns < 0 ? 0 : (int)ns;
    int shift = 63 - __builtin_clzll((uint64_t)ns) - SUB_BITS;
    return ((shift + 1) << SUB_BITS) + (int)((ns >> shift) & ((1 << SUB_BITS) - 1));
}

static int64_t middle_of(int bucket) {
    if (bucket < (1 << SUB_BITS)) return bucket;
    int shift = (bucket >> SUB_BITS) - 1;
    int64_t low = (int64_t)((1 << SUB_BITS) + (bucket & ((1 << SUB_BITS) - 1))) << shift;
    return low + ((1LL << shift) >> 1);
}

static double percentile_us(double share) {
    int64_t target = (int64_t)(timed * share), seen = 0;
    if (target >= timed) target = timed - 1;
    for (int bucket = 0; bucket < BUCKETS; bucket++) {
        seen += histogram[bucket];
        if (seen > target) return middle_of(bucket) / 1e3;
    }
    return 0;
}

/* ---- Redis ---- */

static void watch(int fd, uint64_t what, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.u64 = what};
    if (epoll_ctl(epoll_fd, operation, fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

#define REDIS UINT64_MAX
#define TIMER (UINT64_MAX - 1)

static void flush_redis(void) {
    size_t sent = 0;
    while (sent < redis_out_bytes) {
        ssize_t n = send(redis_fd, redis_out + sent, redis_out_bytes - sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) break;
            fail("Redis: %s", strerror(errno));
        }
        sent += n;
    }
    memmove(redis_out, redis_out + sent, redis_out_bytes - sent);
    redis_out_bytes -= sent;
    bool waits = redis_out_bytes > 0;
    if (waits != redis_waits) watch(redis_fd, REDIS, EPOLLIN | (waits ? EPOLLOUT : 0), EPOLL_CTL_MOD);
    redis_waits = waits;
}

/* The replies to PUBLISH: how many subscribers heard it. Of the answers to switches only refusals are looked at. */
static void read_redis(void) {
    ssize_t n = recv(redis_fd, redis_in + redis_in_bytes, sizeof redis_in - redis_in_bytes, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) fail("Redis closed the connection");
    if (options.is_switching) {
        if (n > 12 && !memcmp(redis_in, "HTTP/1.1 ", 9) && memcmp(redis_in + 9, "200", 3)) fail("%.*s", (int)n, redis_in);
        return;
    }
    redis_in_bytes += n;
    char *at = redis_in, *end = redis_in + redis_in_bytes, *line_end;
    while ((line_end = memchr(at, '\n', end - at))) {
        if (*at != ':') fail("Redis: %.*s", (int)(line_end - at), at);
        if (at[1] == '0') unheard++;
        at = line_end + 1;
    }
    redis_in_bytes = end - at;
    memmove(redis_in, at, redis_in_bytes);
}

static void publish(int64_t at_ns) {
    int64_t sequence = ++published;
    Room *room = &rooms[(sequence - 1) % room_count];
    ring[sequence & (RING - 1)] = (Publication){sequence, at_ns, room->clients};
    size_t needed = redis_out_bytes + payload_bytes + 512;
    if (needed > redis_out_room) {
        redis_out_room = needed * 2;
        redis_out = realloc(redis_out, redis_out_room);
        if (!redis_out) fail("out of memory");
    }
    if (options.is_switching) {
        redis_out_bytes += sprintf(redis_out + redis_out_bytes,
                                   "POST /v1/sessions/%s/switch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n",
                                   room->id);
        if (is_measuring) measured_published++;
        return;
    }
    char channel[256];
    int channel_bytes = snprintf(channel, sizeof channel, options.channel, room->id);
    char *out = redis_out + redis_out_bytes;
    out += sprintf(out, "*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%zu\r\n", channel_bytes, channel, payload_bytes);
    memcpy(out, payload, payload_bytes);
    char digits[SEQUENCE_DIGITS + 8];
    snprintf(digits, sizeof digits, "%016lld", (long long)sequence);
    memcpy(out + sequence_at, digits, SEQUENCE_DIGITS);
    if (has_room_mark) memcpy(out + room_at, room->id, ROOM_LENGTH);
    out += payload_bytes;
    *out++ = '\r';
    *out++ = '\n';
    redis_out_bytes = out - redis_out;
    if (is_measuring) measured_published++;
}

/* ---- clients ---- */

static void send_frame(Client *client, int opcode, const char *data, size_t bytes) {
    char frame[6 + 125];
    if (bytes > 125) fail("only short frames are sent");
    frame[0] = (char)(0x80 | opcode);
    frame[1] = (char)(0x80 | bytes);
    memset(frame + 2, 0, 4); /* masked with zeros: legal, and the data stays as it is */
    memcpy(frame + 6, data, bytes);
    if (send(client->fd, frame, 6 + bytes, MSG_NOSIGNAL) < 0 && errno != EAGAIN && errno != EPIPE && errno != ECONNRESET)
        fail("send: %s", strerror(errno));
}

static void join(Client *client) {
    if (client->is_joined) return;
    client->is_joined = true;
    joined++;
}

static void connect_client(int number) {
    Client *client = &clients[number];
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0) fail("socket: %s", strerror(errno));
    int on = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(client->port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(client->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    watch(client->fd, number, EPOLLOUT, EPOLL_CTL_ADD);
}

static void ask_for_upgrade(int number) {
    Client *client = &clients[number];
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) fail("connect to port %d: %s", client->port, strerror(error));
    char path[512], request[1024];
    snprintf(path, sizeof path, options.path, rooms[client->room].id);
    int bytes = options.are_events
        ? snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n", path, client->port)
        : snprintf(request, sizeof request,
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s%s%s\r\n",
                         path, client->port, options.subprotocol ? "Sec-WebSocket-Protocol: " : "",
                         options.subprotocol ? options.subprotocol : "", options.subprotocol ? "\r\n" : "",
                         options.deflates ? "Sec-WebSocket-Extensions: permessage-deflate\r\n" : "");
    if (send(client->fd, request, bytes, MSG_NOSIGNAL) != bytes) fail("the request was not taken");
    watch(client->fd, number, EPOLLIN, EPOLL_CTL_MOD);
}

static void lose(Client *client) {
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, client->fd, NULL);
    close(client->fd);
    client->fd = -1;
    closed++;
}

static void take_publication(Client *client, int64_t sequence, size_t frame_bytes, int64_t at_ns) {
    if (sequence == client->last_sequence) {
        twice++;
        return;
    }
    /* What is skipped shows in that fewer are received than expected. */
    if (sequence < client->last_sequence) misordered++;
    else client->last_sequence = sequence;
    received++;
    if (is_measuring) measured_received++, measured_bytes += frame_bytes;
    Publication *publication = &ring[sequence & (RING - 1)];
    if (publication->sequence != sequence) {
        misordered++;
        return;
    }
    if (is_measuring) {
        int64_t took_ns = at_ns - publication->at_ns;
        histogram[bucket_of(took_ns)]++;
        timed++;
        if (took_ns > longest_ns) longest_ns = took_ns;
    }
    if (--publication->missing == 0) completed++;
}

static bool begins_with(const char *data, size_t bytes, const char *text) {
    return text && bytes >= strlen(text) && !memcmp(data, text, strlen(text));
}

/* The number at the beginning of this: decimal digits, or in a binary message MessagePack's. */
static int64_t number_at(const char *at, bool is_binary) {
    int64_t number = 0;
    if (is_binary) {
        uint8_t first = (uint8_t)*at;
        if (first < 0x80) return first;
        if (first < 0xcc || first > 0xcf) return 0;
        for (int byte = 1; byte <= 1 << (first - 0xcc); byte++) number = number << 8 | (uint8_t)at[byte];
        return number;
    }
    for (int digits = 0; digits < SEQUENCE_DIGITS && *at >= '0' && *at <= '9'; digits++, at++)
        number = number * 10 + (*at - '0');
    return number;
}

static void take_message(Client *client, const char *data, size_t bytes, size_t head_bytes, bool is_binary, int64_t at_ns) {
    static size_t usual_place; /* messages look alike: the number is mostly where it was last */
    if (!client->is_joined && begins_with(data, bytes, options.joined)) {
        other++;
        join(client);
        return;
    }
    size_t find_bytes = strlen(options.find), needed = find_bytes + SEQUENCE_DIGITS;
    const char *mark = NULL;
    if (bytes >= usual_place + needed && !memcmp(data + usual_place, options.find, find_bytes))
        mark = data + usual_place;
    else if (bytes >= needed)
        mark = memmem(data, bytes - SEQUENCE_DIGITS, options.find, find_bytes);
    if (mark) {
        usual_place = mark - data;
        int64_t sequence = number_at(mark + find_bytes, is_binary);
        /* The first switch makes version 3. */
        if (options.is_switching) sequence = (sequence - 3) * room_count + client->room + 1;
        take_publication(client, sequence, head_bytes + bytes, at_ns);
        return;
    }
    other++;
    if (options.question && bytes == strlen(options.question) && !memcmp(data, options.question, bytes))
        send_frame(client, 1, options.answer, strlen(options.answer));
}

/* The messages of one frame, which are its lines. */
static void take_lines(Client *client, const char *data, size_t bytes, size_t head_bytes, int64_t at_ns) {
    const char *end = data + bytes, *end_of_line;
    for (; (end_of_line = memchr(data, '\n', end - data)); data = end_of_line + 1, head_bytes = 1)
        take_message(client, data, end_of_line - data, head_bytes, false, at_ns);
    if (data < end) take_message(client, data, end - data, head_bytes, false, at_ns);
}

static void take_deflated(Client *client, size_t frame_bytes, int64_t at_ns) {
    if (client->is_joined) {
        take_publication(client, published, frame_bytes, at_ns);
        return;
    }
    other++;
    join(client);
}

/* How many bytes of the answer's head are complete; 0 if it is not. */
static size_t take_head(Client *client, char *data, size_t bytes) {
    char *end = memmem(data, bytes, "\r\n\r\n", 4);
    if (!end) return 0;
    if (bytes < 12 || memcmp(data, options.are_events ? "HTTP/1.1 200" : "HTTP/1.1 101", 12)) fail("no upgrade: %.*s", (int)(end - data), data);
    if (options.deflates && !memmem(data, end - data, "permessage-deflate", 18)) fail("no compression");
    client->is_open = true;
    opened++;
    if (options.hello) send_frame(client, 1, options.hello, strlen(options.hello));
    if (!options.joined) join(client);
    return end + 4 - data;
}

/* Returns where the rest begins. Comments, and what is about coming back, are no events. */
static char *take_events(Client *client, char *at, char *end, int64_t at_ns) {
    char *end_of_event;
    while ((end_of_event = memmem(at, end - at, "\n\n", 2))) {
        if (begins_with(at, end_of_event - at, "event: ")) take_message(client, at, end_of_event - at, 2, false, at_ns);
        at = end_of_event + 2;
    }
    return at;
}

/* Reads once: whole frames are handled, the beginning of one is kept for the next time. */
static void read_client(Client *client) {
    memcpy(buffer, client->rest, client->rest_bytes);
    ssize_t n = recv(client->fd, buffer + client->rest_bytes, BUFFER_BYTES - client->rest_bytes, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        lose(client);
        return;
    }
    int64_t at_ns = now_ns();
    char *at = buffer, *end = buffer + client->rest_bytes + n;
    if (!client->is_open) at += take_head(client, at, end - at);
    if (options.are_events && client->is_open) at = take_events(client, at, end, at_ns);
    while (!options.are_events && client->is_open && end - at >= 2) {
        uint8_t *head = (uint8_t *)at;
        size_t bytes = head[1] & 0x7f, head_bytes = 2;
        if (head[1] & 0x80) fail("a masked frame from the server");
        if (head[0] & (options.deflates ? 0x30 : 0x70)) fail("a compressed frame, which was not asked for");
        if (bytes == 126) head_bytes = 4;
        if (bytes == 127) head_bytes = 10;
        if ((size_t)(end - at) < head_bytes) break;
        if (head_bytes > 2) {
            bytes = 0;
            for (size_t byte = 2; byte < head_bytes; byte++) bytes = bytes << 8 | head[byte];
        }
        if (bytes > BUFFER_BYTES / 2) fail("a frame of %zu bytes", bytes);
        if ((size_t)(end - at) < head_bytes + bytes) break;
        at += head_bytes;
        int opcode = head[0] & 0x0f;
        if (head[0] & 0x40) take_deflated(client, head_bytes + bytes, at_ns);
        else if (opcode == 1 && options.are_lines) take_lines(client, at, bytes, head_bytes, at_ns);
        else if (opcode == 1 || opcode == 2) take_message(client, at, bytes, head_bytes, opcode == 2, at_ns);
        else if (opcode == 9) send_frame(client, 10, at, bytes);
        else if (opcode == 8 && bytes >= 2 && !closed)
            fprintf(stderr, "generator: closed with %d %.*s\n", (uint8_t)at[0] << 8 | (uint8_t)at[1], (int)bytes - 2, at + 2);
        at += bytes;
    }
    client->rest_bytes = end - at;
    if (client->rest_bytes) {
        client->rest = realloc(client->rest, client->rest_bytes);
        if (!client->rest) fail("out of memory");
        memcpy(client->rest, at, client->rest_bytes);
    }
}

/* ---- the course of a run ---- */

static bool wait_for_events(int timeout_ms) {
    struct epoll_event events[1024];
    int count = epoll_wait(epoll_fd, events, 1024, timeout_ms);
    bool rang = false;
    for (int number = 0; number < count; number++) {
        uint64_t what = events[number].data.u64;
        if (what == REDIS) {
            if (events[number].events & EPOLLOUT) flush_redis();
            if (events[number].events & ~(uint32_t)EPOLLOUT) read_redis();
        } else if (what == TIMER) {
            uint64_t times;
            rang = read(timer_fd, &times, sizeof times) > 0;
        } else if (clients[what].fd >= 0) {
            if (events[number].events & EPOLLOUT) ask_for_upgrade((int)what);
            else read_client(&clients[what]);
        }
    }
    return rang;
}

static void wait_until_joined(void) {
    int64_t give_up_ns = now_ns() + JOIN_NS;
    int started = 0;
    while (joined < options.clients) {
        while (started < options.clients && started - joined < CONNECTING_AT_ONCE) connect_client(started++);
        wait_for_events(100);
        if (closed) fail("%d clients were closed before all had joined", closed);
        if (now_ns() > give_up_ns) fail("%d of %d opened, %d joined", opened, options.clients, joined);
    }
}

static void ring_at(int64_t at_ns) {
    struct itimerspec when = {.it_value = {at_ns / 1000000000, at_ns % 1000000000}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL)) fail("timerfd: %s", strerror(errno));
}

/* Publishes what is due; with a rate, the receipt is timed from when it was due, not from when it was sent. */
static void publish_due(int64_t begin_ns, int64_t *due) {
    if (options.rate > 0) {
        int64_t at_ns = now_ns(), next_ns;
        while ((next_ns = begin_ns + (int64_t)(*due * (1e9 / options.rate))) <= at_ns) {
            ++*due;
            if (published - completed < RING - 1) publish(next_ns);
            else skipped++;
        }
        ring_at(next_ns);
    } else {
        while (published - completed < options.in_flight) publish(now_ns());
    }
    if (redis_out_bytes && !redis_waits) flush_redis();
}

/* Until the time is over, or nothing arrives any more although something should. */
static bool run_until(int64_t end_ns, int64_t begin_ns, int64_t *due, bool publishes) {
    int64_t had = received;
    progress_ns = now_ns();
    for (;;) {
        if (publishes) publish_due(begin_ns, due);
        else if (completed == published) return true;
        wait_for_events(100);
        int64_t at_ns = now_ns();
        if (received != had) had = received, progress_ns = at_ns;
        else if (published > completed && at_ns - progress_ns > STALLED_NS) return false;
        if (at_ns >= end_ns) return publishes;
    }
}

static int numbers(char *list, int *into, int most) {
    int count = 0;
    for (char *each = strtok(list, ","); each && count < most; each = strtok(NULL, ",")) into[count++] = atoi(each);
    return count;
}

static void read_options(int argc, char **argv) {
    enum { PORTS, REDIS_PORT, CLIENTS, ROOMS, PAYLOAD, PATH, CHANNEL, HELLO, JOINED, FIND, ANSWER, IN_FLIGHT, RATE,
           WARM_UP, SECONDS, PIDS, BY_ROOM, SWITCH, SUBPROTOCOL, DEFLATE, EVENTS, LINES };
    static const struct option names[] = {
        {"ports", 1, 0, PORTS},       /* servers, clients go round them */
        {"redis", 1, 0, REDIS_PORT},
        {"clients", 1, 0, CLIENTS},
        {"rooms", 1, 0, ROOMS},       /* a file of ids of 36 characters, one per line */
        {"payload", 1, 0, PAYLOAD},   /* a file: @@@@@@@@@@@@@@@@ becomes the number, the zero UUID the room's id */
        {"path", 1, 0, PATH},         /* with %s for the room */
        {"channel", 1, 0, CHANNEL},   /* with %s for the room */
        {"hello", 1, 0, HELLO},       /* a text sent after the handshake */
        {"joined", 1, 0, JOINED},     /* how the message begins after which a client has joined */
        {"find", 1, 0, FIND},         /* what stands before the number in a received message */
        {"answer", 1, 0, ANSWER},     /* QUESTION=ANSWER: a text to be answered by a text */
        {"in-flight", 1, 0, IN_FLIGHT},
        {"rate", 1, 0, RATE},         /* publications per second, instead of --in-flight */
        {"warm-up", 1, 0, WARM_UP},
        {"seconds", 1, 0, SECONDS},
        {"pids", 1, 0, PIDS},         /* processes whose CPU time is measured too */
        {"by-room", 0, 0, BY_ROOM},   /* all clients of a room at one port */
        {"switch", 1, 0, SWITCH},     /* instead of --redis: the port of the server that is asked for switches */
        {"subprotocol", 1, 0, SUBPROTOCOL},
        {"deflate", 0, 0, DEFLATE},   /* with --in-flight=1 */
        {"events", 0, 0, EVENTS},     /* clients of event streams */
        {"lines", 0, 0, LINES},       /* a frame has a message in each line */
        {0}};
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (option) {
        case PORTS: options.port_count = numbers(optarg, options.ports, 64); break;
        case REDIS_PORT: options.redis_port = atoi(optarg); break;
        case CLIENTS: options.clients = atoi(optarg); break;
        case ROOMS: options.rooms_file = optarg; break;
        case PAYLOAD: options.payload_file = optarg; break;
        case PATH: options.path = optarg; break;
        case CHANNEL: options.channel = optarg; break;
        case HELLO: options.hello = optarg; break;
        case JOINED: options.joined = optarg; break;
        case FIND: options.find = optarg; break;
        case ANSWER:
            options.question = optarg;
            options.answer = strchr(optarg, '=');
            if (!options.answer) fail("--answer is QUESTION=ANSWER");
            *(char *)options.answer++ = 0;
            break;
        case IN_FLIGHT: options.in_flight = atoi(optarg); break;
        case RATE: options.rate = atof(optarg); break;
        case WARM_UP: options.warm_up_s = atof(optarg); break;
        case SECONDS: options.seconds = atof(optarg); break;
        case PIDS: options.pid_count = numbers(optarg, options.pids, 64); break;
        case BY_ROOM: options.by_room = true; break;
        case SWITCH: options.redis_port = atoi(optarg), options.is_switching = true, options.find = "\"version\":"; break;
        case SUBPROTOCOL: options.subprotocol = optarg; break;
        case DEFLATE: options.deflates = true; break;
        case EVENTS: options.are_events = true; break;
        case LINES: options.are_lines = true; break;
        default: exit(2);
        }
    if (!options.port_count || !options.redis_port || !options.rooms_file ||
        !options.payload_file != options.is_switching)
        fail("--ports, --rooms, and either --redis and --payload or --switch are needed");
    if (options.deflates && (options.in_flight != 1 || options.rate > 0)) fail("--deflate is for one publication at a time");
    if (options.in_flight < 1 || options.in_flight >= RING || options.clients < 1) fail("nothing to do");
}

static void read_rooms(void) {
    FILE *file = fopen(options.rooms_file, "r");
    if (!file) fail("%s: %s", options.rooms_file, strerror(errno));
    char id[ROOM_LENGTH + 2];
    while (fscanf(file, "%37s", id) == 1) {
        if (strlen(id) != ROOM_LENGTH) fail("a room's id has %d characters", ROOM_LENGTH);
        rooms = realloc(rooms, (room_count + 1) * sizeof *rooms);
        if (!rooms) fail("out of memory");
        memcpy(rooms[room_count].id, id, ROOM_LENGTH + 1);
        rooms[room_count++].clients = 0;
    }
    fclose(file);
    if (!room_count || room_count > options.clients) fail("%d rooms, %d clients", room_count, options.clients);
}

static void read_payload(void) {
    FILE *file = fopen(options.payload_file, "rb");
    if (!file) fail("%s: %s", options.payload_file, strerror(errno));
    payload = malloc(1 << 20);
    payload_bytes = fread(payload, 1, 1 << 20, file);
    fclose(file);
    char *mark = memmem(payload, payload_bytes, SEQUENCE_MARK, SEQUENCE_DIGITS);
    if (!mark) fail("the payload has no place for the number");
    sequence_at = mark - payload;
    mark = memmem(payload, payload_bytes, ROOM_MARK, ROOM_LENGTH);
    has_room_mark = mark != NULL;
    if (mark) room_at = mark - payload;
}

static void set_up(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1);
    buffer = malloc(BUFFER_BYTES);
    ring = calloc(RING, sizeof *ring);
    histogram = calloc(BUCKETS, sizeof *histogram);
    clients = calloc(options.clients, sizeof *clients);
    if (!buffer || !ring || !histogram || !clients) fail("out of memory");
    uint64_t dice = 88172645463325252ULL; /* the same in every run */
    for (int number = 0; number < options.clients; number++) {
        Client *client = &clients[number];
        client->room = number % room_count;
        dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
        /* Without --by-room a client is where chance, the balancer, has put it. */
        client->port = options.ports[(options.by_room ? (uint64_t)client->room : dice >> 11) % options.port_count];
        rooms[client->room].clients++;
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(timer_fd, TIMER, EPOLLIN, EPOLL_CTL_ADD);
    redis_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(options.redis_port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(redis_fd, (struct sockaddr *)&to, sizeof to)) fail("Redis: %s", strerror(errno));
    int on = 1;
    setsockopt(redis_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(redis_fd, F_SETFL, O_NONBLOCK);
    watch(redis_fd, REDIS, EPOLLIN, EPOLL_CTL_ADD);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    read_rooms();
    if (!options.is_switching) read_payload();
    set_up();
    int64_t connect_ns = now_ns();
    wait_until_joined();
    double join_s = (now_ns() - connect_ns) / 1e9;
    say("ready");

    int64_t begin_ns = now_ns(), due = 0, end_ns = begin_ns + (int64_t)(options.warm_up_s * 1e9);
    bool flows = run_until(end_ns, begin_ns, &due, true);

    say("measuring");
    double cpu_before_s[64], own_before_s = cpu_s(getpid());
    for (int each = 0; each < options.pid_count; each++) cpu_before_s[each] = cpu_s(options.pids[each]);
    int64_t from_ns = now_ns();
    is_measuring = true;
    flows = flows && run_until(from_ns + (int64_t)(options.seconds * 1e9), begin_ns, &due, true);
    double wall_s = (now_ns() - from_ns) / 1e9, own_s = cpu_s(getpid()) - own_before_s, cpu_used_s[64];
    for (int each = 0; each < options.pid_count; each++)
        cpu_used_s[each] = cpu_s(options.pids[each]) - cpu_before_s[each];
    is_measuring = false;
    say("measured");

    /* What is still on its way belongs to no period, but must arrive. */
    flows = flows && run_until(now_ns() + 2 * STALLED_NS, begin_ns, &due, false);
    int64_t expected = 0;
    for (int64_t sequence = 1; sequence <= published; sequence++)
        expected += rooms[(sequence - 1) % room_count].clients;
    printf("{\"clients\":%d,\"rooms\":%d,\"join_s\":%.3f,\"publications\":%lld,\"expected\":%lld,\"received\":%lld,"
           "\"twice\":%lld,\"misordered\":%lld,\"other\":%lld,\"unheard\":%lld,\"skipped\":%lld,\"closed\":%d,"
           "\"stalled\":%s,\"payload_bytes\":%zu,",
           options.clients, room_count, join_s, (long long)published, (long long)expected, (long long)received,
           (long long)twice, (long long)misordered, (long long)other, (long long)unheard, (long long)skipped, closed,
           flows ? "false" : "true", payload_bytes);
    printf("\"measured\":{\"wall_s\":%.6f,\"publications\":%lld,\"received\":%lld,\"bytes\":%lld,\"generator_cpu_s\":%.6f,"
           "\"generator_share\":%.4f,\"cpu_s\":[",
           wall_s, (long long)measured_published, (long long)measured_received, (long long)measured_bytes, own_s, own_s / wall_s);
    for (int each = 0; each < options.pid_count; each++) printf("%s%.6f", each ? "," : "", cpu_used_s[each]);
    printf("]},\"latency_us\":{\"p50\":%.1f,\"p99\":%.1f,\"p99_9\":%.1f,\"max\":%.1f}}\n", percentile_us(0.5),
           percentile_us(0.99), percentile_us(0.999), longest_ns / 1e3);
    say("done");
    return 0;
}
