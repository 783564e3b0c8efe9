/* SPDX-License-Identifier: Apache-2.0 */
/* The load maker: one request of one byte and its answer, over TCP, timed with CLOCK_MONOTONIC. In C, because Python's
 * own cost per call would hide what is measured.
 *
 *   crr server PORT                            serve until killed; one connection at a time is enough for one client
 *   crr crr ADDRESS PORT COUNT WARMUP          connect, request, response, close: ns per round, one line each
 *   crr rr ADDRESS PORT COUNT WARMUP           one connection, request and response: ns per round
 *
 * Both pin themselves to one CPU when CRR_CPU is set: on one core the scheduler's placement is not part of the result.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
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

static void no_delay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void serve(int port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any };
	int fd = socket(AF_INET6, SOCK_STREAM, 0), one = 1, off = 0;
	char byte;

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)) < 0 || listen(fd, 128) < 0)
		die("listen");
	puts("ready");
	fflush(stdout);
	for (;;) {
		int peer = accept(fd, NULL, NULL);

		if (peer < 0)
			die("accept");
		no_delay(peer);
		while (read(peer, &byte, 1) == 1)
			if (write(peer, &byte, 1) != 1)
				break;
		close(peer);
	}
}

static int dial(const struct addrinfo *target)
{
	int fd = socket(target->ai_family, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket");
	if (connect(fd, target->ai_addr, target->ai_addrlen) < 0)
		die("connect");
	no_delay(fd);
	return fd;
}

static void round_trip(int fd)
{
	char byte = 'x';

	if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
		die("request");
}

static void load(const struct addrinfo *target, int reconnect, long count, long warmup)
{
	uint64_t *samples = calloc(count, sizeof(*samples));
	int fd = reconnect ? -1 : dial(target);

	if (!samples)
		die("memory");
	for (long i = -warmup; i < count; i++) {
		uint64_t start = now();

		if (reconnect)
			fd = dial(target);
		round_trip(fd);
		if (reconnect)
			close(fd);
		if (i >= 0)
			samples[i] = now() - start;
	}
	for (long i = 0; i < count; i++)
		printf("%llu\n", (unsigned long long)samples[i]);
}

int main(int argc, char **argv)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM }, *target;

	pin();
	if (argc == 3 && !strcmp(argv[1], "server")) {
		serve(atoi(argv[2]));
	} else if (argc == 6 && (!strcmp(argv[1], "crr") || !strcmp(argv[1], "rr"))) {
		if (getaddrinfo(argv[2], argv[3], &hints, &target) != 0) {
			fprintf(stderr, "crr: %s port %s: not an address\n", argv[2], argv[3]);
			return 2;
		}
		load(target, !strcmp(argv[1], "crr"), atol(argv[4]), atol(argv[5]));
	} else {
		fprintf(stderr, "usage: crr server PORT | crr crr|rr ADDRESS PORT COUNT WARMUP\n");
		return 2;
	}
	return 0;
}
