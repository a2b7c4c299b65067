/* A terminal for an exec. */
#ifndef MAGS_TERMINAL_H
#define MAGS_TERMINAL_H

#include "services.h"

/* Make a terminal as the request says: its size `columns=` and `rows=`, and `modes=`, what
 * RFC 4254, section 8, encodes, in hex. `master` does not block, `its` is the program's end.
 * Returns 0 or an errno; on failure what was opened is the caller's to close, too. */
int terminal_open(struct fields request, int *master, int *its);

void terminal_resize(int master, uint16_t columns, uint16_t rows);

/* The character that ends input, or -1 when what is typed is not looked at. */
int terminal_end(int master);

/* The process group in the foreground, or 0. */
pid_t terminal_foreground(int master);

#endif
