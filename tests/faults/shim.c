/* shim.c - preloaded into a tool by tests/faults.t: memory that runs out, a clock that goes backwards, a file that is
 * replaced or cut between two calls.
 *
 * What fails is what our own code asks for: a call counts when its return address lies in the program itself (the
 * library is linked in statically) or in one of the libraries of FAULT_LIBS, which report failure.  Others - glib under
 * pango, libgomp, oneDNN's inner parts - end the process by design, so failing them would test them, not us.
 *
 *   FAULT_ALLOC=N     the N-th such call returns NULL with ENOMEM; FAULT_ALLOC=N+ that one and all after it
 *   FAULT_COUNT=FILE  appends the number of the first call of each kind - caller and size - and last how many there were
 *   FAULT_LIBS=A:B    libraries that count as ours, by a part of their names
 *   FAULT_CLOCK=K     from the K-th reading on, all clocks have lost an hour, and lose a second with each reading
 *   FAULT_WATCH=FILE  after FILE has been opened FAULT_TIMES times, the command in FAULT_THEN is run, once
 *   FAULT_EXCHANGE=1  no two folders can be exchanged, as on some file systems
 *   FAULT_FOLDER=NAME folder NAME cannot be looked into */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_RANGES = 64, MAX_KINDS = 4096, LOST_S = 3600 };

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static struct { uintptr_t lo, hi; } ours[MAX_RANGES];
static int n_ours;
static struct { uintptr_t from; size_t bytes; long first; } kind[MAX_KINDS];
static long calls, fail_at, readings, clock_at, opens, open_at;
static int fail_on, ready, counting;
static const char *watch;

static int add_object(struct dl_phdr_info *o, size_t size, void *first)
{
    (void)size;
    char *libs = getenv("FAULT_LIBS"), *list = libs ? strdupa(libs) : NULL;
    int take = *(int *)first;
    *(int *)first = 0;
    for (char *name = list ? strtok(list, ":") : NULL; name && !take; name = strtok(NULL, ":"))
        take = strstr(o->dlpi_name, name) != NULL;
    for (int i = 0; take && i < o->dlpi_phnum && n_ours < MAX_RANGES; i++)
        if (o->dlpi_phdr[i].p_type == PT_LOAD && o->dlpi_phdr[i].p_flags & PF_X) {
            ours[n_ours].lo = o->dlpi_addr + o->dlpi_phdr[i].p_vaddr;
            ours[n_ours].hi = ours[n_ours].lo + o->dlpi_phdr[i].p_memsz;
            n_ours++;
        }
    return 0;
}

__attribute__((constructor)) static void begin(void)
{
    int first = 1;
    const char *at = getenv("FAULT_ALLOC"), *clock = getenv("FAULT_CLOCK"), *times = getenv("FAULT_TIMES");
    dl_iterate_phdr(add_object, &first);
    fail_at = at ? atol(at) : 0;
    fail_on = at && strchr(at, '+');
    clock_at = clock ? atol(clock) : 0;
    watch = getenv("FAULT_WATCH");
    open_at = times ? atol(times) : 1;
    counting = getenv("FAULT_COUNT") != NULL;
    ready = 1;
}

__attribute__((destructor)) static void end(void)
{
    const char *path = getenv("FAULT_COUNT");
    FILE *f = path ? fopen(path, "a") : NULL;
    if (f) {
        for (int i = 0; i < MAX_KINDS; i++)
            if (kind[i].first)
                fprintf(f, "%ld\n", kind[i].first);
        fprintf(f, "%ld %s\n", calls, program_invocation_short_name);
        fclose(f);
    }
}

/* Threads may both take a free place; then a kind is listed twice. */
static void note(uintptr_t from, size_t bytes, long k)
{
    size_t at = (from * 31 + bytes) * 0x9e3779b97f4a7c15u >> 52;
    for (int i = 0; i < 16; i++, at = (at + 1) % MAX_KINDS) {
        if (kind[at].first && (kind[at].from != from || kind[at].bytes != bytes))
            continue;
        if (!kind[at].first) {
            kind[at].from = from;
            kind[at].bytes = bytes;
            kind[at].first = k;
        }
        return;
    }
}

