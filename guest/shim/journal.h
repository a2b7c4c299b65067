/* The journal: what durable streams print, in 17 segment files of the run
 * directory, the first kept for ever and the other 16 written in turn. All are
 * opened before privileges are dropped. docs/reference/wire.md has the format.
 */
#ifndef MAGS_SHIM_JOURNAL_H
#define MAGS_SHIM_JOURNAL_H

#include "core.h"
#include "failure.h"

/* Open or make the files in the working directory and find where the last
 * writer stopped; a record it left unfinished is cut off. */
bool journal_open(struct failure *failure);

/* Append a record; errno tells why not. A long payload of kind data becomes
 * several records. What was written in part is overwritten by the next try. */
bool journal_append(const struct record *record);

/* The position after the last record. */
uint64_t journal_end(void);

#endif
