/* Stands between a program and the C library: sees every call that changes what is in one folder, notes it, and before a
 * chosen one ends the process, sends it a signal, or makes it wait; or says from a chosen one on that the disk is full.
 *
 *   SHIM_FOLDER   the folder, as an absolute path without links
 *   SHIM_LOG      a file outside of it: a line "<call> <path in the folder>" for every call
 *   SHIM_AT       such a line: the call that something is done before ...
 *   SHIM_COUNT    ... when it comes for so many times
 *   SHIM_ACTION   kill, term, int, stop (until SIGCONT), wait: what is done; full: from this call on nothing can be written
 *   SHIM_FULL     a part of paths: only these cannot be written once the disk is full
 *
 * The number of the process is PID in paths, so that they are the same in every run.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define SECONDS_TO_WAIT 60

static int count, full;

/* The path of an open file or folder. */
static int path_of(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

/* Puts PID in place of this process's number. */
static void without_process(char *path) {
    char number[32], *at;
    int length = snprintf(number, sizeof number, ".%d-", getpid());
    if (!(at = strstr(path, number))) return;
    char rest[PATH_MAX];
    strcpy(rest, at + length);
    snprintf(at, PATH_MAX - (at - path), ".PID-%s", rest);
}

/* The part of a path that lies in the folder; false where it lies elsewhere. */
static int in_folder(int folder, const char *name, char *found) {
    char path[2 * PATH_MAX];
    const char *root = getenv("SHIM_FOLDER");
    if (!root) return 0;
    if (!name) {
        if (!path_of(folder, path)) return 0;
    } else if (name[0] == '/') {
        snprintf(path, sizeof path, "%s", name);
    } else {
        char base[PATH_MAX];
        if (folder == AT_FDCWD ? !getcwd(base, sizeof base) : !path_of(folder, base)) return 0;
        snprintf(path, sizeof path, "%s/%s", base, name);
    }
    size_t length = strlen(root);
    if (strncmp(path, root, length) || (path[length] && path[length] != '/')) return 0;
    snprintf(found, PATH_MAX, "%s", path[length] ? path + length + 1 : ".");
    without_process(found);
    return 1;
}

static void note(const char *line) {
    const char *log = getenv("SHIM_LOG");
    if (!log) return;
    int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    char text[PATH_MAX + 64];
    int length = snprintf(text, sizeof text, "%s\n", line);
    syscall(SYS_write, file, text, length);
    syscall(SYS_close, file);
}

static void act(const char *action) {
    if (!strcmp(action, "kill")) {
        kill(getpid(), SIGKILL);
        pause();
    }
    if (!strcmp(action, "term")) kill(getpid(), SIGTERM);
    if (!strcmp(action, "int")) kill(getpid(), SIGINT);
    if (!strcmp(action, "stop")) kill(getpid(), SIGSTOP);
    if (!strcmp(action, "wait"))
        for (unsigned left = SECONDS_TO_WAIT; left; left = sleep(left));
    if (!strcmp(action, "full")) __atomic_store_n(&full, 1, __ATOMIC_SEQ_CST);
}

/* Before every call. True where it has to fail, for the disk is full. */
static int before(const char *call, int folder, const char *name) {
    int kept = errno, fails = 0;
    char path[PATH_MAX], line[PATH_MAX + 32];
    if (in_folder(folder, name, path)) {
        snprintf(line, sizeof line, "%s %s", call, path);
        note(line);
        const char *at = getenv("SHIM_AT"), *which = getenv("SHIM_COUNT"), *action = getenv("SHIM_ACTION");
        if (at && !strcmp(line, at) && __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST) == (which ? atoi(which) : 1))
            act(action ? action : "kill");
        const char *only = getenv("SHIM_FULL");
        fails = __atomic_load_n(&full, __ATOMIC_SEQ_CST) && (!only || strstr(path, only));
    }
    errno = kept;
    return fails;
}

static int no_space(void) {
    errno = ENOSPC;
    return -1;
}

#define OPEN(name, before_it, parameters, ...)                                                                          \
    int name parameters {                                                                                               \
        mode_t mode = 0;                                                                                                \
        if (flags & (O_CREAT | __O_TMPFILE)) {                                                                          \
            va_list rest;                                                                                               \
            va_start(rest, flags);                                                                                      \
            mode = va_arg(rest, mode_t);                                                                                \
            va_end(rest);                                                                                               \
        }                                                                                                               \
        if (flags & (O_CREAT | O_TRUNC)) before("create", before_it, path);                                             \
        return REAL(name)(__VA_ARGS__);                                                                                 \
    }

OPEN(open, AT_FDCWD, (const char *path, int flags, ...), path, flags, mode)
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), path, flags, mode)
OPEN(openat, folder, (int folder, const char *path, int flags, ...), folder, path, flags, mode)
OPEN(openat64, folder, (int folder, const char *path, int flags, ...), folder, path, flags, mode)

/* A disk that becomes full takes the first half. */
static size_t room(size_t bytes) {
    static int first = 1;
    return __atomic_exchange_n(&first, 0, __ATOMIC_SEQ_CST) ? bytes / 2 : 0;
}

ssize_t write(int file, const void *bytes, size_t size) {
    if (before("write", file, NULL) && !(size = room(size))) return no_space();
    return REAL(write)(file, bytes, size);
}

ssize_t writev(int file, const struct iovec *parts, int number) {
    if (before("write", file, NULL)) return no_space();
    return REAL(writev)(file, parts, number);
}

ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t at) {
    if (before("write", file, NULL)) return no_space();
    return REAL(pwrite64)(file, bytes, size, at);
}

int ftruncate64(int file, off64_t size) {
    before("truncate", file, NULL);
    return REAL(ftruncate64)(file, size);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    if (before("write", to, NULL)) return no_space();
    return REAL(sendfile64)(to, from, at, size);
}

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size, unsigned flags) {
    if (before("write", to, NULL)) return no_space();
    return REAL(copy_file_range)(from, from_at, to, to_at, size, flags);
}

int fsync(int file) {
    before("sync", file, NULL);
    return REAL(fsync)(file);
}

int fdatasync(int file) {
    before("sync", file, NULL);
    return REAL(fdatasync)(file);
}

int rename(const char *from, const char *to) {
    before("rename", AT_FDCWD, from);
    return REAL(rename)(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    before("rename", from_folder, from);
    return REAL(renameat)(from_folder, from, to_folder, to);
}

int mkdir(const char *path, mode_t mode) {
    before("mkdir", AT_FDCWD, path);
    return REAL(mkdir)(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    before("mkdir", folder, path);
    return REAL(mkdirat)(folder, path, mode);
}

int unlink(const char *path) {
    before("remove", AT_FDCWD, path);
    return REAL(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    before("remove", folder, path);
    return REAL(unlinkat)(folder, path, flags);
}

int rmdir(const char *path) {
    before("remove", AT_FDCWD, path);
    return REAL(rmdir)(path);
}
