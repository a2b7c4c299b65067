/* Sessions whose terminal has gone. They are told so, and have a while to put in order what
 * they want to keep; then their leader's group is killed. */
#define _GNU_SOURCE
#include <signal.h>

#include "services.h"

#define GRACE_NS (2 * 1000000000LL)

static struct leaving {
    pid_t pid; /* the leader; 0: the place is free */
    int64_t kill_at_ns;
} all[WIRE_STREAMS_MAX];

void hangup_begin(pid_t leader, pid_t foreground)
{
    struct leaving *place = all;
    for (size_t i = 0; place->pid && i < WIRE_STREAMS_MAX; i++)
        if (!all[i].pid || all[i].kill_at_ns < place->kill_at_ns)
            place = &all[i];
    if (place->pid) /* as many are on their way: the oldest has had its time */
        kill(-place->pid, SIGKILL);
    *place = (struct leaving){leader, now_ns() + GRACE_NS};
    const pid_t groups[] = {foreground, leader};
    for (size_t i = foreground && foreground != leader ? 0 : 1; i < 2; i++) {
        kill(-groups[i], SIGHUP);
        kill(-groups[i], SIGCONT); /* one that is stopped would not hear it */
    }
}

void hangup_reaped(pid_t pid)
{
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++) {
        if (all[i].pid != pid)
            continue;
        all[i].pid = 0;
        kill(-pid, SIGHUP); /* gVisor's may have been born meanwhile, and have missed it */
    }
}

void hangup_watch(struct poll_set *set)
{
    int64_t now = now_ns();
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++) {
        if (!all[i].pid)
            continue;
        if (all[i].kill_at_ns > now) {
            poll_by(set, all[i].kill_at_ns);
            continue;
        }
        kill(-all[i].pid, SIGKILL);
        all[i].pid = 0;
    }
}
