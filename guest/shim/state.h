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

/* Write what is not of one stream, for a shim that goes on elsewhere. */
bool state_save_numbers(uint32_t next_id, uint64_t system_offset);

/* Have a core go on from the state file that another shim has written into `fd`, and write
 * all of it down here. */
bool state_resume(int fd, struct core *core, struct failure *failure);

/* Write the VM's end and bring it to the disk. */
void state_end(enum end_reason reason, uint32_t engine_status, uint64_t at_ns, const char *detail);

#endif
