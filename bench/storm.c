/* WebSocket clients that all lose their connections and come back, as clients do: a reconnect storm.
 *
 * One thread, epoll, no libraries:
 *
 *   cc -O2 -std=c11 -o storm storm.c
 *   storm --port=8080 --clients=10000 --rooms=FILE --path=/ws?sessionId=%s --joined=TEXT --subprotocol=lockstep.v2.json
 *
 * They come from as many source addresses as --sources says, 127.0.1.1 and so on: one of them has 28,000 ports, and
 * those that were just in use are not free for a minute. A client that comes back says the latest position that it was
 * sent. Who was sent away with GOING_AWAY waits as long as it was told; else a client waits as the client for JavaScript
 * does: up to half a second, which doubles with each attempt that fails, by chance.
 *
 * Stdin: a line "cut" ends all connections by the clients' own hand, and all come back in the same moment; "watch" begins
 * to count, for what others do to them; "report" says that they have done it; the end of it ends the program. Stdout:
 * "ready" when all have joined, and a line of JSON when all have been lost, or it was said that no more will be, and all
 * have come back.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
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

#define ROOM_LENGTH 36
#define POSITION_BYTES 64
#define BUFFER_BYTES (1 << 20)
#define FIRST_AT_ONCE 64
#define FIRST_NS 120000000000LL
#define LOOK_NS 5000000LL /* how often it is looked whose time has come */
#define FIRST_BACKOFF_MS 500
#define MOST_BACKOFF_MS 15000
#define STDIN UINT32_MAX

typedef struct {
    int fd, attempts;
    bool is_open, is_joined;
    bool has_told; /* the server has said how long to wait */
    int64_t away_ns, due_ns;
    char position[POSITION_BYTES];
    char *rest; /* the beginning of what is not whole yet */
    size_t rest_bytes;
} Client;

static struct {
    int port, clients, sources;
    const char *path, *rooms_file, *subprotocol, *joined;
} options = {.clients = 1000, .sources = 16, .path = "/ws?sessionId=%s"};

static Client *clients;
static char (*rooms)[ROOM_LENGTH + 1];
static int room_count, epoll_fd, joined;
static bool is_over, has_begun, has_all_been_done;
static char buffer[BUFFER_BYTES];

/* Since the storm began. */
static struct {
    int64_t began_ns;
    int lost, attempts, connect_refused, reset, unavailable, limited, other_status;
    int returned;
    int *away_us;
} storm;

