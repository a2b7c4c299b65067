/* The interfaces of a machine: lo, and one that leads out. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "machine.h"

static void set_sockaddr(struct sockaddr *out, struct in_addr address)
{
    const struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = address};
    memcpy(out, &in, sizeof in);
}

/* The first interface that is not lo. Returns 0 or an errno. */
static int find_interface(char name[IFNAMSIZ])
{
    struct if_nameindex *all = if_nameindex();
    int error = all ? ENODEV : errno;
    for (size_t i = 0; error && all && all[i].if_index; i++)
        if (strcmp(all[i].if_name, "lo") != 0) {
            snprintf(name, IFNAMSIZ, "%s", all[i].if_name);
            error = 0;
        }
    if (all)
        if_freenameindex(all);
    return error;
}

static bool switch_interface(int control, const char *name, bool is_up)
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    if (ioctl(control, SIOCGIFFLAGS, &request) < 0)
        return false;
    request.ifr_flags = (short)(is_up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
    return ioctl(control, SIOCSIFFLAGS, &request) == 0;
}

static bool set_address(int control, const char *name, unsigned long what, struct in_addr address)
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    set_sockaddr(&request.ifr_addr, address);
    return ioctl(control, (int)what, &request) == 0;
}

static bool add_default_route(int control, struct in_addr gateway)
{
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    set_sockaddr(&route.rt_dst, (struct in_addr){INADDR_ANY});
    set_sockaddr(&route.rt_genmask, (struct in_addr){INADDR_ANY});
    set_sockaddr(&route.rt_gateway, gateway);
    return ioctl(control, SIOCADDRT, &route) == 0;
}

/* `a.b.c.d/length` */
static bool parse_network(const char *text, struct in_addr *address, struct in_addr *mask)
{
    char host[INET_ADDRSTRLEN], *end;
    size_t length = strcspn(text, "/");
    if (length >= sizeof host || text[length] != '/')
        return false;
    snprintf(host, sizeof host, "%.*s", (int)length, text);
    const char *digits = text + length + 1;
    unsigned long bits = strtoul(digits, &end, 10);
    if (*digits < '0' || *digits > '9' || *end || bits < 1 || bits > 32)
        return false;
    mask->s_addr = htonl(UINT32_MAX << (32 - bits));
    return inet_pton(AF_INET, host, address) == 1;
}

/* Through down, which takes the address's routes away. */
static bool configure(int control, const char *name, const struct in_addr *address,
                      struct in_addr mask, const struct in_addr *gateway)
{
    const struct in_addr none = {INADDR_ANY};
    if (!switch_interface(control, name, false) ||
        !set_address(control, name, SIOCSIFADDR, address ? *address : none))
        return false;
    if (!address)
        return true;
    return set_address(control, name, SIOCSIFNETMASK, mask) &&
           switch_interface(control, name, true) &&
           (!gateway || add_default_route(control, *gateway));
}

int network_set(struct fields request, struct queue *answer)
{
    (void)answer;
    const char *network = fields_get(request.bytes, request.length, "address");
    const char *router = fields_get(request.bytes, request.length, "gateway");
    struct in_addr address, mask = {0}, gateway;
    char name[IFNAMSIZ];
    if (network && !parse_network(network, &address, &mask))
        return EINVAL;
    if (router && (!network || inet_pton(AF_INET, router, &gateway) != 1))
        return EINVAL;
    int error = find_interface(name);
    if (error)
        return error;
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool is_set = control >= 0 && configure(control, name, network ? &address : NULL, mask,
                                            router ? &gateway : NULL);
    error = is_set ? 0 : errno;
    if (control >= 0)
        close(control);
    return error;
}

int network_start(void)
{
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int error = control >= 0 && switch_interface(control, "lo", true) ? 0 : errno;
    if (control >= 0)
        close(control);
    return error;
}
