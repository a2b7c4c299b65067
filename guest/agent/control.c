/* Stream `control`: what concerns the guest as a whole. Answered at once. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "machine.h"

static int quiesce(struct session *session)
{
    /* The answer lies behind everything that was read before. */
    session->is_quiet = true;
    return 0;
}

static int power_off(struct session *session)
{
    exec_kill_all(session);
    if (getpid() == 1)
        kill(-1, SIGKILL);
    sync();
    session->is_ending = true;
    return 0;
}

static int perform(struct session *session, const char *what, struct fields request,
                   struct queue *answer)
{
    static const struct {
        const char *word;
        int (*run)(struct fields request, struct queue *answer);
        bool is_of_machines;
    } operations[] = {
        {"identity", identity_set, false}, {"bind", identity_bind, false},
        {"layers", root_mount_layers, true}, {"root", root_enter, true},
        {"disk", root_mount_disk, true}, {"network", network_set, true},
        {"uploads", uploads_show, false},
    };
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (strcmp(what, operations[i].word) == 0 &&
            (machine_is_ours() || !operations[i].is_of_machines))
            return operations[i].run(request, answer);
    if (strcmp(what, "stats") == 0)
        return processes_measure(answer);
    if (strcmp(what, "quiesce") == 0)
        return quiesce(session);
    if (strcmp(what, "poweroff") == 0)
        return power_off(session);
    return ENOSYS;
}

static const char *control_open(struct stream *stream, struct fields request)
{
    size_t cursor = 0;
    fields_next(request.bytes, request.length, &cursor);
    const char *what = fields_next(request.bytes, request.length, &cursor);
    if (!what)
        return "control of nothing";
    struct queue answer = {0};
    int error = perform(stream->session, what, request, &answer);
    if (error)
        queue_field(&answer, "error=%s", strerror(error));
    stream_exit(stream, (uint64_t)error, &answer);
    queue_free(&answer);
    return NULL;
}

const struct service control_service = {.word = "control", .open = control_open};
