/* The SFTP protocol, version 3, as a server speaks it (draft-ietf-secsh-filexfer-02, and what
 * OpenSSH adds). Bytes in, bytes out: what the requests do to files is sftp_files.h's. */
#ifndef MAGS_SFTP_H
#define MAGS_SFTP_H

#include "wire.h"

#define SFTP_DATA_MAX (256u * 1024u)                 /* of one read or write */
#define SFTP_PACKET_MAX (SFTP_DATA_MAX + 8u * 1024u) /* without its length */

struct sftp {
    bool has_begun; /* the client has said its version */
    const char *home;
};

/* Answer the first whole packet of `received`, and take it. 1: there was one; 0: more bytes are
 * needed; -1: there is no going on. */
int sftp_answer(struct sftp *sftp, struct queue *received, struct queue *to_send);

#endif
