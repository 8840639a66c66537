/* WebSocket clients that only listen: they answer pings, count what comes, and note when.
 *
 * One thread, epoll, no libraries:
 *
 *   cc -O2 -std=c11 -o idle_clients idle_clients.c
 *   idle_clients --port=8001 --clients=5000 --rooms=FILE [--path=/ws?sessionId=%s] [--joined=TEXT] [--record=FILE]
 *
 * A client says --hello, if any, behind the handshake, once for each of the --subscriptions: %s in it becomes the next
 * room. A text that is --ping is a ping, and its answer the same. With --return it comes back when it is sent away, after as long as it was told, to one of
 * those ports by chance, or to the next one that listens, and resumes from the latest position that it was sent.
 *
 * Stdin is the remote control: a line "silent" ends the answers to pings, its end ends the program. Stdout: "ready"
 * when all have joined, "returned" when they have again, and at the end one line of JSON and "done". --record takes every text message as four
 * numbers of 8 bytes: client, 0 for a STATE_UPDATE or 1 for another, its version or sequence, CLOCK_MONOTONIC ns.
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
#define CONNECTING_AT_ONCE 64 /* below every server's listen backlog */
#define BUFFER_BYTES (1 << 20)
#define JOIN_NS 120000000000LL
#define POSITION_BYTES 64
#define STDIN UINT64_MAX

typedef struct {
    int fd;
    bool is_open, is_joined;
    int port, left; /* how many of its subscriptions are not confirmed yet */
    char position[POSITION_BYTES];
    int64_t away_ns, due_ns, began_ns; /* when it was lost, when it may come back, when it did */
    char *rest; /* the beginning of a frame whose end is not here yet */
    size_t rest_bytes;
} Client;

static struct {
    int port, clients;
    const char *rooms_file, *path, *joined, *record_file, *subprotocol, *hello, *ping;
    int subscriptions, returns[64], return_count;
} options = {.clients = 100, .path = "/ws?sessionId=%s", .subscriptions = 1};

static Client *clients;
static char (*rooms)[ROOM_LENGTH + 1];
static int room_count, epoll_fd;
static FILE *record;
static char *buffer;
static bool is_silent, is_over;
static int64_t silent_ns, pings, pongs, texts;
static int joined, closed, last_close_code, next_room;
static int returned, resumed, with_state, refused, *returned_us;
static double first_gone_s, last_gone_s, longest_away_s;

