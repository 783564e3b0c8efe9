/* SPDX-License-Identifier: Apache-2.0 */
/* The load generator, timed with CLOCK_MONOTONIC. In C, because Python's cost per call would hide the measured cost.
 *
 *   crr server PORT [TAG]                      TCP and UDP until killed; answers a request of one byte with TAG (or with
 *                                              the byte itself); a first byte 's' makes the connection a sink
 *   crr crr ADDRESS PORT COUNT WARMUP          connect, request, response, close: ns per round, one line each
 *   crr rr ADDRESS PORT COUNT WARMUP           one connection, request and response: ns per round
 *   crr udp ADDRESS PORT COUNT WARMUP          a fresh UDP socket each: first datagram and its answer, ns per round
 *   crr stream ADDRESS PORT SLICES MS          one connection that only sends: bytes per second of each slice of MS
 *   crr until ADDRESS PORT TAG MS              connect again and again; prints "ready" at the first answer, then the
 *                                              CLOCK_MONOTONIC ns at which TAG answered; fails after MS
 *   crr client                                 reads commands from stdin, "crr|rr|udp|stream ADDRESS PORT COUNT WARMUP" (for
 *                                              stream: SLICES MS) or "flush"; answers each with one line: the numbers that
 *                                              the command above prints, and two more: how often it gave the CPU away
 *                                              and how often it was taken from it meanwhile. One process for a whole
 *                                              run of short blocks: starting one would cost more than a block, and leave
 *                                              cold caches
 *   crr flush                                  empty the namespace's conntrack table
 *   crr cost COMMAND ARG...                    runs it, stdin passed on, stdout thrown away; prints what it took: wall ns,
 *                                              CPU us (user and system), largest resident KiB, exit status
 *   crr spin COUNT                             ns of COUNT equal pieces of arithmetic: what the machine itself wavers
 *
 * Environment: CRR_NETNS a namespace file to enter, CRR_CGROUP a cgroup to join, CRR_CPU a CPU to be pinned to (on one
 * core the scheduler's placement is not part of the result), CRR_CALL_SECONDS how long a call may take.
 *
 * Everything but `cost` and `until` runs under SCHED_BATCH, unless it was started under a real-time policy: a process that is woken
 * does not take the CPU from the one that woke it, client and server take turns only where one waits. Under
 * SCHED_OTHER a connection makes two to four context switches, as the scheduler's accounts of the moment have it, and
 * each is worth 5 us: the figures would fall into humps.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Time limit of one call, so that a Service that does not answer cannot block the run for minutes. CRR_CALL_SECONDS
 * replaces it in a virtual machine whose clock jumps to the next timer whenever it waits: there, a limit may end a call
 * too early. */
#define CALL_SECONDS 5
/* Between two attempts of `until`: a hundredth of the time waited so far, within these bounds. So the error of the figure
 * is about one percent, and the attempts neither slow down a slow update nor fill conntrack. */
#define SHORTEST_PAUSE_US 100
#define LONGEST_PAUSE_US 5000

/* Buffer size of a stream's sockets. No kernel's default of net.core.[rw]mem_max is smaller; the kernel doubles it. */
#define STREAM_BUFFER (128 * 1024)

static char buffer[128 * 1024];

static void __attribute__((noreturn)) die(const char *what)
{
	fprintf(stderr, "crr: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void pin(void)
{
	const char *cpu = getenv("CRR_CPU");
	cpu_set_t set;

	if (!cpu)
		return;
	CPU_ZERO(&set);
	CPU_SET(atoi(cpu), &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		die("sched_setaffinity");
}

static void take_turns(void)
{
	struct sched_param none = { 0 };

	/* Lock the program's pages, so that none is read again from its file: during such a read, the clock of a virtual
	 * machine that counts instructions jumps. */
	if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
		die("mlockall");
	if (sched_getscheduler(0) == SCHED_OTHER && sched_setscheduler(0, SCHED_BATCH, &none) < 0)
		die("sched_setscheduler");
}

static void enter(void)
{
	const char *netns = getenv("CRR_NETNS"), *cgroup = getenv("CRR_CGROUP");
	char path[4096];
	int fd;

	if (cgroup) {
		snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1)
			die(path);
		close(fd);
	}
	if (netns) {
		fd = open(netns, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || setns(fd, CLONE_NEWNET) < 0)
			die(netns);
		close(fd);
	}
}

static void no_delay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* Fix the size of a stream's buffers. If they grew, their size would decide how much of it fits into the caches. */
static void fixed_buffer(int fd, int which)
{
	int size = STREAM_BUFFER;

	if (setsockopt(fd, SOL_SOCKET, which, &size, sizeof(size)) < 0)
		die("setsockopt");
}

static int listener(int type, int port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any };
	int fd = socket(AF_INET6, type, 0), one = 1, off = 0;
	char what[64];

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	snprintf(what, sizeof(what), "port %d", port);
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)) < 0)
		die(what);
	if (type == SOCK_STREAM && listen(fd, 128) < 0)
		die(what);
	return fd;
}

