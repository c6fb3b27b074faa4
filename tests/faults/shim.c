/* The calls that change a file system, seen on their way into libc: counted, logged, and at call N made fatal or failing.

   An LD_PRELOAD library. It is driven by a control file that both sides map (FAULTS_CONTROL; shim.py writes and reads it), so
   that counts and log outlive a SIGKILL; it keeps no descriptor open. Only calls count whose path, or whose descriptor's path,
   lies under the state folder that the control names. What goes by it: writes through a memory map, such as SQLite's -shm. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE, FSYNC, FDATASYNC, RENAME, LINK, SYMLINK, UNLINK, RMDIR, MKDIR, TRUNCATE, ALLOCATE, COPY, CREATE };
static const char *const KINDS[] = {"write", "fsync", "fdatasync", "rename", "link", "symlink", "unlink", "rmdir",
                                    "mkdir", "truncate", "allocate", "copy", "create"};
enum action { LOG, KILL, FAIL, TEAR, SHORT }; /* tear: half of a write, then the end; short: half of a write, no error */
enum fate { GO, ERROR, HALF, HALF_THEN_END };

#define LOG_BYTES (8 << 20)

struct control { /* the same fields as shim.py's Control */
    _Atomic uint32_t armed;
    uint32_t kinds;  /* a bit for each kind that counts */
    uint32_t action;
    int32_t error;
    uint64_t first, last;  /* the action is done at these calls, counted from 1 */
    _Atomic uint64_t count, fired, log_used;
    char state[PATH_MAX];
    char step[64];  /* written by the process that is watched: where it says that it is */
    char log[LOG_BYTES];
};

static struct control *control;

/* Map a control file; called at load, and by who forks and wants another one for the child. Returns 0, or -1. */
int faults_use(const char *path) {
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0)
        syscall(SYS_close, fd);
    if (at == MAP_FAILED)
        return -1;
    control = at;
    return 0;
}

__attribute__((constructor)) static void load(void) {
    const char *path = getenv("FAULTS_CONTROL");
    if (path && faults_use(path) != 0) {
        fprintf(stderr, "faults: cannot map %s\n", path);
        _exit(99);
    }
}

/* ------------------------------------------------------------------------------------------------ whose call is it? */

static int descriptor_path(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    out[n < 0 ? 0 : n] = 0;
    return n > 0;
}

static void full_path(int at, const char *path, char *out) {
    char folder[PATH_MAX] = "";
    if (path[0] != '/' && !(at == AT_FDCWD ? getcwd(folder, sizeof folder) != NULL : descriptor_path(at, folder)))
        folder[0] = 0;
    if (snprintf(out, PATH_MAX, path[0] == '/' ? "%.0s%s" : "%s/%s", folder, path) >= PATH_MAX)
        out[0] = 0;
}

/* Return the path below the state, or NULL if it lies elsewhere. */
static const char *below(const char *path) {
    size_t n = strlen(control->state);
    if (n == 0 || strncmp(path, control->state, n) != 0 || (path[n] != '/' && path[n] != 0))
        return NULL;
    return path[n] == '/' ? path + n + 1 : ".";
}

/* ---------------------------------------------------------------------------------------------------- what is done */

static void note(uint64_t number, enum kind kind, const char *path, const char *other) {
    char line[2 * PATH_MAX + 128];
    int n = snprintf(line, sizeof line, "%llu\t%s\t%s\t%s\t%.63s\n", (unsigned long long)number, KINDS[kind], path, other,
                     control->step);
    uint64_t at = atomic_fetch_add(&control->log_used, n);
    if (at + n <= LOG_BYTES)
        memcpy(control->log + at, line, n);
}

static void end(void) {
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;)
        pause();
}

static enum fate decide(enum kind kind, const char *path, const char *other) {
    int before = errno;
    const char *one = path ? below(path) : NULL, *two = other ? below(other) : NULL;
    if ((!one && !two) || !(control->kinds >> kind & 1))
        return errno = before, GO;
    uint64_t number = atomic_fetch_add(&control->count, 1) + 1;
    note(number, kind, one ? one : path, two ? two : other ? other : "");
    if (control->action == LOG || number < control->first || number > control->last)
        return errno = before, GO;
    atomic_fetch_add(&control->fired, 1);
    int cuts = kind == WRITE || kind == COPY;
    if (control->action == KILL || (control->action == TEAR && !cuts))
        end();
    if (control->action == FAIL)
        return errno = control->error, ERROR;
    errno = before;
    return control->action == TEAR ? HALF_THEN_END : cuts ? HALF : GO;
}

