/*
 * Records what a program does to the files below one folder, in the order in which the kernel has done it. Preloaded
 * into the program (LD_PRELOAD), so that stores are watched as they are built.
 *
 *   REPLIKV_RECORD_ROOT   the folder, an absolute path without symbolic links
 *   REPLIKV_RECORD_LOG    where the recording goes
 *   REPLIKV_RECORD_NOTES  writes to this file are notes: they stand in the recording at their place, and nowhere else
 *   REPLIKV_FAULT_SWITCH  while this file is there, it says which calls fail: "enospc write NAME", "eio sync NAME", and
 *                         "enospc synced-write NAME" for writes that are syncs by themselves
 *
 * An operation: kind, flags, length of the path (u16), zero (u32), inode, offset, length (u64 each), the path, and for
 * writes, notes and renames so many bytes. Numbers are in the machine's order.
 *
 * One lock is held over each call and its entry: the order of entries is the order of effects. Not seen: writes through
 * a shared map (that one was made is recorded), and programs that call the kernel without the C library.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SYNCED_WRITE 1
#define EXPORT __attribute__((visibility("default")))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], notes[PATH_MAX], fault_switch[PATH_MAX];
static size_t root_len;
static int log_fd = -1;

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("REPLIKV_RECORD_ROOT"), *log = getenv("REPLIKV_RECORD_LOG");
    const char *note = getenv("REPLIKV_RECORD_NOTES"), *fault = getenv("REPLIKV_FAULT_SWITCH");
    if (!folder) return;
    snprintf(root, sizeof root, "%s", folder);
    root_len = strlen(root);
    if (note) snprintf(notes, sizeof notes, "%s", note);
    if (fault) snprintf(fault_switch, sizeof fault_switch, "%s", fault);
    if (log) log_fd = syscall(SYS_openat, AT_FDCWD, log, O_CREAT | O_WRONLY | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
    if (log && log_fd < 0) {
        dprintf(2, "recorder: %s cannot be written\n", log);
        _exit(70);
    }
}

/* The program ends while its threads run: none of them may be between a call and its entry, and none begins another. */
__attribute__((destructor)) static void end(void) { pthread_mutex_lock(&lock); }

static void put(const void *bytes, size_t len) {
    const char *at = bytes;
    while (len > 0) {
        long wrote = syscall(SYS_write, log_fd, at, len);
        if (wrote <= 0) {
            dprintf(2, "recorder: the recording cannot be written\n");
            _exit(70);
        }
        at += wrote;
        len -= wrote;
    }
}

static void record(char kind, uint8_t flags, const char *path, uint64_t inode, uint64_t offset, uint64_t len,
                   const void *data) {
    if (log_fd < 0) return;
    struct {
        char kind;
        uint8_t flags;
        uint16_t path_len;
        uint32_t zero;
        uint64_t inode, offset, len;
    } head = {kind, flags, strlen(path), 0, inode, offset, len};
    int saved = errno;
    put(&head, sizeof head);
    put(path, head.path_len);
    if (data) put(data, len);
    errno = saved;
}

static int is_below(const char *path) {
    return root_len > 0 && !strncmp(path, root, root_len) && (path[root_len] == '/' || path[root_len] == 0);
}

/* The path of a file below the folder, relative to it; NULL for everything else. */
static const char *relative(const char *path) {
    if (!is_below(path)) return NULL;
    return path[root_len] == '/' ? path + root_len + 1 : path + root_len;
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long len = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (len < 0) return 0;
    path[len] = 0;
    return 1;
}

static int absolute(int dir, const char *name, char *path) {
    char base[PATH_MAX];
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return 1;
    }
    if (dir == AT_FDCWD) {
        if (syscall(SYS_getcwd, base, sizeof base) < 0) return 0;
    } else if (!path_of(dir, base)) {
        return 0;
    }
    return snprintf(path, PATH_MAX, "%s/%s", base, name) < PATH_MAX;
}

static const char *tracked(int fd, char *path, uint64_t *inode) {
    int saved = errno;
    struct stat stat;
    const char *name = root_len > 0 && path_of(fd, path) ? relative(path) : NULL;
    if (name && fstat(fd, &stat) == 0)
        *inode = stat.st_ino;
    else
        name = NULL;
    errno = saved;
    return name;
}

