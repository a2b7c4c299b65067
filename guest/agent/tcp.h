/* A connected socket as a stream. */
#ifndef MAGS_TCP_H
#define MAGS_TCP_H

#include "services.h"

/* What a stream becomes; no OPEN asks for it. */
extern const struct service tcp_service;

/* Make a stream of a connected socket that does not block, and say so to the far end. Takes
 * `fd` over, and what of `input`, which may be NULL, has come in. False without memory: then
 * nothing is done. */
bool tcp_begin(struct stream *stream, int fd, struct queue *input);

/* The field `port=`. False when it is none. */
bool port_of(struct fields request, uint16_t *port);

#endif
