/* A closed-loop load generator: one request in flight on each connection, HTTP/1.1 keep-alive or WebSocket.
 *
 * Connections take the paths of a file in turn, one after the other, so that two of them never ask for the same
 * one at the same time as long as there are more paths than connections. WebSockets take messages instead. The
 * first one that the server sends is a greeting, each later one an answer: a RESULT counts as status 200, all
 * else as 400. Several may be under way on one WebSocket, whose "id" says which line of the file, from 0, they
 * answer. One thread, epoll, no libraries:
 *
 *   cc -O2 -std=c11 -o rest_load rest_load.c
 *   rest_load --port=8001 --paths=FILE [--body=FILE --type=application/json] --connections=16 --pids=1,2 ...
 *   rest_load --port=8001 --messages=FILE --subprotocol=lockstep.v2.json --connections=16 --pids=1,2 ...
 *
 * Stdout: "measuring" and "measured" as each begins, one line of JSON, "done". All of them are flushed. The CPU
 * time of the --pids is read at both ends of the measured period, and what is in flight at its end is finished.
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
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

#define ANSWER_BYTES (1 << 20)
#define LATENCIES (1 << 24) /* more requests than one run makes */
#define STALLED_MS 10000
#define PIDS 64

typedef struct {
    int fd;
    int64_t asked_ns;
    char *request; /* what of it is not sent yet */
    size_t request_bytes, sent_bytes;
    char *answer;
    size_t answer_bytes;
} Connection;

static struct {
    int port, connections, under_way;
    const char *paths_file, *body_file, *type, *method, *header, *messages_file, *subprotocol;
    double warm_up_s, seconds;
    pid_t pids[PIDS];
    int pid_count;
} options = {.connections = 16, .under_way = 1, .type = "application/json", .method = "POST", .warm_up_s = 1, .seconds = 4};

static Connection *connections;
static char **requests; /* one per path, whole */
static size_t *request_bytes;
static int64_t *asked_ns; /* one per message */
static int path_count, next_path;
static int epoll_fd;
static int64_t statuses[600], requests_measured, answer_bytes_measured;
static int64_t *latencies_ns;
static bool is_measuring, is_over;
static int in_flight;

static void *room_for(size_t count, size_t bytes) {
    void *memory = calloc(count, bytes);
    if (!memory) fail("out of memory");
    return memory;
}

/* All threads of a process, to the nanosecond; its zombie or absence is 0. */
static double cpu_s(pid_t pid) {
    clockid_t clock;
    struct timespec used;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &used)) return 0;
    return used.tv_sec + used.tv_nsec / 1e9;
}

/* ---- requests ---- */

