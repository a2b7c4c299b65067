/* Pseudo-terminals, and the modes that an SSH client asks for. */
#define _GNU_SOURCE
#include "terminal.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define MODE_BYTES 5 /* an opcode and a number, the highest byte first */
#define OTHER_MODES 160

enum place { CHARACTER, INPUT, LOCAL, OUTPUT, CONTROL };

static const struct mode {
    uint8_t code;
    uint8_t place;
    tcflag_t what; /* a flag, or which character */
} modes[] = {
    {1, CHARACTER, VINTR},   {2, CHARACTER, VQUIT},   {3, CHARACTER, VERASE},
    {4, CHARACTER, VKILL},   {5, CHARACTER, VEOF},    {6, CHARACTER, VEOL},
    {7, CHARACTER, VEOL2},   {8, CHARACTER, VSTART},  {9, CHARACTER, VSTOP},
    {10, CHARACTER, VSUSP},  {12, CHARACTER, VREPRINT}, {13, CHARACTER, VWERASE},
    {14, CHARACTER, VLNEXT}, {18, CHARACTER, VDISCARD}, {30, INPUT, IGNPAR},
    {31, INPUT, PARMRK},     {32, INPUT, INPCK},      {33, INPUT, ISTRIP},
    {34, INPUT, INLCR},      {35, INPUT, IGNCR},      {36, INPUT, ICRNL},
    {37, INPUT, IUCLC},      {38, INPUT, IXON},       {39, INPUT, IXANY},
    {40, INPUT, IXOFF},      {41, INPUT, IMAXBEL},    {42, INPUT, IUTF8},
    {50, LOCAL, ISIG},       {51, LOCAL, ICANON},     {53, LOCAL, ECHO},
    {54, LOCAL, ECHOE},      {55, LOCAL, ECHOK},      {56, LOCAL, ECHONL},
    {57, LOCAL, NOFLSH},     {58, LOCAL, TOSTOP},     {59, LOCAL, IEXTEN},
    {60, LOCAL, ECHOCTL},    {61, LOCAL, ECHOKE},     {70, OUTPUT, OPOST},
    {71, OUTPUT, OLCUC},     {72, OUTPUT, ONLCR},     {73, OUTPUT, OCRNL},
    {74, OUTPUT, ONOCR},     {75, OUTPUT, ONLRET},    {90, CONTROL, CS7},
    {91, CONTROL, CS8},      {92, CONTROL, PARENB},   {93, CONTROL, PARODD},
};

static void set_flag(tcflag_t *flags, tcflag_t flag, bool is_set)
{
    *flags = is_set ? *flags | flag : *flags & ~flag;
}

static void set_mode(struct termios *settings, const struct mode *mode, uint32_t value)
{
    switch (mode->place) {
    case CHARACTER: /* 255: none */
        settings->c_cc[mode->what] = value >= 255 ? _POSIX_VDISABLE : (cc_t)value;
        break;
    case INPUT:
        set_flag(&settings->c_iflag, mode->what, value != 0);
        break;
    case LOCAL:
        set_flag(&settings->c_lflag, mode->what, value != 0);
        break;
    case OUTPUT:
        set_flag(&settings->c_oflag, mode->what, value != 0);
        break;
    default:
        set_flag(&settings->c_cflag, mode->what, value != 0);
    }
}

/* Read hex digits into `bytes`, at most `size`; returns how many there were. */
static size_t from_hex(const char *text, uint8_t *bytes, size_t size)
{
    size_t count = 0;
    for (; count < size && isxdigit((unsigned char)text[0]) && isxdigit((unsigned char)text[1]);
         text += 2, count++) {
        const char pair[] = {text[0], text[1], 0};
        bytes[count] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return count;
}

static void apply(struct termios *settings, const char *text)
{
    uint8_t bytes[1024];
    size_t count = from_hex(text, bytes, sizeof bytes);
    for (size_t at = 0; at + MODE_BYTES <= count; at += MODE_BYTES) {
        const uint8_t *it = bytes + at;
        if (it[0] == 0 || it[0] >= OTHER_MODES)
            return; /* the end, or what has another form */
        uint32_t value = (uint32_t)it[1] << 24 | (uint32_t)it[2] << 16 | (uint32_t)it[3] << 8 |
                         it[4];
        for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
            if (modes[i].code == it[0])
                set_mode(settings, &modes[i], value);
    }
}

static uint16_t number(struct fields request, const char *key)
{
    const char *text = fields_get(request.bytes, request.length, key);
    return text ? (uint16_t)strtoul(text, NULL, 10) : 0;
}

int terminal_open(struct fields request, int *master, int *its)
{
    *master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    const char *name = *master >= 0 && unlockpt(*master) == 0 ? ptsname(*master) : NULL;
    *its = name ? open(name, O_RDWR | O_NOCTTY | O_CLOEXEC) : -1;
    struct termios settings;
    if (*its < 0 || fcntl(*master, F_SETFL, O_NONBLOCK) < 0 || tcgetattr(*its, &settings) < 0)
        return errno ? errno : EIO;
    settings.c_iflag |= IUTF8;
    const char *wanted = fields_get(request.bytes, request.length, "modes");
    if (wanted)
        apply(&settings, wanted);
    tcsetattr(*its, TCSANOW, &settings);
    terminal_resize(*master, number(request, "columns"), number(request, "rows"));
    return 0;
}

void terminal_resize(int master, uint16_t columns, uint16_t rows)
{
    const struct winsize size = {.ws_col = columns, .ws_row = rows};
    ioctl(master, TIOCSWINSZ, &size);
}

int terminal_end(int master)
{
    struct termios settings;
    if (tcgetattr(master, &settings) < 0 || !(settings.c_lflag & ICANON))
        return -1;
    return settings.c_cc[VEOF] == _POSIX_VDISABLE ? -1 : settings.c_cc[VEOF];
}

pid_t terminal_foreground(int master)
{
    pid_t group = 0;
    return ioctl(master, TIOCGPGRP, &group) == 0 && group > 0 ? group : 0;
}