static int off(void) { return !control || !control->armed; }

static enum fate at_descriptor(enum kind kind, int fd) {
    char path[PATH_MAX];
    int before = errno;
    int known = !off() && descriptor_path(fd, path);
    errno = before;
    return known ? decide(kind, path, NULL) : GO;
}

static enum fate at_path(enum kind kind, int at, const char *path) {
    char full[PATH_MAX];
    if (off() || !path)
        return GO;
    full_path(at, path, full);
    return decide(kind, full, NULL);
}

static enum fate at_paths(enum kind kind, int at, const char *path, int other_at, const char *other) {
    char one[PATH_MAX], two[PATH_MAX];
    if (off() || !path || !other)
        return GO;
    full_path(at, path, one);
    full_path(other_at, other, two);
    return decide(kind, one, two);
}

/* ------------------------------------------------------------------------------------------------------- the calls */

/* A call that is done or fails, whole. */
#define CALL(type, name, parameters, arguments, types, fate) \
    type name parameters { \
        static type(*real) types; \
        if (!real) \
            real = (type(*) types)dlsym(RTLD_NEXT, #name); \
        if ((fate) == ERROR) \
            return -1; \
        return real arguments; \
    }

/* A call that takes n bytes, of which it may take half. */
#define CUTTING(name, parameters, arguments, types, kind, fd) \
    ssize_t name parameters { \
        static ssize_t(*real) types; \
        if (!real) \
            real = (ssize_t(*) types)dlsym(RTLD_NEXT, #name); \
        enum fate fate = at_descriptor(kind, fd); \
        if (fate == ERROR) \
            return -1; \
        if (fate != GO && n > 1) \
            n /= 2; \
        ssize_t done = real arguments; \
        if (fate == HALF_THEN_END) \
            end(); \
        return done; \
    }

CUTTING(write, (int fd, const void *data, size_t n), (fd, data, n), (int, const void *, size_t), WRITE, fd)
CUTTING(pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at), (int, const void *, size_t, off_t),
        WRITE, fd)
CUTTING(pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at),
        (int, const void *, size_t, off64_t), WRITE, fd)
/* Of several pieces it may take half of the pieces. */
CUTTING(writev, (int fd, const struct iovec *parts, int n), (fd, parts, n), (int, const struct iovec *, int), WRITE, fd)
CUTTING(pwritev, (int fd, const struct iovec *parts, int n, off_t at), (fd, parts, n, at),
        (int, const struct iovec *, int, off_t), WRITE, fd)
CUTTING(pwritev64, (int fd, const struct iovec *parts, int n, off64_t at), (fd, parts, n, at),
        (int, const struct iovec *, int, off64_t), WRITE, fd)
CUTTING(pwritev2, (int fd, const struct iovec *parts, int n, off_t at, int flags), (fd, parts, n, at, flags),
        (int, const struct iovec *, int, off_t, int), WRITE, fd)
CUTTING(pwritev64v2, (int fd, const struct iovec *parts, int n, off64_t at, int flags), (fd, parts, n, at, flags),
        (int, const struct iovec *, int, off64_t, int), WRITE, fd)
CUTTING(copy_file_range, (int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags),
        (in, from, out, to, n, flags), (int, off64_t *, int, off64_t *, size_t, unsigned), COPY, out)
CUTTING(sendfile, (int out, int in, off_t *from, size_t n), (out, in, from, n), (int, int, off_t *, size_t), COPY, out)
CUTTING(sendfile64, (int out, int in, off64_t *from, size_t n), (out, in, from, n), (int, int, off64_t *, size_t), COPY,
        out)