static void watch(Connection *connection, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = connection};
    if (epoll_ctl(epoll_fd, operation, connection->fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

static void send_rest(Connection *connection) {
    ssize_t n = send(connection->fd, connection->request + connection->sent_bytes,
                     connection->request_bytes - connection->sent_bytes, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) fail("send: %s", strerror(errno));
    if (n > 0) connection->sent_bytes += n;
    bool waits = connection->sent_bytes < connection->request_bytes;
    if (waits) watch(connection, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
}

static void ask(Connection *connection) {
    connection->request = requests[next_path];
    connection->request_bytes = request_bytes[next_path];
    if (asked_ns) asked_ns[next_path] = now_ns();
    next_path = (next_path + 1) % path_count;
    connection->sent_bytes = 0;
    connection->asked_ns = now_ns();
    in_flight++;
    send_rest(connection);
    if (options.under_way > 1 && connection->sent_bytes < connection->request_bytes) fail("the socket is full");
}

/* ---- answers ---- */

static const char *header(const char *head, size_t bytes, const char *name) {
    size_t name_bytes = strlen(name);
    for (const char *line = head; (line = memmem(line, head + bytes - line, "\r\n", 2));) {
        line += 2;
        if ((size_t)(head + bytes - line) <= name_bytes) return NULL;
        if (!strncasecmp(line, name, name_bytes) && line[name_bytes] == ':') return line + name_bytes + 1;
    }
    return NULL;
}

/* Whether a chunked body is here to its end. */
static bool has_last_chunk(const char *at, const char *end) {
    for (;;) {
        const char *line_end = memmem(at, end - at, "\r\n", 2);
        if (!line_end) return false;
        size_t bytes = strtoul(at, NULL, 16);
        at = line_end + 2;
        if (bytes == 0) return memmem(line_end, end - line_end, "\r\n\r\n", 4) != NULL;
        if ((size_t)(end - at) < bytes + 2) return false;
        at += bytes + 2;
    }
}

static bool is_complete(Connection *connection) {
    char *answer = connection->answer, *end = answer + connection->answer_bytes;
    char *head_end = memmem(answer, connection->answer_bytes, "\r\n\r\n", 4);
    if (!head_end) return false;
    size_t head_bytes = head_end + 4 - answer;
    if (!strncmp(answer + 9, "204", 3) || !strncmp(answer + 9, "304", 3)) return true; /* these have no body */
    const char *length = header(answer, head_bytes, "content-length");
    if (length) return connection->answer_bytes >= head_bytes + strtoul(length, NULL, 10);
    const char *coding = header(answer, head_bytes, "transfer-encoding");
    if (!coding || strncasecmp(coding + strspn(coding, " "), "chunked", 7)) fail("an answer without a length");
    return has_last_chunk(answer + head_bytes, end);
}

/* How long the frame at the beginning of what has come is, its head included; 0: it is not here to its end. */
static size_t frame_bytes(Connection *connection, size_t *head_bytes) {
    uint8_t *head = (uint8_t *)connection->answer;
    size_t bytes = connection->answer_bytes < 2 ? 0 : head[1];
    *head_bytes = bytes == 126 ? 4 : bytes == 127 ? 10 : 2;
    if (connection->answer_bytes < *head_bytes) return 0;
    if (*head_bytes > 2) {
        bytes = 0;
        for (size_t byte = 2; byte < *head_bytes; byte++) bytes = bytes << 8 | head[byte];
    }
    bytes += *head_bytes;
    return connection->answer_bytes < bytes ? 0 : bytes;
}

static void drop_answer(Connection *connection, size_t bytes) {
    connection->answer_bytes -= bytes;
    memmove(connection->answer, connection->answer + bytes, connection->answer_bytes);
}

/* Whether a message is here; pings before it are answered. */
static bool has_message(Connection *connection) {
    size_t bytes, head_bytes;
    while ((bytes = frame_bytes(connection, &head_bytes))) {
        int opcode = connection->answer[0] & 0x0f;
        if (opcode == 1) return true;
        if (opcode == 8) fail("the server closed: %.*s", (int)(bytes - head_bytes), connection->answer + head_bytes);
        static const char pong[] = {(char)0x8a, (char)0x80, 0, 0, 0, 0};
        if (opcode == 9 && bytes == 2 && send(connection->fd, pong, sizeof pong, MSG_NOSIGNAL) < 0 && errno != EAGAIN)
            fail("send: %s", strerror(errno));
        drop_answer(connection, bytes);
    }
    return false;
}

static int status_of(Connection *connection, size_t answer_bytes) {
    if (options.messages_file) return memmem(connection->answer, answer_bytes, "{\"type\":\"RESULT\"", 16) ? 200 : 400;
    if (connection->answer_bytes < 12 || memcmp(connection->answer, "HTTP/1.1 ", 9)) fail("not HTTP/1.1");
    return atoi(connection->answer + 9);
}

static void take_answer(Connection *connection) {
    int64_t at_ns = now_ns();
    size_t head_bytes, bytes = options.messages_file ? frame_bytes(connection, &head_bytes) : connection->answer_bytes;
    int status = status_of(connection, bytes);
    int64_t since_ns = connection->asked_ns;
    if (asked_ns) {
        const char *id = memmem(connection->answer, bytes, "\"id\":", 5);
        int line = id ? atoi(id + 5) : -1;
        if (line < 0 || line >= path_count) fail("an answer to nothing: %.*s", (int)bytes, connection->answer);
        since_ns = asked_ns[line];
    }
    in_flight--;
    if (is_measuring) {
        if (requests_measured >= LATENCIES) fail("more than %d requests", LATENCIES);
        latencies_ns[requests_measured++] = at_ns - since_ns;
        answer_bytes_measured += bytes;
        statuses[status >= 0 && status < 600 ? status : 0]++;
    }
    drop_answer(connection, bytes);
    if (!is_over) ask(connection);
}

static void read_answer(Connection *connection) {
    ssize_t n = recv(connection->fd, connection->answer + connection->answer_bytes,
                     ANSWER_BYTES - connection->answer_bytes, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) fail("recv: %s", strerror(errno));
    if (n == 0) fail("the server closed a connection that was to be kept");
    connection->answer_bytes += n;
    if (options.messages_file) {
        while (has_message(connection)) take_answer(connection); /* and the pings around it */
    } else if (is_complete(connection)) take_answer(connection);
    else if (connection->answer_bytes == ANSWER_BYTES) fail("an answer over %d bytes", ANSWER_BYTES);
}

/* ---- the course of a run ---- */

static void run_until(int64_t end_ns) {
    struct epoll_event events[256];
    while (now_ns() < end_ns && (in_flight || !is_over)) {
        int64_t left_ms = (end_ns - now_ns()) / 1000000 + 1;
        int count = epoll_wait(epoll_fd, events, 256, left_ms < STALLED_MS ? (int)left_ms : STALLED_MS);
        if (count == 0 && left_ms > STALLED_MS) fail("no answer for %d ms", STALLED_MS);
        for (int number = 0; number < count; number++) {
            Connection *connection = events[number].data.ptr;
            if (events[number].events & EPOLLOUT) {
                watch(connection, EPOLLIN, EPOLL_CTL_MOD);
                send_rest(connection);
            }
            if (events[number].events & ~(uint32_t)EPOLLOUT) read_answer(connection);
        }
    }
}

static void read_options(int argc, char **argv) {
    enum { PORT, PATHS, MESSAGES, SUBPROTOCOL, BODY, TYPE, METHOD, HEADER, CONNECTIONS, UNDER_WAY, WARM_UP, SECONDS, PID_LIST };
    static const struct option names[] = {
        {"port", 1, 0, PORT},
        {"paths", 1, 0, PATHS}, /* a file, one path per line */
        {"messages", 1, 0, MESSAGES}, /* instead: a file, one text message per line */
        {"subprotocol", 1, 0, SUBPROTOCOL},
        {"body", 1, 0, BODY},   /* a file; without it the body is empty */
        {"type", 1, 0, TYPE},   /* the body's content type */
        {"method", 1, 0, METHOD},
        {"header", 1, 0, HEADER}, /* one more */
        {"connections", 1, 0, CONNECTIONS},
        {"under-way", 1, 0, UNDER_WAY}, /* on each WebSocket */
        {"warm-up", 1, 0, WARM_UP},
        {"seconds", 1, 0, SECONDS},
        {"pids", 1, 0, PID_LIST}, /* processes whose CPU time is measured too */
        {0}};
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (option) {
        case PORT: options.port = atoi(optarg); break;
        case PATHS: options.paths_file = optarg; break;
        case MESSAGES: options.messages_file = optarg; break;
        case SUBPROTOCOL: options.subprotocol = optarg; break;
        case BODY: options.body_file = optarg; break;
        case TYPE: options.type = optarg; break;
        case METHOD: options.method = optarg; break;
        case HEADER: options.header = optarg; break;
        case CONNECTIONS: options.connections = atoi(optarg); break;
        case UNDER_WAY: options.under_way = atoi(optarg); break;
        case WARM_UP: options.warm_up_s = atof(optarg); break;
        case SECONDS: options.seconds = atof(optarg); break;
        case PID_LIST:
            for (char *each = strtok(optarg, ","); each && options.pid_count < PIDS; each = strtok(NULL, ","))
                options.pids[options.pid_count++] = atoi(each);
            break;
        default: exit(2);
        }
    if (!options.port || !options.paths_file == !options.messages_file || options.connections < 1)
        fail("--port and either --paths or --messages are needed");
}

static void add_request(const char *head, size_t head_bytes, const char *body, size_t body_bytes) {
    requests = realloc(requests, (path_count + 1) * sizeof *requests);
    request_bytes = realloc(request_bytes, (path_count + 1) * sizeof *request_bytes);
    if (!requests || !request_bytes) fail("out of memory");
    char *request = room_for(1, head_bytes + body_bytes);
    memcpy(request, head, head_bytes);
    memcpy(request + head_bytes, body, body_bytes);
    requests[path_count] = request;
    request_bytes[path_count++] = head_bytes + body_bytes;
}

static void make_frames(void) {
    FILE *file = fopen(options.messages_file, "r");
    if (!file) fail("%s: %s", options.messages_file, strerror(errno));
    char *line = NULL;
    size_t room = 0;
    for (ssize_t bytes; (bytes = getline(&line, &room, file)) > 0;) {
        if (line[bytes - 1] == '\n') bytes--;
        if (bytes < 1 || bytes > 65535) fail("a message of %zd bytes", bytes);
        /* masked with zeros: legal, and the message stays as it is */
        char head[8] = {(char)0x81, (char)(0x80 | bytes)}, long_head[8] = {(char)0x81, (char)0xfe, bytes >> 8, (char)bytes};
        if (bytes < 126) add_request(head, 6, line, bytes);
        else add_request(long_head, 8, line, bytes);
    }
    free(line);
    fclose(file);
    if (!path_count) fail("%s: no message", options.messages_file);
    asked_ns = room_for(path_count, sizeof *asked_ns);
}

static void make_requests(void) {
    static char body[1 << 20];
    size_t body_bytes = 0;
    if (options.body_file) {
        FILE *file = fopen(options.body_file, "rb");
        if (!file) fail("%s: %s", options.body_file, strerror(errno));
        body_bytes = fread(body, 1, sizeof body, file);
        fclose(file);
    }
    char type[256] = "";
    if (body_bytes) snprintf(type, sizeof type, "Content-Type: %s\r\n", options.type);
    FILE *file = fopen(options.paths_file, "r");
    if (!file) fail("%s: %s", options.paths_file, strerror(errno));
    char path[1024];
    while (fscanf(file, "%1023s", path) == 1) {
        char head[4096];
        int head_bytes = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s%s%sContent-Length: %zu\r\n\r\n",
                                  options.method, path, options.port, type, options.header ? options.header : "",
                                  options.header ? "\r\n" : "", body_bytes);
        if (head_bytes >= (int)sizeof head) fail("a request is too long");
        add_request(head, head_bytes, body, body_bytes);
    }
    fclose(file);
    if (!path_count) fail("%s: no path", options.paths_file);
}

static void receive_more(Connection *connection) {
    ssize_t n = recv(connection->fd, connection->answer + connection->answer_bytes,
                     ANSWER_BYTES - connection->answer_bytes, 0);
    if (n <= 0) fail("the server closed a WebSocket");
    connection->answer_bytes += n;
}

/* Until the server's first message has come, which no request has asked for. */
static void upgrade(Connection *connection) {
    char request[1024], *end;
    int bytes = snprintf(request, sizeof request,
                         "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
                         "Sec-WebSocket-Protocol: %s\r\n\r\n",
                         options.port, options.subprotocol);
    if (send(connection->fd, request, bytes, MSG_NOSIGNAL) != bytes) fail("the request was not taken");
    while (!(end = memmem(connection->answer, connection->answer_bytes, "\r\n\r\n", 4))) receive_more(connection);
    if (memcmp(connection->answer, "HTTP/1.1 101", 12)) fail("no upgrade: %.*s", 100, connection->answer);
    drop_answer(connection, end + 4 - connection->answer);
    while (!has_message(connection)) receive_more(connection);
    size_t head_bytes;
    drop_answer(connection, frame_bytes(connection, &head_bytes));
}

static void connect_all(void) {
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    connections = room_for(options.connections, sizeof *connections);
    latencies_ns = room_for(LATENCIES, sizeof *latencies_ns);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(options.port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int number = 0; number < options.connections; number++) {
        Connection *connection = &connections[number];
        connection->answer = room_for(1, ANSWER_BYTES + 1);
        connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connection->fd < 0) fail("socket: %s", strerror(errno));
        if (connect(connection->fd, (struct sockaddr *)&to, sizeof to)) fail("connect: %s", strerror(errno));
        int on = 1;
        setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (options.messages_file) upgrade(connection);
        fcntl(connection->fd, F_SETFL, O_NONBLOCK);
        watch(connection, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static int by_size(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static double percentile_us(double share) {
    if (!requests_measured) return 0;
    int64_t place = (int64_t)(requests_measured * share);
    return latencies_ns[place < requests_measured ? place : requests_measured - 1] / 1e3;
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    if (options.messages_file) make_frames();
    else make_requests();
    connect_all();
    for (int number = 0; number < options.connections * options.under_way; number++)
        ask(&connections[number % options.connections]);
    run_until(now_ns() + (int64_t)(options.warm_up_s * 1e9));

    say("measuring");
    double before_s[PIDS], own_before_s = cpu_s(getpid());
    for (int each = 0; each < options.pid_count; each++) before_s[each] = cpu_s(options.pids[each]);
    int64_t from_ns = now_ns();
    is_measuring = true;
    run_until(from_ns + (int64_t)(options.seconds * 1e9));
    is_measuring = false;
    double wall_s = (now_ns() - from_ns) / 1e9, own_s = cpu_s(getpid()) - own_before_s, used_s[PIDS];
    for (int each = 0; each < options.pid_count; each++) used_s[each] = cpu_s(options.pids[each]) - before_s[each];
    say("measured");

    is_over = true;
    run_until(now_ns() + (int64_t)STALLED_MS * 1000000);
    qsort(latencies_ns, requests_measured, sizeof *latencies_ns, by_size);
    printf("{\"requests\":%lld,\"wall_s\":%.6f,\"generator_cpu_s\":%.6f,\"generator_share\":%.4f,\"answer_bytes\":%lld,"
           "\"unanswered\":%d,\"cpu_s\":[",
           (long long)requests_measured, wall_s, own_s, own_s / wall_s,
           (long long)(requests_measured ? answer_bytes_measured / requests_measured : 0), in_flight);
    for (int each = 0; each < options.pid_count; each++) printf("%s%.6f", each ? "," : "", used_s[each]);
    printf("],\"statuses\":{");
    for (int status = 0, any = 0; status < 600; status++)
        if (statuses[status]) printf("%s\"%d\":%lld", any++ ? "," : "", status, (long long)statuses[status]);
    printf("},\"latency_us\":{\"p50\":%.1f,\"p99\":%.1f,\"p99_9\":%.1f,\"max\":%.1f}}\n", percentile_us(0.5),
           percentile_us(0.99), percentile_us(0.999), percentile_us(1));
    say("done");
    return 0;
}
