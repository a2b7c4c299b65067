/* The guest as a machine of its own, booted by the agent itself: what there is to
 * do that a sandbox which was made for the agent has done already.
 */
#ifndef MAGS_MACHINE_H
#define MAGS_MACHINE_H

#include "services.h"

/* Whether this process was started by a kernel as its first, out of an initramfs. */
bool machine_is_ours(void);

/* Learn the above from the name that the process was started by. */
void machine_recognise(const char *name);

/* Make it ready: file systems, modules, limits, and the link, which does not block.
 * NULL, or what went wrong. */
const char *machine_boot(int *link);

/* Switch it off, with all that runs in it. */
void machine_end(void);

/* Operations of `control`: 0 or an errno, and fields for the answer. */
int root_mount_layers(struct fields request, struct queue *answer);
int root_enter(struct fields request, struct queue *answer);
int root_mount_disk(struct fields request, struct queue *answer);
int network_set(struct fields request, struct queue *answer);

/* The disk that the root is written to, or -1: a descriptor to keep. */
int root_disk(void);

/* Bring up the loopback interface. Returns 0 or an errno. */
int network_start(void);

/* Let no more than `count` processes and threads run beside the agent. 0 or an errno. */
int crowd_limit(unsigned count);

#endif