/* What is to go wrong with this call, if anything: an error number. */
static int fault(const char *call, const char *name) {
    if (!fault_switch[0]) return 0;
    char text[256], error[32], of[32], part[128];
    int saved = errno, fd = syscall(SYS_openat, AT_FDCWD, fault_switch, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        errno = saved;
        return 0;
    }
    long len = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    errno = saved;
    if (len <= 0) return 0;
    text[len] = 0;
    if (sscanf(text, "%31s %31s %127s", error, of, part) != 3 || strcmp(of, call)) return 0;
    if (strcmp(part, "*") && !strstr(name, part)) return 0;
    return !strcmp(error, "enospc") ? ENOSPC : EIO;
}

static uint8_t write_flags(int fd) {
    int saved = errno, flags = fcntl(fd, F_GETFL);
    errno = saved;
    return flags >= 0 && (flags & (O_DSYNC | O_SYNC)) ? SYNCED_WRITE : 0;
}

static ssize_t write_all(int fd, const struct iovec *parts, int count, off_t offset, int at_cursor) {
    char path[PATH_MAX];
    uint64_t inode;
    const char *name = tracked(fd, path, &inode);
    size_t total = 0;
    for (int part = 0; part < count; part++) total += parts[part].iov_len;
    if (!name) {
        if (notes[0] && at_cursor && path_of(fd, path) && !strcmp(path, notes)) {
            pthread_mutex_lock(&lock);
            record('N', 0, "", 0, 0, parts[0].iov_len, parts[0].iov_base);
            pthread_mutex_unlock(&lock);
            return parts[0].iov_len;
        }
        if (at_cursor) return syscall(SYS_writev, fd, parts, count);
        return syscall(SYS_pwritev, fd, parts, count, (unsigned long)offset, 0UL);
    }
    pthread_mutex_lock(&lock);
    int error = fault("write", name);
    if (!error && (write_flags(fd) & SYNCED_WRITE)) error = fault("synced-write", name);
    long wrote;
    if (error) {
        /* As disks fill up: the first part of something long still fits. */
        struct iovec half = {parts[0].iov_base, parts[0].iov_len / 2};
        if (error == ENOSPC && total > 4096 && half.iov_len > 0) {
            wrote = at_cursor ? syscall(SYS_writev, fd, &half, 1)
                              : syscall(SYS_pwritev, fd, &half, 1, (unsigned long)offset, 0UL);
        } else {
            wrote = -1;
            errno = error;
        }
    } else if (at_cursor) {
        wrote = syscall(SYS_writev, fd, parts, count);
    } else {
        wrote = syscall(SYS_pwritev, fd, parts, count, (unsigned long)offset, 0UL);
    }
    if (wrote > 0) {
        if (at_cursor) offset = syscall(SYS_lseek, fd, 0, SEEK_CUR) - wrote;
        size_t left = wrote;
        for (int part = 0; part < count && left > 0; part++) {
            size_t len = parts[part].iov_len < left ? parts[part].iov_len : left;
            if (len > 0) record('W', write_flags(fd), name, inode, offset, len, parts[part].iov_base);
            offset += len;
            left -= len;
        }
    }
    pthread_mutex_unlock(&lock);
    return wrote;
}

EXPORT ssize_t write(int fd, const void *bytes, size_t len) {
    struct iovec part = {(void *)bytes, len};
    return write_all(fd, &part, 1, 0, 1);
}
EXPORT ssize_t writev(int fd, const struct iovec *parts, int count) { return write_all(fd, parts, count, 0, 1); }
EXPORT ssize_t pwrite(int fd, const void *bytes, size_t len, off_t offset) {
    struct iovec part = {(void *)bytes, len};
    return write_all(fd, &part, 1, offset, 0);
}
EXPORT ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t offset) { return pwrite(fd, bytes, len, offset); }
EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return write_all(fd, parts, count, offset, 0);
}
EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return write_all(fd, parts, count, offset, 0);
}

