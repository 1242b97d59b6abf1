/* killer.c - runs a command and kills it in the middle of changing files, for tests/kill.t.
 *
 *     killer -d DIR [-l FILE] [-n N -w before|half|after] [-r] COMMAND...
 *
 * By ptrace, the calls of the command and its children that change files are counted: writes and syncs of
 * files under DIR, and all that make, rename or remove a name.  stdio calls the kernel without going through a function
 * that a preloaded library could replace, so the calls are watched where they enter the kernel.
 *   -l FILE  one line for each call: its name and the last part of the path, the digits of process numbers made 0
 *   -n N     kill at the N-th: before it, after it, or, of a write, when half of its bytes are written (some, of a copy
 *            that the kernel makes)
 *   -r       kill the command alone; its children have to end by themselves, within a few seconds
 * Exit: 137 killed, and what it was doing on stderr; 99 when children outlive it; else that of the command. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/ptrace.h>

enum { PATIENCE_S = 10, SOME_BYTES = 7, OPTIONS = PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
                                  PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC };
enum when { BEFORE, HALF, AFTER };
enum what { FD, PATH, CREATE };  /* what is looked at: a descriptor, a path, a path if the flags create */

static const struct call { uint64_t nr; const char *name; enum what what; int arg; } calls[] = {
    { SYS_write, "write", FD, 0 }, { SYS_pwrite64, "write", FD, 0 }, { SYS_writev, "write", FD, 0 },
    { SYS_copy_file_range, "write", FD, 2 },
    { SYS_fsync, "fsync", FD, 0 }, { SYS_fdatasync, "fsync", FD, 0 }, { SYS_ftruncate, "truncate", FD, 0 },
    { SYS_rename, "rename", PATH, 1 }, { SYS_renameat, "rename", PATH, 3 }, { SYS_renameat2, "rename", PATH, 3 },
    { SYS_unlink, "unlink", PATH, 0 }, { SYS_unlinkat, "unlink", PATH, 1 }, { SYS_rmdir, "rmdir", PATH, 0 },
    { SYS_mkdir, "mkdir", PATH, 0 }, { SYS_mkdirat, "mkdir", PATH, 1 }, { SYS_linkat, "link", PATH, 3 },
    { SYS_open, "open", CREATE, 0 }, { SYS_openat, "open", CREATE, 1 },
};

static struct {
    const char *dir;
    FILE *list;
    long  at, n;
    enum when when;
    int   root_only;
    pid_t root, victim;                         /* victim: the thread whose call is awaited to end */
} k;

static void die(const char *what)
{
    perror(what);
    exit(98);
}

/* --- what a call is about --- */

static void fd_path(pid_t pid, uint64_t fd, char *path, size_t max)
{
    char link[64];
    snprintf(link, sizeof(link), "/proc/%d/fd/%d", (int)pid, (int)fd);
    ssize_t n = readlink(link, path, max - 1);
    path[n > 0 ? n : 0] = '\0';
}

static void peek_path(pid_t pid, uint64_t at, char *path, size_t max)
{
    for (size_t i = 0; i + sizeof(long) < max; i += sizeof(long)) {
        errno = 0;
        long word = ptrace(PTRACE_PEEKDATA, pid, at + i, 0);
        memcpy(path + i, &word, sizeof(word));
        if (errno || memchr(&word, 0, sizeof(word)))
            break;
    }
    path[max - 1] = '\0';
}

static const struct call *of_interest(pid_t pid, const struct ptrace_syscall_info *s, char *path, size_t max)
{
    const struct call *c = calls, *end = calls + sizeof(calls) / sizeof(*calls);
    while (c < end && c->nr != s->entry.nr)
        c++;
    memset(path, 0, max);
    if (c == end || (c->what == CREATE && !(s->entry.args[c->arg + 1] & (O_CREAT | O_TRUNC))))
        return NULL;
    if (c->what == FD)
        fd_path(pid, s->entry.args[c->arg], path, max);
    else
        peek_path(pid, s->entry.args[c->arg], path, max);
    return c->what != FD || !strncmp(path, k.dir, strlen(k.dir)) ? c : NULL;
}

