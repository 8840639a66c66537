/* Storms of WebSocket clients that come to one server, and what each storm takes of the server's CPU time.
 *
 * One thread, epoll, no libraries:
 *
 *   cc -O2 -std=c11 -o joins joins.c
 *   joins --port=8001 --pid=PID --clients=3000 --storms=4 --path=/ws?sessionId=%s --rooms=FILE --joined=TEXT
 *
 * So many come at once, the next when one has arrived: has been answered the handshake or, with --joined, has been
 * sent a message that begins so. All stay until the last one has arrived; then all leave, and the next storm comes
 * when the server is quiet again. Stdout: a line of JSON for each storm.
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
#include <time.h>
#include <unistd.h>

#include "common.h"

#define ROOM_LENGTH 36
#define HEAD_BYTES 2048
#define STORM_NS 60000000000LL
#define QUIET_MS 100
#define QUIET_SHARE 0.05
#define QUIET_AFTER_MS 5000

typedef struct {
    int fd;
    bool is_open;
    size_t bytes;
    int64_t began_ns;
    char received[HEAD_BYTES];
} Client;

static struct {
    int port, clients, storms, at_once;
    pid_t pid;
    const char *path, *rooms_file, *subprotocol, *hello, *joined;
} options = {.clients = 1000, .storms = 1, .at_once = 64, .path = "/"};

static Client *clients;
static char (*rooms)[ROOM_LENGTH + 1];
static int room_count, epoll_fd, arrived;
static int64_t *took_ns;

/* All threads of the server, to the nanosecond. */
static double cpu_s(void) {
    clockid_t clock;
    struct timespec used;
    if (clock_getcpuclockid(options.pid, &clock) || clock_gettime(clock, &used)) fail("no process %d", options.pid);
    return used.tv_sec + used.tv_nsec / 1e9;
}

