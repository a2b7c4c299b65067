/* The state file: how the VM and its durable streams ended, allocated before the
 * engine starts so that a full disk cannot lose it. */
#ifndef MAGS_SHIM_STATE_H
#define MAGS_SHIM_STATE_H

#include "core.h"
#include "failure.h"

/* Make `state` anew in the working directory. */
bool state_open(struct failure *failure);

/* Write the entry of a durable stream; errno tells why not. */
bool state_save(const struct durable *durable);

/* Write the VM's end and bring it to the disk. */
void state_end(enum end_reason reason, uint32_t engine_status, uint64_t at_ns, const char *detail);

#endif