static void watch(int fd, uint32_t what, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.u32 = what};
    if (epoll_ctl(epoll_fd, operation, fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

static void connect_client(int number) {
    Client *client = &clients[number];
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0) fail("socket: %s", strerror(errno));
    int on = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* The port is chosen by connect, which knows the other end, and not by bind. */
    setsockopt(client->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    struct sockaddr_in from = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(0x7f000100 + 1 + number % options.sources)};
    if (bind(client->fd, (struct sockaddr *)&from, sizeof from)) fail("bind: %s", strerror(errno));
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(options.port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(client->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    storm.attempts++;
    watch(client->fd, number, EPOLLOUT, EPOLL_CTL_ADD);
}

/* The connection is no more: when does the client come back? */
static void lose(Client *client, bool is_at_once) {
    int64_t at_ns = now_ns();
    if (client->is_joined) {
        joined--, storm.lost++;
        client->away_ns = at_ns;
        client->attempts = 0;
    }
    if (client->fd >= 0) close(client->fd);
    client->fd = -1;
    client->is_open = client->is_joined = false;
    client->rest_bytes = 0;
    if (is_at_once) client->due_ns = at_ns;
    else if (!client->has_told) {
        double most_ms = FIRST_BACKOFF_MS * (double)(1 << (client->attempts < 5 ? client->attempts : 5));
        if (most_ms > MOST_BACKOFF_MS) most_ms = MOST_BACKOFF_MS;
        client->due_ns = at_ns + (int64_t)(most_ms * 1e6 * (rand() / (RAND_MAX + 1.0)));
        client->attempts++;
    }
    client->has_told = false;
}

static void ask_for_upgrade(int number) {
    Client *client = &clients[number];
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        storm.connect_refused++;
        lose(client, false);
        return;
    }
    char path[512], request[1024];
    int path_bytes = snprintf(path, sizeof path, options.path, rooms[number % room_count]);
    if (client->position[0]) snprintf(path + path_bytes, sizeof path - path_bytes, "&position=%s", client->position);
    int bytes = snprintf(request, sizeof request,
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
                         path, options.port, options.subprotocol ? "Sec-WebSocket-Protocol: " : "",
                         options.subprotocol ? options.subprotocol : "", options.subprotocol ? "\r\n" : "");
    if (send(client->fd, request, bytes, MSG_NOSIGNAL) != bytes) {
        storm.reset++;
        lose(client, false);
        return;
    }
    watch(client->fd, number, EPOLLIN, EPOLL_CTL_MOD);
}

static void take_text(Client *client, const char *data, size_t bytes) {
    static const char away[] = "\"reconnectAfterMs\":", position[] = "\"position\":\"";
    const char *end = data + bytes, *found = NULL, *at = data;
    if (bytes < 100 && (at = memmem(data, bytes, away, sizeof away - 1))) {
        client->due_ns = now_ns() + atoll(at + sizeof away - 1) * 1000000;
        client->has_told = true;
    }
    at = data;
    while ((at = memmem(at, end - at, position, sizeof position - 1))) found = at += sizeof position - 1;
    const char *quote = found ? memchr(found, '"', end - found) : NULL;
    if (quote && quote - found < POSITION_BYTES) {
        memcpy(client->position, found, quote - found);
        client->position[quote - found] = 0;
    }
    if (client->is_joined || bytes < strlen(options.joined) || memcmp(data, options.joined, strlen(options.joined)))
        return;
    client->is_joined = true;
    client->attempts = 0;
    joined++;
    if (has_begun && storm.returned < options.clients * 8)
        storm.away_us[storm.returned++] = (int)((now_ns() - client->away_ns) / 1000);
}

/* How many bytes of the answer to the upgrade are complete; -1 if it is a refusal. */
static ssize_t take_head(Client *client, char *data, size_t bytes) {
    char *end = memmem(data, bytes, "\r\n\r\n", 4);
    if (!end) return 0;
    int status = bytes < 12 ? 0 : atoi(data + 9);
    if (status != 101) {
        if (status == 503 || status == 502) storm.unavailable++;
        else if (status == 429) storm.limited++;
        else storm.other_status++;
        return -1;
    }
    client->is_open = true;
    return end + 4 - data;
}

static void read_client(int number) {
    Client *client = &clients[number];
    if (client->rest_bytes) memcpy(buffer, client->rest, client->rest_bytes);
    ssize_t n = recv(client->fd, buffer + client->rest_bytes, BUFFER_BYTES - client->rest_bytes, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        if (!client->is_joined) storm.reset++;
        lose(client, false);
        return;
    }
    char *at = buffer, *end = buffer + client->rest_bytes + n;
    if (!client->is_open) {
        ssize_t taken = take_head(client, at, end - at);
        if (taken < 0) {
            lose(client, false);
            return;
        }
        at += taken;
    }
    while (client->is_open && end - at >= 2) {
        uint8_t *head = (uint8_t *)at;
        size_t bytes = head[1], head_bytes = bytes == 126 ? 4 : bytes == 127 ? 10 : 2;
        if ((size_t)(end - at) < head_bytes) break;
        if (head_bytes > 2) bytes = 0;
        for (size_t byte = 2; byte < head_bytes; byte++) bytes = bytes << 8 | head[byte];
        if (bytes > BUFFER_BYTES / 2) fail("a frame of %zu bytes", bytes);
        if ((size_t)(end - at) < head_bytes + bytes) break;
        at += head_bytes;
        int opcode = head[0] & 0x0f;
        if (opcode == 1) take_text(client, at, bytes);
        else if (opcode == 9) {
            char pong[] = {(char)0x8a, (char)0x80, 0, 0, 0, 0}; /* pings here are empty */
            send(client->fd, pong, sizeof pong, MSG_NOSIGNAL);
        } else if (opcode == 8) {
            lose(client, false);
            return;
        }
        at += bytes;
    }
    client->rest_bytes = end - at;
    if (client->rest_bytes) {
        client->rest = realloc(client->rest, client->rest_bytes);
        if (!client->rest) fail("out of memory");
        memcpy(client->rest, at, client->rest_bytes);
    } else {
        free(client->rest);
        client->rest = NULL;
    }
}

/* ---- the course of a run ---- */

static void begin(void) {
    int *away_us = storm.away_us;
    memset(&storm, 0, sizeof storm);
    storm.away_us = away_us;
    storm.began_ns = now_ns();
    has_begun = true;
    has_all_been_done = false;
}

static void read_command(void) {
    char command[64];
    ssize_t n = read(STDIN_FILENO, command, sizeof command);
    if (n <= 0) is_over = true;
    else if (!strncmp(command, "report", 6)) has_all_been_done = true;
    else begin();
    if (n > 0 && !strncmp(command, "cut", 3))
        for (int number = 0; number < options.clients; number++) lose(&clients[number], true);
}

static void wait_for_events(int timeout_ms) {
    struct epoll_event events[1024];
    int count = epoll_wait(epoll_fd, events, 1024, timeout_ms);
    for (int each = 0; each < count; each++) {
        uint32_t what = events[each].data.u32;
        if (what == STDIN) read_command();
        else if (clients[what].fd < 0) continue;
        else if (events[each].events & EPOLLOUT) ask_for_upgrade((int)what);
        else read_client((int)what);
    }
}

static int by_size(const void *left, const void *right) { return *(const int *)left - *(const int *)right; }

static void report(void) {
    double took_s = (now_ns() - storm.began_ns) / 1e9;
    qsort(storm.away_us, storm.returned, sizeof *storm.away_us, by_size);
    int last = storm.returned ? storm.returned - 1 : 0;
    printf("{\"took_s\":%.3f,\"lost\":%d,\"returned\":%d,\"attempts\":%d,\"connect_refused\":%d,\"reset\":%d,"
           "\"unavailable\":%d,\"limited\":%d,\"other_status\":%d,\"away_s\":{\"p50\":%.3f,\"p99\":%.3f,\"max\":%.3f}}\n",
           took_s, storm.lost, storm.returned, storm.attempts, storm.connect_refused, storm.reset, storm.unavailable,
           storm.limited, storm.other_status, storm.away_us[(int)(last * 0.5)] / 1e6,
           storm.away_us[(int)(last * 0.99)] / 1e6, storm.away_us[last] / 1e6);
    fflush(stdout);
}

static void read_options(int argc, char **argv) {
    enum { PORT, CLIENTS, SOURCES, PATH, ROOMS, SUBPROTOCOL, JOINED };
    static const struct option names[] = {
        {"port", 1, 0, PORT},
        {"clients", 1, 0, CLIENTS},
        {"sources", 1, 0, SOURCES}, /* addresses to come from */
        {"path", 1, 0, PATH},       /* with %s for the room */
        {"rooms", 1, 0, ROOMS},     /* a file of ids of 36 characters, one per line; clients go round them */
        {"subprotocol", 1, 0, SUBPROTOCOL},
        {"joined", 1, 0, JOINED},   /* how the message begins after which a client has joined */
        {0}};
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (option) {
        case PORT: options.port = atoi(optarg); break;
        case CLIENTS: options.clients = atoi(optarg); break;
        case SOURCES: options.sources = atoi(optarg); break;
        case PATH: options.path = optarg; break;
        case ROOMS: options.rooms_file = optarg; break;
        case SUBPROTOCOL: options.subprotocol = optarg; break;
        case JOINED: options.joined = optarg; break;
        default: exit(2);
        }
    if (!options.port || options.clients < 1 || !options.joined || !options.rooms_file || options.sources < 1)
        fail("--port, --rooms and --joined are needed");
}

static void read_rooms(void) {
    FILE *file = fopen(options.rooms_file, "r");
    if (!file) fail("%s: %s", options.rooms_file, strerror(errno));
    char id[ROOM_LENGTH + 2];
    while (fscanf(file, "%37s", id) == 1) {
        if (strlen(id) != ROOM_LENGTH) fail("a room's id has %d characters", ROOM_LENGTH);
        rooms = realloc(rooms, (room_count + 1) * sizeof *rooms);
        if (!rooms) fail("out of memory");
        memcpy(rooms[room_count++], id, ROOM_LENGTH + 1);
    }
    fclose(file);
    if (!room_count) fail("no rooms");
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    read_rooms();
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    clients = calloc(options.clients, sizeof *clients);
    storm.away_us = calloc(options.clients * 8, sizeof *storm.away_us);
    if (!clients || !storm.away_us) fail("out of memory");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(STDIN_FILENO, STDIN, EPOLLIN, EPOLL_CTL_ADD);

    int64_t give_up_ns = now_ns() + FIRST_NS;
    for (int started = 0; joined < options.clients && !is_over;) {
        while (started < options.clients && started - joined < FIRST_AT_ONCE) connect_client(started++);
        wait_for_events(100);
        if (storm.connect_refused || storm.reset || storm.unavailable || storm.limited || storm.other_status)
            fail("a client was refused when %d had joined", joined);
        if (now_ns() > give_up_ns) fail("%d of %d joined", joined, options.clients);
    }
    puts("ready");
    fflush(stdout);
    for (int64_t looked_ns = 0; !is_over;) {
        wait_for_events(1);
        int64_t at_ns = now_ns();
        if (joined < options.clients && at_ns - looked_ns >= LOOK_NS) {
            looked_ns = at_ns;
            for (int number = 0; number < options.clients; number++)
                if (clients[number].fd < 0 && clients[number].due_ns <= at_ns) connect_client(number);
        }
        bool is_done = has_all_been_done || storm.lost >= options.clients;
        if (has_begun && is_done && joined == options.clients) {
            report();
            has_begun = false;
        }
    }
    return 0;
}