CALL(int, fsync, (int fd), (fd), (int), at_descriptor(FSYNC, fd))
CALL(int, fdatasync, (int fd), (fd), (int), at_descriptor(FDATASYNC, fd))
CALL(int, ftruncate, (int fd, off_t n), (fd, n), (int, off_t), at_descriptor(TRUNCATE, fd))
CALL(int, ftruncate64, (int fd, off64_t n), (fd, n), (int, off64_t), at_descriptor(TRUNCATE, fd))
CALL(int, truncate, (const char *path, off_t n), (path, n), (const char *, off_t), at_path(TRUNCATE, AT_FDCWD, path))
CALL(int, truncate64, (const char *path, off64_t n), (path, n), (const char *, off64_t),
     at_path(TRUNCATE, AT_FDCWD, path))
CALL(int, fallocate, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n), (int, int, off_t, off_t),
     at_descriptor(ALLOCATE, fd))
CALL(int, fallocate64, (int fd, int mode, off64_t at, off64_t n), (fd, mode, at, n), (int, int, off64_t, off64_t),
     at_descriptor(ALLOCATE, fd))

CALL(int, rename, (const char *from, const char *to), (from, to), (const char *, const char *),
     at_paths(RENAME, AT_FDCWD, from, AT_FDCWD, to))
CALL(int, renameat, (int at, const char *from, int there, const char *to), (at, from, there, to),
     (int, const char *, int, const char *), at_paths(RENAME, at, from, there, to))
CALL(int, renameat2, (int at, const char *from, int there, const char *to, unsigned flags),
     (at, from, there, to, flags), (int, const char *, int, const char *, unsigned),
     at_paths(RENAME, at, from, there, to))
CALL(int, link, (const char *from, const char *to), (from, to), (const char *, const char *),
     at_paths(LINK, AT_FDCWD, from, AT_FDCWD, to))
CALL(int, linkat, (int at, const char *from, int there, const char *to, int flags), (at, from, there, to, flags),
     (int, const char *, int, const char *, int), at_paths(LINK, at, from, there, to))
/* A symbolic link's target is a text, no place that changes. */
CALL(int, symlink, (const char *target, const char *path), (target, path), (const char *, const char *),
     at_path(SYMLINK, AT_FDCWD, path))
CALL(int, symlinkat, (const char *target, int at, const char *path), (target, at, path),
     (const char *, int, const char *), at_path(SYMLINK, at, path))
CALL(int, unlink, (const char *path), (path), (const char *), at_path(UNLINK, AT_FDCWD, path))
CALL(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), (int, const char *, int),
     at_path(flags & AT_REMOVEDIR ? RMDIR : UNLINK, at, path))
CALL(int, rmdir, (const char *path), (path), (const char *), at_path(RMDIR, AT_FDCWD, path))
CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), (const char *, mode_t), at_path(MKDIR, AT_FDCWD, path))
CALL(int, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), (int, const char *, mode_t),
     at_path(MKDIR, at, path))

/* These two return the error. */
#define ALLOCATING(name, offset) \
    int name(int fd, offset at, offset n) { \
        static int (*real)(int, offset, offset); \
        if (!real) \
            real = (int (*)(int, offset, offset))dlsym(RTLD_NEXT, #name); \
        return at_descriptor(ALLOCATE, fd) == ERROR ? errno : real(fd, at, n); \
    }
ALLOCATING(posix_fallocate, off_t)
ALLOCATING(posix_fallocate64, off64_t)

/* An open counts if it may make a file, or empty one. */
#define OPENING(name, parameters, arguments, types, at) \
    int name parameters { \
        static int(*real) types; \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list more; \
            va_start(more, flags); \
            mode = va_arg(more, mode_t); \
            va_end(more); \
        } \
        if (!real) \
            real = (int(*) types)dlsym(RTLD_NEXT, #name); \
        if (flags & (O_CREAT | O_TRUNC) && at_path(CREATE, at, path) == ERROR) \
            return -1; \
        return real arguments; \
    }
OPENING(open, (const char *path, int flags, ...), (path, flags, mode), (const char *, int, ...), AT_FDCWD)
OPENING(open64, (const char *path, int flags, ...), (path, flags, mode), (const char *, int, ...), AT_FDCWD)
OPENING(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode), (int, const char *, int, ...), at)
OPENING(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode), (int, const char *, int, ...), at)
CALL(int, creat, (const char *path, mode_t mode), (path, mode), (const char *, mode_t),
     at_path(CREATE, AT_FDCWD, path))
CALL(int, creat64, (const char *path, mode_t mode), (path, mode), (const char *, mode_t),
     at_path(CREATE, AT_FDCWD, path))