/* The last part of a path, without the process number of a temporary name. */
static const char *base(char *path)
{
    char *slash = strrchr(path, '/'), *b = slash ? slash + 1 : path, *tmp = strstr(b, ".tmp"), *dot = tmp;
    while (tmp && dot > b && *--dot != '.')
        if (*dot >= '0' && *dot <= '9')
            *dot = '0';
    return b;
}

/* --- killing --- */

/* What a stopped thread is to get: events, calls and the first stop of a new thread are no signals. */
static int signal_of(int status)
{
    int sig = WSTOPSIG(status);
    return status >> 16 || sig == (SIGTRAP | 0x80) || sig == SIGTRAP || sig == SIGSTOP ? 0 : sig;
}

static void outlived(int sig)
{
    (void)sig;
    _exit(99);
}

static _Noreturn void murder(void)
{
    int status;
    if (!k.root_only)
        exit(137);                              /* PTRACE_O_EXITKILL: all that is traced dies with us */
    kill(k.root, SIGKILL);
    signal(SIGALRM, outlived);
    alarm(PATIENCE_S);
    for (pid_t pid; (pid = waitpid(-1, &status, __WALL)) > 0;)
        if (WIFSTOPPED(status))
            ptrace(PTRACE_CONT, pid, 0, signal_of(status));
    exit(137);
}

static void entered(pid_t pid, const struct ptrace_syscall_info *s)
{
    char path[512];
    const struct call *c = of_interest(pid, s, path, sizeof(path));
    if (!c)
        return;
    const char *b = base(path);
    if (k.list)
        fprintf(k.list, "%s %s\n", c->name, b);
    if (++k.n != k.at)
        return;
    static const char *const when[] = { "before", "half", "after" };
    fprintf(stderr, "killed: %ld, %s %s %s\n", k.n, when[k.when], c->name, b);
    if (k.when == BEFORE)
        murder();
    if (k.when == HALF && (s->entry.nr == SYS_write || s->entry.nr == SYS_pwrite64) && s->entry.args[2] > 1)
        ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, rdx), s->entry.args[2] / 2);
    if (k.when == HALF && s->entry.nr == SYS_copy_file_range)
        ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, r8), SOME_BYTES);
    k.victim = pid;
}

static void at_call(pid_t pid)
{
    struct ptrace_syscall_info s = { 0 };
    if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(s), &s) < 0)
        return;
    if (s.op == PTRACE_SYSCALL_INFO_ENTRY)
        entered(pid, &s);
    else if (s.op == PTRACE_SYSCALL_INFO_EXIT && pid == k.victim)
        murder();
}

static int watch(void)
{
    int status, code = 98;
    for (pid_t pid; (pid = waitpid(-1, &status, __WALL)) > 0;) {
        if (!WIFSTOPPED(status)) {
            if (pid == k.root)
                code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            continue;
        }
        if (WSTOPSIG(status) == (SIGTRAP | 0x80))
            at_call(pid);
        ptrace(PTRACE_SYSCALL, pid, 0, signal_of(status));
    }
    return code;
}

int main(int argc, char **argv)
{
    for (int c; (c = getopt(argc, argv, "+d:l:n:w:r")) != -1;)
        switch (c) {
        case 'd': k.dir = optarg; break;
        case 'l': k.list = fopen(optarg, "w"); break;
        case 'n': k.at = atol(optarg); break;
        case 'w': k.when = *optarg == 'b' ? BEFORE : *optarg == 'h' ? HALF : AFTER; break;
        case 'r': k.root_only = 1; break;
        default: return 98;
        }
    if (!k.dir || optind == argc)
        return 98;
    if ((k.root = fork()) < 0)
        die("fork");
    if (!k.root) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0) < 0)
            die("ptrace");
        raise(SIGSTOP);
        execvp(argv[optind], argv + optind);
        die(argv[optind]);
    }
    if (waitpid(k.root, NULL, 0) < 0 || ptrace(PTRACE_SETOPTIONS, k.root, 0, OPTIONS) < 0)
        die("ptrace");
    ptrace(PTRACE_SYSCALL, k.root, 0, 0);
    return watch();
}
