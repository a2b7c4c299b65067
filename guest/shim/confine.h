/* Giving up every right that a running shim does not need. */
#ifndef MAGS_SHIM_CONFINE_H
#define MAGS_SHIM_CONFINE_H

#include "failure.h"

#include <sys/types.h>

/* Become `uid`, without groups and capabilities, under a list of system calls;
 * whoever makes another is killed. */
bool confine(uid_t uid, struct failure *failure);

#endif