static void watch(int number, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.u32 = number};
    if (epoll_ctl(epoll_fd, operation, clients[number].fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

static void connect_client(int number) {
    Client *client = &clients[number];
    *client = (Client){.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), .began_ns = now_ns()};
    if (client->fd < 0) fail("socket: %s", strerror(errno));
    int on = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(options.port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(client->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    watch(number, EPOLLOUT, EPOLL_CTL_ADD);
}

static void tell(Client *client, const char *data, size_t bytes) {
    if (send(client->fd, data, bytes, MSG_NOSIGNAL) != (ssize_t)bytes) fail("what a client says was not taken");
}

static void ask_for_upgrade(int number) {
    Client *client = &clients[number];
    char path[512], request[1024];
    snprintf(path, sizeof path, options.path, room_count ? rooms[number % room_count] : "");
    int bytes = snprintf(request, sizeof request,
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
                         path, options.port, options.subprotocol ? "Sec-WebSocket-Protocol: " : "",
                         options.subprotocol ? options.subprotocol : "", options.subprotocol ? "\r\n" : "");
    tell(client, request, bytes);
    watch(number, EPOLLIN, EPOLL_CTL_MOD);
}

static void say_hello(Client *client) {
    char frame[6 + 125] = {(char)0x81, (char)(0x80 | strlen(options.hello))}; /* masked with zeros */
    if (strlen(options.hello) > 125) fail("a long hello");
    memcpy(frame + 6, options.hello, strlen(options.hello));
    tell(client, frame, 6 + strlen(options.hello));
}

static void arrive(int number) {
    took_ns[arrived++] = now_ns() - clients[number].began_ns;
    /* What comes now is not looked at: a storm is over before the server misses an answer to a ping. */
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, clients[number].fd, NULL);
}

static void read_client(int number) {
    Client *client = &clients[number];
    ssize_t n = recv(client->fd, client->received + client->bytes, HEAD_BYTES - client->bytes, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) fail("a client was closed: %.*s", (int)client->bytes, client->received);
    client->bytes += n;
    if (!client->is_open) {
        char *end = memmem(client->received, client->bytes, "\r\n\r\n", 4);
        if (!end) return;
        if (memcmp(client->received, "HTTP/1.1 101", 12)) fail("no upgrade: %.*s", (int)client->bytes, client->received);
        client->is_open = true;
        client->bytes -= end + 4 - client->received;
        memmove(client->received, end + 4, client->bytes);
        if (options.hello) say_hello(client);
    }
    if (!options.joined || memmem(client->received, client->bytes, options.joined, strlen(options.joined))) arrive(number);
    else if (client->bytes == HEAD_BYTES) fail("not what was waited for: %.200s", client->received);
}

static void storm(void) {
    int64_t give_up_ns = now_ns() + STORM_NS;
    arrived = 0;
    for (int started = 0; arrived < options.clients;) {
        while (started < options.clients && started - arrived < options.at_once) connect_client(started++);
        struct epoll_event events[256];
        int count = epoll_wait(epoll_fd, events, 256, 100);
        for (int each = 0; each < count; each++) {
            if (events[each].events & EPOLLOUT) ask_for_upgrade((int)events[each].data.u32);
            else read_client((int)events[each].data.u32);
        }
        if (now_ns() > give_up_ns) fail("%d of %d arrived", arrived, options.clients);
    }
}

static void leave(void) {
    for (int number = 0; number < options.clients; number++) close(clients[number].fd);
    for (int waited_ms = 0; waited_ms < QUIET_AFTER_MS; waited_ms += QUIET_MS) {
        double before_s = cpu_s();
        usleep(QUIET_MS * 1000);
        if (cpu_s() - before_s < QUIET_SHARE * QUIET_MS / 1000) return;
    }
}

static int by_size(const void *left, const void *right) {
    int64_t difference = *(const int64_t *)left - *(const int64_t *)right;
    return (difference > 0) - (difference < 0);
}

static void read_options(int argc, char **argv) {
    enum { PORT, PID, CLIENTS, STORMS, AT_ONCE, PATH, ROOMS, SUBPROTOCOL, HELLO, JOINED };
    static const struct option names[] = {
        {"port", 1, 0, PORT},
        {"pid", 1, 0, PID}, /* of the server */
        {"clients", 1, 0, CLIENTS},
        {"storms", 1, 0, STORMS},
        {"at-once", 1, 0, AT_ONCE}, /* below every server's listen backlog */
        {"path", 1, 0, PATH},       /* with %s for the room */
        {"rooms", 1, 0, ROOMS},     /* a file of ids of 36 characters, one per line; clients go round them */
        {"subprotocol", 1, 0, SUBPROTOCOL},
        {"hello", 1, 0, HELLO},     /* a text sent after the handshake */
        {"joined", 1, 0, JOINED},
        {0}};
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (option) {
        case PORT: options.port = atoi(optarg); break;
        case PID: options.pid = atoi(optarg); break;
        case CLIENTS: options.clients = atoi(optarg); break;
        case STORMS: options.storms = atoi(optarg); break;
        case AT_ONCE: options.at_once = atoi(optarg); break;
        case PATH: options.path = optarg; break;
        case ROOMS: options.rooms_file = optarg; break;
        case SUBPROTOCOL: options.subprotocol = optarg; break;
        case HELLO: options.hello = optarg; break;
        case JOINED: options.joined = optarg; break;
        default: exit(2);
        }
    if (!options.port || !options.pid || options.clients < 1) fail("--port and --pid are needed");
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
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    if (options.rooms_file) read_rooms();
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    clients = calloc(options.clients, sizeof *clients);
    took_ns = calloc(options.clients, sizeof *took_ns);
    if (!clients || !took_ns) fail("out of memory");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int number = 0; number < options.storms; number++) {
        int64_t began_ns = now_ns();
        double cpu_before_s = cpu_s();
        storm();
        double cpu_used_s = cpu_s() - cpu_before_s, wall_s = (now_ns() - began_ns) / 1e9;
        qsort(took_ns, arrived, sizeof *took_ns, by_size);
        printf("{\"arrived\":%d,\"wall_s\":%.6f,\"cpu_s\":%.6f,\"p50_ms\":%.3f,\"p99_ms\":%.3f}\n", arrived, wall_s,
               cpu_used_s, took_ns[arrived / 2] / 1e6, took_ns[arrived * 99 / 100] / 1e6);
        fflush(stdout);
        leave();
    }
    return 0;
}
