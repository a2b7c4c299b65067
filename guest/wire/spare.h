/* Room on a VM's disk that the guest does not get: an overlay makes a directory when it is
 * mounted, and on a full disk could not; it would be read-only, and nobody could free anything. */
#ifndef MAGS_SPARE_H
#define MAGS_SPARE_H

/* Give the room free, for the overlay with this work directory, which is about to be mounted. */
void spare_release(const char *work);

/* Take it again, as much as there is. */
void spare_hold(const char *work);

#endif
