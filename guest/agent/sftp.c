#define _GNU_SOURCE
#include "sftp.h"

#include "sftp_packet.h"

int sftp_answer(struct sftp *sftp, struct queue *received, struct queue *to_send)
{
    size_t have = queue_length(received);
    if (have < 5)
        return 0;
    struct cursor cursor = {queue_head(received), queue_head(received) + have, false};
    size_t length = take_32(&cursor);
    if (length < 5 || length > SFTP_PACKET_MAX)
        return -1;
    if (have < 4 + length)
        return 0;
    cursor.end = cursor.at + length;
    uint8_t type = *cursor.at++;
    if (type == SFTP_INIT) {
        sftp->has_begun = true;
        request_answer_version(to_send);
    } else if (!sftp->has_begun) {
        return -1;
    } else {
        struct request request = {.sftp = sftp, .id = take_32(&cursor), .out = to_send};
        request.in = cursor;
        int error = request_act(&request, type);
        if (error)
            answer_error(to_send, request.id, error);
    }
    queue_take(received, 4 + length);
    return 1;
}
