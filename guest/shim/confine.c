#define _GNU_SOURCE
#include "confine.h"

#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "the list of system calls is not known for this architecture"
#endif

#define ALLOW(name)                                          \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), \
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define LOAD(member) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, member))
#define KILL BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

static bool install_filter(void)
{
    struct sock_filter program[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),
        KILL,
        LOAD(nr),
#ifdef SYS_poll
        ALLOW(poll),
#endif
        ALLOW(ppoll),
        ALLOW(read),
        ALLOW(write),
        ALLOW(sendto),
        ALLOW(recvfrom),
        ALLOW(accept4),
        ALLOW(close),
        ALLOW(pread64),
        ALLOW(pwrite64),
        ALLOW(pwritev),
        ALLOW(pwritev2),
        ALLOW(fcntl),
        ALLOW(ftruncate),
        ALLOW(fsync),
        ALLOW(wait4),
        ALLOW(timerfd_settime),
        ALLOW(clock_gettime),
        ALLOW(restart_syscall),
        ALLOW(exit),
        ALLOW(exit_group),
        /* malloc */
        ALLOW(brk),
        ALLOW(munmap),
        ALLOW(mremap),
        ALLOW(madvise),
        /* abort */
        ALLOW(gettid),
        ALLOW(tkill),
        ALLOW(rt_sigaction),
        ALLOW(rt_sigprocmask),
        /* malloc too, but never for code */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 0, 3),
        LOAD(args[2]),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        KILL,
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

static bool drop_capabilities(void)
{
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            return false;
    return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) == 0;
}

bool confine(uid_t uid, struct failure *failure)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    if (!drop_capabilities())
        return fail(failure, "cannot drop the bounding set: %m");
    if (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
        return fail(failure, "cannot become uid %u: %m", uid);
    if (syscall(SYS_capset, &header, none) < 0)
        return fail(failure, "cannot drop capabilities: %m");
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return fail(failure, "cannot renounce new privileges: %m");
    return install_filter() || fail(failure, "cannot install the system call filter: %m");
}