/* Answer from the address to which the request was sent: the pod has several, and the kernel would use the first. */
static void answer_datagrams(int fd, const char *tag)
{
	char byte, control[CMSG_SPACE(sizeof(struct in6_pktinfo))] __attribute__((aligned(8)));
	struct iovec data = { .iov_base = &byte, .iov_len = 1 };
	struct sockaddr_in6 peer;
	int one = 1;

	setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof(one));
	for (;;) {
		struct msghdr message = { .msg_name = &peer, .msg_namelen = sizeof(peer), .msg_iov = &data,
					  .msg_iovlen = 1, .msg_control = control,
					  .msg_controllen = sizeof(control) };

		if (recvmsg(fd, &message, 0) != 1)
			continue;
		if (tag)
			byte = *tag;
		sendmsg(fd, &message, 0);
	}
}

static void answer_connection(int peer, const char *tag)
{
	ssize_t got;

	while ((got = read(peer, buffer, sizeof(buffer))) > 0) {
		if (buffer[0] == 's') {
			fixed_buffer(peer, SO_RCVBUF);
			while (read(peer, buffer, sizeof(buffer)) > 0)
				;
			return;
		}
		if (write(peer, tag ? tag : buffer, 1) != 1)
			return;
	}
}

static void serve(int port, const char *tag)
{
	int fd = listener(SOCK_STREAM, port), datagrams = listener(SOCK_DGRAM, port);

	prctl(PR_SET_PDEATHSIG, SIGKILL); /* a benchmark that was killed leaves no server */
	switch (fork()) {
	case -1:
		die("fork");
	case 0:
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		answer_datagrams(datagrams, tag);
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		int peer = accept(fd, NULL, NULL);

		if (peer < 0)
			die("accept");
		no_delay(peer);
		answer_connection(peer, tag);
		close(peer);
	}
}

static int dial(const struct addrinfo *target, int type)
{
	const char *seconds = getenv("CRR_CALL_SECONDS");
	struct timeval limit = { .tv_sec = seconds ? atol(seconds) : CALL_SECONDS };
	int fd = socket(target->ai_family, type, 0);

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(fd, target->ai_addr, target->ai_addrlen) < 0)
		die("connect");
	if (type == SOCK_STREAM)
		no_delay(fd);
	return fd;
}

static char round_trip(int fd)
{
	char byte = 'x';

	if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
		die("request");
	return byte;
}

static void load(const struct addrinfo *target, const char *what, long count, long warmup, char end)
{
	int reconnect = strcmp(what, "rr"), type = strcmp(what, "udp") ? SOCK_STREAM : SOCK_DGRAM;
	uint64_t *samples = calloc(count, sizeof(*samples));
	int fd = reconnect ? -1 : dial(target, type);

	if (!samples)
		die("memory");
	for (long i = -warmup; i < count; i++) {
		uint64_t start = now();

		if (reconnect)
			fd = dial(target, type);
		round_trip(fd);
		if (reconnect)
			close(fd);
		if (i >= 0)
			samples[i] = now() - start;
	}
	if (!reconnect)
		close(fd);
	for (long i = 0; i < count; i++)
		printf("%llu%c", (unsigned long long)samples[i], end);
	free(samples);
}

static void stream(const struct addrinfo *target, long slices, long milliseconds, char separator)
{
	int fd = dial(target, SOCK_STREAM);

	fixed_buffer(fd, SO_SNDBUF);
	memset(buffer, 's', sizeof(buffer));
	for (long i = -1; i < slices; i++) { /* the first slice is the warm-up */
		uint64_t start = now(), bytes = 0, end;

		do {
			ssize_t sent = write(fd, buffer, sizeof(buffer));

			if (sent < 0)
				die("send");
			bytes += sent;
			end = now();
		} while (end - start < (uint64_t)milliseconds * 1000000);
		if (i >= 0)
			printf("%.0f%c", bytes * 1e9 / (end - start), separator);
	}
	close(fd);
}

static void until(const struct addrinfo *target, char tag, long milliseconds)
{
	uint64_t start = now(), limit = start + (uint64_t)milliseconds * 1000000, pause;
	int reported = 0;

	while (now() < limit) {
		int fd = dial(target, SOCK_STREAM);
		char answer = round_trip(fd);

		close(fd);
		if (!reported++) {
			puts("ready");
			fflush(stdout);
		}
		if (answer == tag) {
			printf("%llu\n", (unsigned long long)now());
			return;
		}
		pause = (now() - start) / 100000;
		usleep(pause < SHORTEST_PAUSE_US ? SHORTEST_PAUSE_US :
		       pause > LONGEST_PAUSE_US  ? LONGEST_PAUSE_US :
						   pause);
	}
	errno = ETIMEDOUT;
	die("the expected server did not answer");
}

