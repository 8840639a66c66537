/* Preloaded into a redis-server: its wall clock is the machine's plus what the file named by SHIFT_FILE says.
 *
 * The file holds one int64_t, microseconds, and may be written at any time. The monotonic clock stays as it is.
 * (libfaketime would do, but cannot be preloaded into a program that brings jemalloc.) */

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *shift_us;

__attribute__((constructor)) static void find_shift(void) {
    const char *path = getenv("SHIFT_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *shift_us, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        abort(); /* without its file the test would shift nothing, and not know */
    shift_us = mapped;
    close(file);
}

static int64_t now_ns(void) {
    struct timespec real;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &real);
    return (int64_t)real.tv_sec * 1000000000 + real.tv_nsec + (shift_us ? *shift_us * 1000 : 0);
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int64_t ns = now_ns();
    (void)zone;
    now->tv_sec = ns / 1000000000;
    now->tv_usec = ns % 1000000000 / 1000;
    return 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (clock != CLOCK_REALTIME)
        return syscall(SYS_clock_gettime, clock, now);
    int64_t ns = now_ns();
    now->tv_sec = ns / 1000000000;
    now->tv_nsec = ns % 1000000000;
    return 0;
}

time_t time(time_t *now) {
    time_t seconds = now_ns() / 1000000000;
    if (now)
        *now = seconds;
    return seconds;
}
