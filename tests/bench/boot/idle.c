/* An init that does nothing: says when it began, by the kernel's clock, and waits. */
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    printf("idle: ready %ld.%03ld s\n", (long)now.tv_sec, now.tv_nsec / 1000000);
    fflush(stdout);
    for (;;) pause();
}