/* Opening makes files and empties them. */
static int open_any(int dir, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    const char *below = root_len > 0 && absolute(dir, name, path) ? relative(path) : NULL;
    if (!below || !(flags & (O_CREAT | O_TRUNC))) return syscall(SYS_openat, dir, name, flags, mode);
    struct stat before, after;
    pthread_mutex_lock(&lock);
    int was_there = fstatat(AT_FDCWD, path, &before, 0) == 0;
    int fd = syscall(SYS_openat, dir, name, flags, mode);
    if (fd >= 0 && fstat(fd, &after) == 0) {
        if (!was_there)
            record('C', 0, below, after.st_ino, 0, 0, NULL);
        else if ((flags & O_TRUNC) && before.st_size > 0)
            record('T', 0, below, after.st_ino, 0, 0, NULL);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE(flags)                                      \
    mode_t mode = 0;                                     \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
        va_list rest;                                    \
        va_start(rest, flags);                           \
        mode = va_arg(rest, int);                        \
        va_end(rest);                                    \
    }

EXPORT int open(const char *name, int flags, ...) {
    MODE(flags)
    return open_any(AT_FDCWD, name, flags, mode);
}
EXPORT int open64(const char *name, int flags, ...) {
    MODE(flags)
    return open_any(AT_FDCWD, name, flags, mode);
}
EXPORT int openat(int dir, const char *name, int flags, ...) {
    MODE(flags)
    return open_any(dir, name, flags, mode);
}
EXPORT int openat64(int dir, const char *name, int flags, ...) {
    MODE(flags)
    return open_any(dir, name, flags, mode);
}
EXPORT int creat(const char *name, mode_t mode) {
    return open_any(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

EXPORT int ftruncate(int fd, off_t size) {
    char path[PATH_MAX];
    uint64_t inode;
    const char *name = tracked(fd, path, &inode);
    if (!name) return syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_ftruncate, fd, size);
    if (done == 0) record('T', 0, name, inode, size, 0, NULL);
    pthread_mutex_unlock(&lock);
    return done;
}
EXPORT int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

EXPORT int fallocate(int fd, int mode, off_t offset, off_t len) {
    char path[PATH_MAX];
    uint64_t inode;
    const char *name = tracked(fd, path, &inode);
    if (!name) return syscall(SYS_fallocate, fd, mode, offset, len);
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_fallocate, fd, mode, offset, len);
    if (done == 0) record(mode == 0 ? 'A' : 'X', 0, mode == 0 ? name : "fallocate", inode, offset + len, 0, NULL);
    pthread_mutex_unlock(&lock);
    return done;
}
EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t len) { return fallocate(fd, mode, offset, len); }
EXPORT int posix_fallocate(int fd, off_t offset, off_t len) { return fallocate(fd, 0, offset, len) ? errno : 0; }
EXPORT int posix_fallocate64(int fd, off64_t offset, off64_t len) { return posix_fallocate(fd, offset, len); }

static int sync_any(int fd, long call) {
    char path[PATH_MAX];
    uint64_t inode;
    const char *name = tracked(fd, path, &inode);
    if (!name) return syscall(call, fd);
    pthread_mutex_lock(&lock);
    int error = fault("sync", name), done = -1;
    if (error)
        errno = error;
    else
        done = syscall(call, fd);
    if (done == 0) record('S', 0, name, inode, 0, 0, NULL);
    pthread_mutex_unlock(&lock);
    return done;
}
EXPORT int fsync(int fd) { return sync_any(fd, SYS_fsync); }
EXPORT int fdatasync(int fd) { return sync_any(fd, SYS_fdatasync); }

/* Starts writing, and may wait for it; promises nothing about the disk's own cache, nor about where the file's blocks
   are to be found. */
EXPORT int sync_file_range(int fd, off64_t offset, off64_t len, unsigned flags) {
    char path[PATH_MAX];
    uint64_t inode;
    const char *name = tracked(fd, path, &inode);
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_sync_file_range, fd, offset, len, flags);
    if (name && done == 0) record('R', 0, name, inode, offset, 0, NULL);
    pthread_mutex_unlock(&lock);
    return done;
}

