/* Stream `halt`: all processes of the machine but the agent and its own stand still, from
 * its OPEN until its input ends or it is reset. A byte that comes in is answered by the
 * same when they do. So a machine can be saved, and told who it is before anything runs
 * in the one that goes on from there: nothing that runs has seen it. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>

#include "machine.h"

#define LOOK_NS 1000000

struct halt {
    size_t unanswered; /* bytes */
    uint8_t byte;
};

static unsigned holders;

static const char *halt_open(struct stream *stream, struct fields request)
{
    (void)request;
    struct halt *halt = calloc(1, sizeof *halt);
    if (!halt)
        return "out of memory";
    if (!holders && !crowd_halt(true)) {
        int error = errno;
        free(halt);
        stream_fail(stream, error);
        return NULL;
    }
    holders++;
    stream->state = halt;
    return NULL;
}

static void halt_abandon(struct stream *stream)
{
    free(stream->state);
    stream->state = NULL;
    if (!--holders)
        crowd_halt(false);
}

static void halt_eof(struct stream *stream)
{
    halt_abandon(stream);
    stream_exit(stream, 0, NULL);
}

static void halt_data(struct stream *stream, const uint8_t *bytes, size_t count)
{
    struct halt *halt = stream->state;
    halt->unanswered += count;
    halt->byte = bytes[count - 1];
    stream_consumed(stream, count);
}

static void halt_watch(struct stream *stream, struct poll_set *set)
{
    const struct halt *halt = stream->state;
    if (halt->unanswered)
        poll_by(set, now_ns() + LOOK_NS);
}

static void halt_pump(struct stream *stream, const struct poll_set *set)
{
    (void)set;
    struct halt *halt = stream->state;
    if (!halt->unanswered || !stream_room(stream, WIRE_OUT) || !crowd_is_halted())
        return;
    stream_send(stream, WIRE_OUT, &halt->byte, 1);
    halt->unanswered = 0;
}

const struct service halt_service = {
    .word = "halt",
    .open = halt_open,
    .data = halt_data,
    .eof = halt_eof,
    .abandon = halt_abandon,
    .watch = halt_watch,
    .pump = halt_pump,
};
