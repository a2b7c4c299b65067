/* Signals as a program expects them at its start: none ignored. */
#ifndef MAGS_SIGNALS_H
#define MAGS_SIGNALS_H

#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIGNALS_MAX 64

/* By system call: the C library keeps the first three real-time signals to itself, and a
 * starter that is built with another one, such as GNU make, may have left them ignored. */
static inline void signals_reset(void)
{
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        unsigned long mask;
    } action = {0};
    for (int number = 1; number <= SIGNALS_MAX; number++)
        syscall(SYS_rt_sigaction, number, &action, NULL, sizeof action.mask);
}

#endif