EXPORT void *mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset) {
    char path[PATH_MAX];
    uint64_t inode;
    const char *name =
        fd >= 0 && (protection & PROT_WRITE) && (flags & MAP_SHARED) ? tracked(fd, path, &inode) : NULL;
    if (name) {
        pthread_mutex_lock(&lock);
        record('P', 0, name, inode, offset, 0, NULL);
        pthread_mutex_unlock(&lock);
    }
    return (void *)syscall(SYS_mmap, at, len, protection, flags, fd, offset);
}
EXPORT void *mmap64(void *at, size_t len, int protection, int flags, int fd, off64_t offset) {
    return mmap(at, len, protection, flags, fd, offset);
}
EXPORT int msync(void *at, size_t len, int flags) {
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_msync, at, len, flags);
    if (root_len > 0) record('Y', 0, "", 0, 0, 0, NULL);
    pthread_mutex_unlock(&lock);
    return done;
}

/* Names. */
static int rename_any(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char from_path[PATH_MAX], to_path[PATH_MAX];
    const char *old = root_len > 0 && absolute(from_dir, from, from_path) ? relative(from_path) : NULL;
    const char *new = root_len > 0 && absolute(to_dir, to, to_path) ? relative(to_path) : NULL;
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    if (done == 0 && (old || new)) {
        if (old && new && flags == 0)
            record('M', 0, old, 0, 0, strlen(new), new);
        else
            record('X', 0, "rename", 0, 0, 0, NULL);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
EXPORT int rename(const char *from, const char *to) { return rename_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
EXPORT int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return rename_any(from_dir, from, to_dir, to, 0);
}
EXPORT int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    return rename_any(from_dir, from, to_dir, to, flags);
}

static int remove_any(int dir, const char *name, int flags) {
    char path[PATH_MAX];
    const char *below = root_len > 0 && absolute(dir, name, path) ? relative(path) : NULL;
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_unlinkat, dir, name, flags);
    if (done == 0 && below) record('U', 0, below, 0, 0, 0, NULL);
    pthread_mutex_unlock(&lock);
    return done;
}
EXPORT int unlink(const char *name) { return remove_any(AT_FDCWD, name, 0); }
EXPORT int rmdir(const char *name) { return remove_any(AT_FDCWD, name, AT_REMOVEDIR); }
EXPORT int unlinkat(int dir, const char *name, int flags) { return remove_any(dir, name, flags); }

static int mkdir_any(int dir, const char *name, mode_t mode) {
    char path[PATH_MAX];
    const char *below = root_len > 0 && absolute(dir, name, path) ? relative(path) : NULL;
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_mkdirat, dir, name, mode);
    if (done == 0 && below) record('K', 0, below, 0, 0, 0, NULL);
    pthread_mutex_unlock(&lock);
    return done;
}
EXPORT int mkdir(const char *name, mode_t mode) { return mkdir_any(AT_FDCWD, name, mode); }
EXPORT int mkdirat(int dir, const char *name, mode_t mode) { return mkdir_any(dir, name, mode); }

/* What would change files in ways that are not recorded: said, so that nobody trusts the recording. */
#define REFUSED(type, name, parameters, call, fd)                 \
    EXPORT type name parameters {                                 \
        char path[PATH_MAX];                                      \
        uint64_t inode;                                           \
        if (tracked(fd, path, &inode)) {                          \
            pthread_mutex_lock(&lock);                            \
            record('X', 0, #name, inode, 0, 0, NULL);             \
            pthread_mutex_unlock(&lock);                          \
        }                                                         \
        return call;                                              \
    }
REFUSED(ssize_t, copy_file_range, (int in, off64_t *in_at, int out, off64_t *out_at, size_t len, unsigned flags),
        syscall(SYS_copy_file_range, in, in_at, out, out_at, len, flags), out)
REFUSED(ssize_t, sendfile64, (int out, int in, off64_t *at, size_t len), syscall(SYS_sendfile, out, in, at, len), out)
REFUSED(ssize_t, splice, (int in, off64_t *in_at, int out, off64_t *out_at, size_t len, unsigned flags),
        syscall(SYS_splice, in, in_at, out, out_at, len, flags), out)