static void flush(void)
{
	struct {
		struct nlmsghdr head;
		struct nfgenmsg body;
	} request = {
		.head = { .nlmsg_len = sizeof(request), .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK,
			  .nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE },
		.body = { .nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0 },
	};
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
	} answer = { 0 };
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);

	if (fd < 0 || send(fd, &request, sizeof(request), 0) < 0 || recv(fd, &answer, sizeof(answer), 0) < 0)
		die("conntrack over netlink");
	errno = -answer.error.error;
	if (answer.head.nlmsg_type == NLMSG_ERROR && errno)
		die("conntrack flush");
	close(fd);
}

static struct addrinfo *resolve(const char *address, const char *port)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM }, *target;

	if (getaddrinfo(address, port, &hints, &target) == 0)
		return target;
	fprintf(stderr, "crr: %s port %s: not an address\n", address, port);
	exit(2);
}

static void obey(const char *verb, const char *address, const char *port, long first, long second)
{
	struct addrinfo *target;
	struct rusage before, after;

	getrusage(RUSAGE_SELF, &before);
	if (!strcmp(verb, "flush")) {
		flush();
	} else {
		target = resolve(address, port);
		if (!strcmp(verb, "stream"))
			stream(target, first, second, ' ');
		else
			load(target, verb, first, second, ' ');
		freeaddrinfo(target);
	}
	getrusage(RUSAGE_SELF, &after);
	printf("%ld %ld\n", after.ru_nvcsw - before.ru_nvcsw, after.ru_nivcsw - before.ru_nivcsw);
	fflush(stdout);
}

static int client(void)
{
	char line[256], verb[16], address[64], port[16];

	while (fgets(line, sizeof(line), stdin)) {
		long first = 0, second = 0;
		int words = sscanf(line, "%15s %63s %15s %ld %ld", verb, address, port, &first, &second);

		if (words != 5 && !(words == 1 && !strcmp(verb, "flush"))) {
			fprintf(stderr, "crr: not a command: %s", line);
			return 2;
		}
		obey(verb, address, port, first, second);
	}
	return 0;
}

static void spin(long count)
{
	volatile uint64_t value = 1;

	for (long i = 0; i < count; i++) {
		uint64_t start = now();

		for (int j = 0; j < 200000; j++)
			value = value * 6364136223846793005ull + 1442695040888963407ull;
		printf("%llu\n", (unsigned long long)(now() - start));
	}
}

/* Start programs from this small process: the kernel counts memory resident before exec() as the program's. */
static void cost(char **command)
{
	struct rusage usage;
	uint64_t start = now();
	int status;
	pid_t child = fork();

	if (child < 0)
		die("fork");
	if (!child) {
		int null = open("/dev/null", O_WRONLY);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(null, STDOUT_FILENO);
		execvp(command[0], command);
		die(command[0]);
	}
	if (wait4(child, &status, 0, &usage) != child)
		die("wait");
	printf("%llu %lld %ld %d\n", (unsigned long long)(now() - start),
	       (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000ll + usage.ru_utime.tv_usec +
		       usage.ru_stime.tv_usec,
	       usage.ru_maxrss, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static int usage(void)
{
	fprintf(stderr, "usage: crr server PORT [TAG] | client | flush | spin COUNT | cost COMMAND ARG...\n"
			"       | crr|rr|udp ADDRESS PORT COUNT WARMUP\n"
			"       | stream ADDRESS PORT SLICES MS | until ADDRESS PORT TAG MS\n");
	return 2;
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";
	struct addrinfo *target;

	pin();
	enter();
	if (strcmp(verb, "cost") && strcmp(verb, "until")) /* children of `cost` would inherit it; `until` must not wait */
		take_turns();
	if (!strcmp(verb, "client") && argc == 2)
		return client();
	if (!strcmp(verb, "server") && (argc == 3 || argc == 4)) {
		serve(atoi(argv[2]), argc == 4 ? argv[3] : NULL);
		return 0;
	}
	if (!strcmp(verb, "cost") && argc > 2) {
		cost(argv + 2);
		return 0;
	}
	if (!strcmp(verb, "flush") && argc == 2) {
		flush();
		return 0;
	}
	if (!strcmp(verb, "spin") && argc == 3) {
		spin(atol(argv[2]));
		return 0;
	}
	if (argc != 6)
		return usage();
	target = resolve(argv[2], argv[3]);
	if (!strcmp(verb, "crr") || !strcmp(verb, "rr") || !strcmp(verb, "udp"))
		load(target, verb, atol(argv[4]), atol(argv[5]), '\n');
	else if (!strcmp(verb, "stream"))
		stream(target, atol(argv[4]), atol(argv[5]), '\n');
	else if (!strcmp(verb, "until"))
		until(target, argv[4][0], atol(argv[5]));
	else
		return usage();
	return 0;
}
