// A clock that a test can set, for one process: CLOCK_REALTIME of the machine plus an offset that changes while it runs.
// Loaded with LD_PRELOAD before libc. The file named by NODENET_CLOCK contains the offsets (clocks.py writes it).
//
// A time namespace has no offset for CLOCK_REALTIME (time_namespaces(7)), and all processes share the machine's clock.
// CLOCK_MONOTONIC remains the machine's: a step of the wall clock does not change it, and eBPF programs use it too.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define STEPS 255

// From `since` (machine's clock) on, this clock is ahead by `offset`. Nanoseconds. Sorted; `count` is written last.
struct step {
	int64_t since, offset;
};
struct clock_file {
	int64_t count;
	int64_t reserved;
	struct step steps[STEPS];
};

static const volatile struct clock_file *file;

__attribute__((constructor)) static void start(void)
{
	const char *path = getenv("NODENET_CLOCK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	void *mapped = mmap(NULL, sizeof(*file), PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (mapped != MAP_FAILED)
		file = mapped;
}

// The time of this clock when the machine's clock was `at`. File times are converted too: a file written before a step
// keeps its old time, as on a machine whose clock was set.
static int64_t shown(int64_t at)
{
	int64_t count = file ? file->count : 0;
	if (count < 0 || count > STEPS)
		return at;
	while (count > 0 && file->steps[count - 1].since > at)
		count--;
	return count ? at + file->steps[count - 1].offset : at;
}

static void move(struct timespec *time)
{
	int64_t now = shown(time->tv_sec * SECOND + time->tv_nsec);
	time->tv_sec = now / SECOND;
	time->tv_nsec = now % SECOND;
}

int clock_gettime(clockid_t id, struct timespec *time)
{
	static __typeof__(&clock_gettime) real;
	if (!real)
		real = (__typeof__(&clock_gettime))dlsym(RTLD_NEXT, "clock_gettime");
	int code = real(id, time);
	if (code == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI))
		move(time);
	return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	(void)zone;
	struct timespec time;
	clock_gettime(CLOCK_REALTIME, &time);
	now->tv_sec = time.tv_sec;
	now->tv_usec = time.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *result)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (result)
		*result = now.tv_sec;
	return now.tv_sec;
}

#define FILE_TIMES(name, parameters, arguments)                                      \
	int name parameters                                                          \
	{                                                                            \
		__typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
		int code = real arguments;                                           \
		if (code == 0) {                                                     \
			move(&found->st_atim);                                       \
			move(&found->st_mtim);                                       \
			move(&found->st_ctim);                                       \
		}                                                                    \
		return code;                                                         \
	}

FILE_TIMES(stat, (const char *restrict path, struct stat *restrict found), (path, found))
FILE_TIMES(lstat, (const char *restrict path, struct stat *restrict found), (path, found))
FILE_TIMES(fstat, (int fd, struct stat *found), (fd, found))
FILE_TIMES(fstatat, (int fd, const char *restrict path, struct stat *restrict found, int flags), (fd, path, found, flags))
FILE_TIMES(stat64, (const char *restrict path, struct stat64 *restrict found), (path, found))
FILE_TIMES(lstat64, (const char *restrict path, struct stat64 *restrict found), (path, found))
FILE_TIMES(fstat64, (int fd, struct stat64 *found), (fd, found))
FILE_TIMES(fstatat64, (int fd, const char *restrict path, struct stat64 *restrict found, int flags), (fd, path, found, flags))
