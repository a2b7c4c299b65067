/* Stream `capture`: a folder of this machine as a PAX archive. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "services.h"
#include "tree.h"

struct capture {
    struct tree *tree;
    struct queue pending;
    bool is_done;
};

static const char *capture_open(struct stream *stream, struct fields request)
{
    const char *path = fields_get(request.bytes, request.length, "path");
    if (!path || !*path)
        return "capture of no path";
    struct tree *tree = tree_open(path);
    if (!tree) {
        stream_fail(stream, errno);
        return NULL;
    }
    struct capture *capture = calloc(1, sizeof *capture);
    if (!capture) {
        tree_close(tree);
        return "out of memory";
    }
    capture->tree = tree;
    stream->state = capture;
    return NULL;
}

static void capture_abandon(struct stream *stream)
{
    struct capture *capture = stream->state;
    tree_close(capture->tree);
    queue_free(&capture->pending);
    free(capture);
}

static void capture_watch(struct stream *stream, struct poll_set *set)
{
    if (stream_room(stream, WIRE_OUT))
        poll_by(set, now_ns());
}

/* End the stream, and say what could not be read. */
static void fail(struct stream *stream, int error)
{
    const struct capture *capture = stream->state;
    struct queue fields = {0};
    queue_field(&fields, "error=%.200s: %s", tree_place(capture->tree), strerror(error));
    capture_abandon(stream);
    stream_exit(stream, (uint64_t)error, &fields);
    queue_free(&fields);
}

/* Have enough for a frame, if there is so much. 0 or an errno. */
static int fill(struct capture *capture)
{
    int error = 0;
    while (!error && !capture->is_done && queue_length(&capture->pending) < WIRE_PAYLOAD_MAX)
        error = tree_read(capture->tree, &capture->pending, &capture->is_done);
    return error;
}

static void capture_pump(struct stream *stream, const struct poll_set *set)
{
    (void)set;
    struct capture *capture = stream->state;
    for (size_t room; (room = stream_room(stream, WIRE_OUT));) {
        int error = fill(capture);
        if (error) {
            fail(stream, error);
            return;
        }
        size_t length = queue_length(&capture->pending);
        size_t count = length < room ? length : room;
        if (!count) {
            capture_abandon(stream);
            stream_send_eof(stream, WIRE_OUT);
            stream_exit(stream, 0, NULL);
            return;
        }
        stream_send(stream, WIRE_OUT, queue_head(&capture->pending), count);
        queue_take(&capture->pending, count);
    }
}

const struct service capture_service = {
    .word = "capture",
    .open = capture_open,
    .abandon = capture_abandon,
    .watch = capture_watch,
    .pump = capture_pump,
};
