/* The end of a VM: why, written where the daemon finds it, and out. */
#define _GNU_SOURCE
#include "counter.h"
#include "shim.h"
#include "state.h"

#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PIPE_READS 32

static bool has_engine_failed(const struct shim *shim)
{
    if (WIFSIGNALED(shim->engine.status))
        return true;
    for (size_t i = 0; i < shim->plan.engine_failed_count; i++)
        if (WEXITSTATUS(shim->engine.status) == shim->plan.engine_failed[i])
            return true;
    return false;
}

bool end_is_out_of_memory(const struct shim *shim)
{
    return counter_read(shim->plan.out_of_memory, "oom_kill") > 0;
}

void end_by_engine(struct shim *shim)
{
    /* What the pipe holds; somebody may live on and fill it for ever. */
    for (int i = 0; i < PIPE_READS && !shim->has_errors_ended; i++)
        shim->has_errors_ended = !engine_read_errors(&shim->engine);
    char text[sizeof shim->core.end_detail];
    engine_describe(&shim->engine, text, sizeof text);
    if (end_is_out_of_memory(shim))
        core_end(&shim->core, END_OUT_OF_MEMORY, "%s", text);
    else if (counter_read(shim->plan.processes, "max"))
        core_end(&shim->core, END_TOO_MANY_PROCESSES, "%s", text);
    else
        core_end(&shim->core, has_engine_failed(shim) ? END_ENGINE_DIED : END_AGENT_DIED, "%s",
                 text);
}

/* Who waits for the start is told why there will be none. All sends are best effort. */
static void say_goodbye(struct shim *shim)
{
    struct core *core = &shim->core;
    if (core->start.connection)
        reply_error(core->start.connection, core->start.id, "%s", core->end_detail);
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        const struct queue *out = &core->connections[i].out;
        if (shim->sockets[i] >= 0 && queue_length(out))
            send(shim->sockets[i], queue_head(out), queue_length(out), MSG_NOSIGNAL | MSG_DONTWAIT);
    }
}

_Noreturn void end_finish(struct shim *shim)
{
    struct core *core = &shim->core;
    /* Frozen tasks of a v1 freezer do not die; the namespace would not end. */
    freeze_undo(core);
    durable_save_running(core);
    state_end(core->end, shim->engine.has_ended ? (uint32_t)shim->engine.status : 0,
              core->host->wall_ns(), core->end_detail);
    say_goodbye(shim);
    _exit(0);
}
