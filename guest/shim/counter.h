/* Numbers in the files of control groups, lines of `name number`. */
#ifndef MAGS_SHIM_COUNTER_H
#define MAGS_SHIM_COUNTER_H

/* The number of `name`; 0 when there is no such line, or nothing can be read. */
unsigned long counter_read(int fd, const char *name);

#endif
