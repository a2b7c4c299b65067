/* The engine's process (runsc, QEMU): its start in the VM's cgroups, with the rights
 * that the plan leaves it, the link to the agent that is its stdin and stdout, its
 * stderr, its end.
 */
#ifndef MAGS_SHIM_ENGINE_H
#define MAGS_SHIM_ENGINE_H

#include "plan.h"

#define TAIL_BYTES 2048u

struct engine {
    pid_t pid; /* 0: not started */
    int link;  /* our end of the agent's link; -1: none */
    int errors;
    uint8_t first[TAIL_BYTES], last[TAIL_BYTES]; /* of stderr; `last` is a ring */
    uint64_t errors_total;
    bool has_ended;
    int status;
};

/* Start it; returns when it has been exec'ed, or has failed to. `@PID@` in an
 * argument becomes `host_pid`. The passed descriptors are closed here, in any case. */
bool engine_start(struct engine *engine, const struct plan *plan, pid_t host_pid,
                  struct failure *failure);

/* Take what is on stderr. False at its end. */
bool engine_read_errors(struct engine *engine);

/* Reap whatever has ended: as pid 1 the shim inherits the engine's orphans. */
void engine_reap(struct engine *engine);

/* How the engine's process ended, and what it said; cut to `size`. */
void engine_describe(const struct engine *engine, char *text, size_t size);

#endif
