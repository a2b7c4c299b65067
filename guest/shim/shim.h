/* One shim: the core with its descriptors. main.c sets it up, loop.c runs it,
 * end.c ends it. */
#ifndef MAGS_SHIM_SHIM_H
#define MAGS_SHIM_SHIM_H

#include "core.h"
#include "engine.h"
#include "plan.h"

struct shim {
    struct core core;
    struct plan plan;
    struct engine engine;
    pid_t host_pid;
    int listener;
    int children; /* signalfd of SIGCHLD */
    int fence;    /* timerfd */
    int sockets[CONNECTIONS_MAX];     /* by index of core.connections; -1: none */
    bool is_full[CONNECTIONS_MAX];    /* the peer's buffer is; wait for POLLOUT */
    bool is_link_full, has_link_ended;
    bool has_errors_ended;
    bool is_accepting;
    uint64_t give_up_ms; /* when the engine is not waited for any more */
    char nonce[NONCE_DIGITS + 1];
};

/* Make the core's host; one shim per process. */
const struct host *world_open(struct shim *shim);

/* Run until core.end is set. */
void loop_run(struct shim *shim);

/* Connect `socket` to the core; closes it when there are too many. */
void loop_connect(struct shim *shim, int socket, bool is_first);

/* Take what the agent said and has not been read. */
void loop_drain_link(struct shim *shim);

/* Whether the kernel has killed a process of the VM for its memory. */
bool end_is_out_of_memory(const struct shim *shim);

/* Decide why the VM ended when its engine has. */
void end_by_engine(struct shim *shim);

/* Write the end down and leave; the kernel ends the rest of the namespace. */
_Noreturn void end_finish(struct shim *shim);

#endif