/* Does the call that returns to `to` fail? */
static int fails(const void *to, size_t bytes)
{
    int mine = 0;
    for (int i = 0; ready && i < n_ours; i++)
        mine |= (uintptr_t)to >= ours[i].lo && (uintptr_t)to < ours[i].hi;
    if (!mine)
        return 0;
    long k = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    if (counting)
        note((uintptr_t)to, bytes, k);
    if (!fail_at || k < fail_at || (k > fail_at && !fail_on))
        return 0;
    errno = ENOMEM;
    return 1;
}

#define FAILS(bytes) fails(__builtin_return_address(0), bytes)
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void *malloc(size_t n) { return FAILS(n) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return FAILS(n * size) ? NULL : __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { return FAILS(n) ? NULL : __libc_realloc(p, n); }
void *aligned_alloc(size_t align, size_t n) { return FAILS(n) ? NULL : __libc_memalign(align, n); }

int posix_memalign(void **p, size_t align, size_t n)
{
    if (FAILS(n))
        return ENOMEM;
    *p = __libc_memalign(align, n);
    return *p ? 0 : ENOMEM;
}

char *strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *p = FAILS(0) ? NULL : __libc_malloc(n);
    return p ? memcpy(p, s, n) : NULL;
}

char *strndup(const char *s, size_t most)
{
    size_t n = strnlen(s, most);
    char *p = FAILS(0) ? NULL : __libc_malloc(n + 1);
    if (p)
        p[n] = '\0';
    return p ? memcpy(p, s, n) : NULL;
}

int vasprintf(char **s, const char *fmt, va_list ap)
{
    return FAILS(0) ? -1 : NEXT(vasprintf)(s, fmt, ap);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
    return FAILS(n) ? MAP_FAILED : (void *)syscall(SYS_mmap, at, n, prot, flags, fd, off);
}

FILE *fdopen(int fd, const char *mode) { return FAILS(0) ? NULL : NEXT(fdopen)(fd, mode); }
FILE *tmpfile(void) { return FAILS(0) ? NULL : NEXT(tmpfile)(); }
FILE *open_memstream(char **s, size_t *n) { return FAILS(0) ? NULL : NEXT(open_memstream)(s, n); }
char *realpath(const char *name, char *to) { return FAILS(0) ? NULL : NEXT(realpath)(name, to); }

int scandir(const char *dir, struct dirent ***list, int (*want)(const struct dirent *),
            int (*order)(const struct dirent **, const struct dirent **))
{
    return FAILS(0) ? -1 : NEXT(scandir)(dir, list, want, order);
}

int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg)
{
    return FAILS(0) ? EAGAIN : NEXT(pthread_create)(t, a, run, arg);
}

/* --- files that change --- */

/* The command sees none of this. */
static void then(void)
{
    const char *command = getenv("FAULT_THEN");
    char *copy = command ? strdupa(command) : NULL;
    unsetenv("LD_PRELOAD");
    if (!copy || system(copy) != 0)
        _exit(99);
}

static void opened(const char *path)
{
    const char *a = watch ? strrchr(path, '/') : NULL;
    if (watch && !strcmp(a ? a + 1 : path, watch) && __atomic_add_fetch(&opens, 1, __ATOMIC_RELAXED) == open_at)
        then();
}

int open(const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, int) : 0;
    va_end(ap);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= 0)
        opened(path);
    return fd;
}

FILE *fopen(const char *path, const char *mode)
{
    FILE *f = FAILS(0) ? NULL : NEXT(fopen)(path, mode);
    if (f)
        opened(path);
    return f;
}

DIR *opendir(const char *name)
{
    const char *never = getenv("FAULT_FOLDER");
    if (!never || strcmp(name, never))
        return FAILS(0) ? NULL : NEXT(opendir)(name);
    errno = EACCES;
    return NULL;
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    if (!getenv("FAULT_EXCHANGE") || !(flags & RENAME_EXCHANGE))
        return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    errno = EINVAL;
    return -1;
}

/* --- clocks --- */

static time_t lost(void)
{
    long k = __atomic_add_fetch(&readings, 1, __ATOMIC_RELAXED);
    return clock_at && k >= clock_at ? LOST_S + (k - clock_at) : 0;
}

int clock_gettime(clockid_t id, struct timespec *t)
{
    int rc = (int)syscall(SYS_clock_gettime, id, t);
    t->tv_sec -= lost();
    return rc;
}

time_t time(time_t *out)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out)
        *out = t.tv_sec;
    return t.tv_sec;
}
