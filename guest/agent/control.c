/* Stream `control`: what concerns the guest as a whole. Answered at once. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "services.h"

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
    if (strcmp(what, "identity") == 0)
        return identity_set(request, answer);
    if (strcmp(what, "bind") == 0)
        return identity_bind(request, answer);
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
        stream_fail(stream, error);
    else
        stream_exit(stream, 0, &answer);
    queue_free(&answer);
    return NULL;
}

const struct service control_service = {.word = "control", .open = control_open};