static void watch(int fd, uint64_t what, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.u64 = what};
    if (epoll_ctl(epoll_fd, operation, fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

/* ---- one client ---- */

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

/* A server that restarts does not listen: a balancer takes the next one. */
static bool was_refused(int number) {
    Client *client = &clients[number];
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (!error) return false;
    if (error != ECONNREFUSED || !client->due_ns) fail("connect to port %d: %s", client->port, strerror(error));
    refused++;
    close(client->fd);
    for (int each = 0; each < options.return_count; each++)
        if (options.returns[each] == client->port) {
            client->port = options.returns[(each + 1) % options.return_count];
            break;
        }
    connect_client(number);
    return true;
}

static void ask_for_upgrade(int number) {
    Client *client = &clients[number];
    if (was_refused(number)) return;
    char path[512], request[1024];
    int path_bytes = snprintf(path, sizeof path, options.path, room_count ? rooms[number % room_count] : "");
    if (client->position[0]) snprintf(path + path_bytes, sizeof path - path_bytes, "&position=%s", client->position);
    int bytes = snprintf(request, sizeof request,
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
                         path, client->port, options.subprotocol ? "Sec-WebSocket-Protocol: " : "",
                         options.subprotocol ? options.subprotocol : "", options.subprotocol ? "\r\n" : "");
    if (send(client->fd, request, bytes, MSG_NOSIGNAL) != bytes) fail("the request was not taken");
    watch(client->fd, number, EPOLLIN, EPOLL_CTL_MOD);
}

static void lose(Client *client) {
    if (is_silent) {
        last_gone_s = (now_ns() - silent_ns) / 1e9;
        if (!first_gone_s) first_gone_s = last_gone_s;
    }
    close(client->fd);
    client->fd = -1;
    closed++;
    if (!options.return_count) return;
    int64_t at_ns = now_ns();
    client->away_ns = at_ns;
    if (client->due_ns < at_ns) client->due_ns = at_ns;
    client->is_open = client->is_joined = false;
    client->rest_bytes = 0;
    joined--;
}

static void join(Client *client) {
    if (client->is_joined || --client->left > 0) return;
    client->is_joined = true;
    joined++;
}

/* Those whose time has come. */
static void come_back(void) {
    int64_t at_ns = now_ns();
    for (int number = 0; number < options.clients; number++) {
        Client *client = &clients[number];
        if (client->fd >= 0 || client->due_ns > at_ns) continue;
        client->left = options.subscriptions;
        client->port = options.returns[rand() % options.return_count];
        client->began_ns = at_ns;
        connect_client(number);
    }
}

static void say_hello(Client *client) {
    for (int each = 0; each < options.subscriptions; each++) {
        char frame[8 + 512] = {(char)0x81, (char)0xfe}, *text = frame + 8;
        int bytes = snprintf(text, 512, options.hello, room_count ? rooms[next_room++ % room_count] : "");
        int head_bytes = bytes < 126 ? 6 : 8; /* masked with zeros */
        if (bytes < 126) frame[2] = (char)0x81, frame[3] = (char)(0x80 | bytes);
        else frame[2] = (char)(bytes >> 8), frame[3] = (char)bytes;
        if (send(client->fd, text - head_bytes, head_bytes + bytes, MSG_NOSIGNAL) < 0)
            fail("hello: %s", strerror(errno));
    }
}

static void answer_ping(Client *client, int opcode, const char *data, size_t bytes) {
    char frame[6 + 125];
    if (bytes > 125) fail("a ping of %zu bytes", bytes);
    pings++;
    if (is_silent) return;
    frame[0] = (char)(0x80 | opcode);
    frame[1] = (char)(0x80 | bytes);
    memset(frame + 2, 0, 4); /* masked with zeros: legal, and the data stays as it is */
    memcpy(frame + 6, data, bytes);
    if (send(client->fd, frame, 6 + bytes, MSG_NOSIGNAL) > 0) pongs++;
}

static int64_t number_after(const char *data, size_t bytes, const char *mark) {
    const char *at = memmem(data, bytes, mark, strlen(mark)), *end = data + bytes;
    int64_t number = 0;
    if (!at) return 0;
    for (at += strlen(mark); at < end && *at >= '0' && *at <= '9'; at++) number = number * 10 + (*at - '0');
    return number;
}

/* Its latest position, how long it has to stay away, and how it was received when it came back. */
static void note_course(Client *client, const char *data, size_t bytes, int64_t at_ns) {
    static const char away[] = "\"reconnectAfterMs\":", position[] = "\"position\":\"", updates[] = "\"updates\":[";
    if (bytes < 100 && memmem(data, bytes, away, sizeof away - 1))
        client->due_ns = at_ns + number_after(data, bytes, away) * 1000000;
    const char *end = data + bytes, *found = NULL, *at = data;
    while ((at = memmem(at, end - at, position, sizeof position - 1))) found = at += sizeof position - 1;
    const char *quote = found ? memchr(found, '"', end - found) : NULL;
    if (quote && quote - found < POSITION_BYTES) {
        memcpy(client->position, found, quote - found);
        client->position[quote - found] = 0;
    }
    if (client->is_joined || !client->began_ns) return;
    if (bytes < strlen(options.joined) || memcmp(data, options.joined, strlen(options.joined))) return;
    returned_us[returned++] = (int)((at_ns - client->began_ns) / 1000);
    if (!memmem(data, bytes, updates, sizeof updates - 1)) with_state++;
    else if (memmem(data, bytes, "\"updates\":[{", sizeof updates)) resumed++;
    if ((at_ns - client->away_ns) / 1e9 > longest_away_s) longest_away_s = (at_ns - client->away_ns) / 1e9;
}

static void take_text(int number, const char *data, size_t bytes, int64_t at_ns) {
    static const char update[] = "{\"type\":\"STATE_UPDATE\"";
    if (options.ping && bytes == strlen(options.ping) && !memcmp(data, options.ping, bytes)) {
        answer_ping(&clients[number], 1, data, bytes);
        return;
    }
    texts++;
    if (options.return_count) note_course(&clients[number], data, bytes, at_ns);
    if (options.joined && bytes >= strlen(options.joined) && !memcmp(data, options.joined, strlen(options.joined)))
        join(&clients[number]);
    if (!record) return;
    bool is_update = bytes >= sizeof update && !memcmp(data, update, sizeof update - 1);
    int64_t entry[4] = {number, !is_update,
                        number_after(data, bytes, is_update ? "\"version\":" : "\"sequence\":\""), at_ns};
    if (fwrite(entry, sizeof entry, 1, record) != 1) fail("%s: %s", options.record_file, strerror(errno));
}

/* How many bytes of the answer to the upgrade are complete; 0 if it is not. */
static size_t take_head(Client *client, char *data, size_t bytes) {
    char *end = memmem(data, bytes, "\r\n\r\n", 4);
    if (!end) return 0;
    if (bytes < 12 || memcmp(data, "HTTP/1.1 101", 12)) fail("no upgrade: %.*s", (int)(end - data), data);
    client->is_open = true;
    if (options.hello) say_hello(client);
    if (!options.joined) join(client);
    return end + 4 - data;
}

/* Reads once: whole frames are handled, the beginning of one is kept for the next time. */
static void read_client(int number) {
    Client *client = &clients[number];
    if (client->rest_bytes) memcpy(buffer, client->rest, client->rest_bytes);
    ssize_t n = recv(client->fd, buffer + client->rest_bytes, BUFFER_BYTES - client->rest_bytes, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        lose(client);
        return;
    }
    int64_t at_ns = now_ns();
    char *at = buffer, *end = buffer + client->rest_bytes + n;
    if (!client->is_open) at += take_head(client, at, end - at);
    while (client->is_open && end - at >= 2) {
        uint8_t *head = (uint8_t *)at;
        size_t bytes = head[1], head_bytes = 2;
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
        if (opcode == 1) take_text(number, at, bytes, at_ns);
        else if (opcode == 9) answer_ping(client, 10, at, bytes);
        else if (opcode == 8 && bytes >= 2) last_close_code = (uint8_t)at[0] << 8 | (uint8_t)at[1];
        at += bytes;
    }
    client->rest_bytes = end - at;
    if (client->rest_bytes) {
        client->rest = realloc(client->rest, client->rest_bytes);
        if (!client->rest) fail("out of memory");
        memcpy(client->rest, at, client->rest_bytes);
    } else if (client->rest) {
        free(client->rest);
        client->rest = NULL;
    }
}

/* ---- the course of a run ---- */

static void read_command(void) {
    char command[64];
    ssize_t n = read(STDIN_FILENO, command, sizeof command);
    if (n <= 0) is_over = true;
    else if (!strncmp(command, "silent", 6)) is_silent = true, silent_ns = now_ns();
}

static void wait_for_events(int timeout_ms) {
    struct epoll_event events[1024];
    int count = epoll_wait(epoll_fd, events, 1024, timeout_ms);
    for (int each = 0; each < count; each++) {
        uint64_t what = events[each].data.u64;
        if (what == STDIN) read_command();
        else if (clients[what].fd >= 0 && events[each].events & EPOLLOUT) ask_for_upgrade((int)what);
        else if (clients[what].fd >= 0) read_client((int)what);
    }
}

static void read_options(int argc, char **argv) {
    enum { PORT, CLIENTS, ROOMS, PATH, JOINED, RECORD, SUBPROTOCOL, HELLO, SUBSCRIPTIONS, RETURN, PING };
    static const struct option names[] = {
        {"port", 1, 0, PORT},
        {"clients", 1, 0, CLIENTS},
        {"rooms", 1, 0, ROOMS},   /* a file of ids of 36 characters, one per line; clients go round them */
        {"path", 1, 0, PATH},     /* with %s for the room */
        {"joined", 1, 0, JOINED}, /* how the message begins after which a client has joined */
        {"record", 1, 0, RECORD},
        {"subprotocol", 1, 0, SUBPROTOCOL},
        {"hello", 1, 0, HELLO},
        {"ping", 1, 0, PING},
        {"subscriptions", 1, 0, SUBSCRIPTIONS},
        {"return", 1, 0, RETURN}, /* ports */
        {0}};
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (option) {
        case PORT: options.port = atoi(optarg); break;
        case CLIENTS: options.clients = atoi(optarg); break;
        case ROOMS: options.rooms_file = optarg; break;
        case PATH: options.path = optarg; break;
        case JOINED: options.joined = optarg; break;
        case RECORD: options.record_file = optarg; break;
        case SUBPROTOCOL: options.subprotocol = optarg; break;
        case HELLO: options.hello = optarg; break;
        case PING: options.ping = optarg; break;
        case SUBSCRIPTIONS: options.subscriptions = atoi(optarg); break;
        case RETURN:
            for (char *each = strtok(optarg, ","); each && options.return_count < 64; each = strtok(NULL, ","))
                options.returns[options.return_count++] = atoi(each);
            break;
        default: exit(2);
        }
    if (!options.port || options.clients < 1) fail("--port is needed");
    if (options.return_count && !options.joined) fail("--return needs --joined");
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

static int by_size(const void *left, const void *right) { return *(const int *)left - *(const int *)right; }

static double percentile_ms(double share) {
    return returned ? returned_us[(int)((returned - 1) * share)] / 1e3 : 0;
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    if (options.rooms_file) read_rooms();
    if (options.record_file && !(record = fopen(options.record_file, "wb"))) fail("%s", options.record_file);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    buffer = malloc(BUFFER_BYTES);
    clients = calloc(options.clients, sizeof *clients);
    returned_us = calloc(options.clients * 4, sizeof *returned_us);
    if (!buffer || !clients || !returned_us) fail("out of memory");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(STDIN_FILENO, STDIN, EPOLLIN, EPOLL_CTL_ADD);

    int64_t give_up_ns = now_ns() + JOIN_NS;
    for (int started = 0; joined < options.clients;) {
        while (started < options.clients && started - joined < CONNECTING_AT_ONCE) {
            clients[started].port = options.port;
            clients[started].left = options.subscriptions;
            connect_client(started++);
        }
        wait_for_events(100);
        if (closed) fail("%d clients were closed (%d) when %d had joined", closed, last_close_code, joined);
        if (is_over) fail("ended while joining");
        if (now_ns() > give_up_ns) fail("%d of %d joined", joined, options.clients);
    }
    say("ready");
    for (bool was_all = true; !is_over;) {
        wait_for_events(options.return_count ? 5 : 1000);
        if (options.return_count) come_back();
        if (returned > options.clients * 3) fail("clients come back again and again");
        bool is_all = joined == options.clients;
        if (options.return_count && is_all && !was_all) say("returned");
        was_all = is_all;
    }
    qsort(returned_us, returned, sizeof *returned_us, by_size);
    if (record) fclose(record);
    printf("{\"clients\":%d,\"closed\":%d,\"close_code\":%d,\"pings\":%lld,\"pongs\":%lld,\"texts\":%lld,"
           "\"first_gone_s\":%.3f,\"last_gone_s\":%.3f,\"longest_away_s\":%.3f,\"returned\":%d,\"resumed\":%d,\"with_state\":%d,\"refused\":%d,"
           "\"subscribed_ms\":{\"p50\":%.2f,\"p99\":%.2f,\"max\":%.2f}}\n",
           options.clients, closed, last_close_code, (long long)pings, (long long)pongs, (long long)texts, first_gone_s,
           last_gone_s, longest_away_s, returned, resumed, with_state, refused, percentile_ms(0.5), percentile_ms(0.99), percentile_ms(1));
    say("done");
    return 0;
}
