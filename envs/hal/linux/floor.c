/* The same system calls in the same order with the same gap, and nothing else: the floor under the apply stage.
 *
 * Input on stdin: GAP_NS PATHS TICKS, then each path on its line, then for each tick its number of calls and for each
 * call the path's index, the payload's length and the payload in hex; length 0 is a read of the whole file. Output:
 * nanoseconds of each tick, one a line.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct job { int fd; unsigned length; char *data; };

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

int main(void) {
    long long gap;
    unsigned paths, ticks;
    char line[8192];
    if (scanf("%lld %u %u\n", &gap, &paths, &ticks) != 3) return 2;
    int *fd = calloc(paths + 1, sizeof *fd);
    unsigned *count = calloc(ticks + 1, sizeof *count);
    struct job **job = calloc(ticks + 1, sizeof *job);
    long long *took = calloc(ticks + 1, sizeof *took);
    if (!fd || !count || !job || !took) fail("memory");
    for (unsigned p = 0; p < paths; p++) {
        if (!fgets(line, sizeof line, stdin)) return 2;
        line[strcspn(line, "\n")] = 0;
        if ((fd[p] = open(line, O_RDWR | O_CLOEXEC)) < 0) fail(line);
    }
    for (unsigned t = 0; t < ticks; t++) {
        if (scanf("%u", &count[t]) != 1) return 2;
        if (!(job[t] = calloc(count[t] + 1, sizeof **job))) fail("memory");
        for (unsigned k = 0; k < count[t]; k++) {
            unsigned p, byte;
            if (scanf("%u %u", &p, &job[t][k].length) != 2 || p >= paths) return 2;
            if (!(job[t][k].data = malloc(job[t][k].length + 1))) fail("memory");
            job[t][k].fd = fd[p];
            for (unsigned b = 0; b < job[t][k].length; b++) {
                if (scanf("%2x", &byte) != 1) return 2;
                job[t][k].data[b] = (char)byte;
            }
        }
    }
    long long next = now() + gap;
    for (unsigned t = 0; t < ticks; t++) {
        struct timespec at = { next / 1000000000LL, next % 1000000000LL };
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) {}
        long long start = now();
        for (unsigned k = 0; k < count[t]; k++)
            if (!job[t][k].length ? pread(job[t][k].fd, line, sizeof line, 0) < 0 && errno != ENODEV :
                pwrite(job[t][k].fd, job[t][k].data, job[t][k].length, 0) < 0 && errno != ENODEV) fail("a call");
        long long end = now();
        took[t] = end - start;
        next += gap;
        if (next < end) next = end + gap;
    }
    for (unsigned t = 0; t < ticks; t++) printf("%lld\n", took[t]);
    return 0;
}
