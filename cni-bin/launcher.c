/* nodenet's CNI plugin, as a runtime calls it. It passes the call to this node's agent. If no agent listens, it
 * executes the standalone program. It runs at each pod start, also on nodes without other software: one static file.
 *
 * The wire format is described in nodenet/cni/protocol.py. The launcher reads three keys of the configuration, with the
 * scanner below. The agent or the standalone program reports all other errors in it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* nodenet/cni/bundle.py defines these: DEFAULT_SOCKET, NEWEST (version), MAX_STDIN, and ALONE, the path of the
 * standalone program relative to the launcher's folder. */
#define CONNECT_SECONDS 5
#define ANSWER_SECONDS 120
#define HEADER 12
#define ODD SIZE_MAX

enum { BAD_ENVIRONMENT = 4, IO_FAILURE = 5, DECODE_FAILURE = 6, BAD_CONFIG = 7, TRY_AGAIN = 11 };

struct bytes {
	char *at;
	size_t len;
};

struct cursor {
	const char *at, *end;
};

/* The keys that are read from the configuration. The last one of a repeated key counts, as in nodenet/cni/conf.py. */
struct config {
	char socket[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char version[16];
	bool bad_socket, require_agent;
};

/* Not used here: `nodenet cni uninstall` searches for this text before it removes a file. */
__attribute__((used)) static const char mark[] = "nodenet's CNI plugin, with " ALONE;

static struct config conf = { .socket = DEFAULT_SOCKET, .version = NEWEST };

/* Returns true if a failed read or write should be repeated: after a signal, or, on a non-blocking descriptor, after
 * waiting until it is ready. The caller of the launcher may have set standard input and output to non-blocking. */
static bool again(int fd, short what)
{
	struct pollfd wanted = { .fd = fd, .events = what };

	return errno == EINTR || (errno == EAGAIN && poll(&wanted, 1, -1) >= 0);
}

static void write_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t done = write(fd, data, len);
		if (done < 0 && !again(fd, POLLOUT))
			exit(1);
		if (done > 0) {
			data += done;
			len -= done;
		}
	}
}

/* Print the error object of the specification and exit. */
__attribute__((noreturn, format(printf, 2, 3))) static void fail(int code, const char *format, ...)
{
	char text[2048], safe[2 * sizeof(text)], out[2 * sizeof(text) + 128];
	size_t used = 0;
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	for (const char *c = text; *c; c++) {
		if (*c == '"' || *c == '\\')
			safe[used++] = '\\';
		safe[used++] = *c < ' ' || *c > '~' ? '?' : *c;
	}
	safe[used] = '\0';
	int len = snprintf(out, sizeof(out), "{\"cniVersion\": \"%s\", \"code\": %d, \"msg\": \"%s\"}", conf.version, code, safe);
	write_all(1, out, len);
	exit(1);
}

/* Read a file up to its end. Returns 0 or an errno. */
static int read_all(int fd, size_t limit, struct bytes *into)
{
	size_t room = 1 << 14;

	*into = (struct bytes){ malloc(room), 0 };
	while (into->at) {
		if (into->len == room)
			into->at = realloc(into->at, room *= 2);
		if (!into->at)
			break;
		ssize_t got = read(fd, into->at + into->len, room - into->len);
		/* On the agent's socket EAGAIN is a timeout. */
		if (got < 0 && (errno == EINTR || (fd == 0 && again(fd, POLLIN))))
			continue;
		if (got <= 0)
			return got ? errno : 0;
		into->len += got;
		if (into->len > limit)
			return EFBIG;
	}
	return ENOMEM;
}

/* --- The scanner: as much of RFC 8259 as the keys of the outermost object need. --------------------------------- */

/* strchr also finds the NUL at the end of its string, so test for a NUL in the input first. */
static bool is_one_of(char c, const char *chars)
{
	return c && strchr(chars, c);
}

static void skip_space(struct cursor *c)
{
	while (c->at < c->end && is_one_of(*c->at, " \t\r\n"))
		c->at++;
}

static bool take(struct cursor *c, char wanted)
{
	skip_space(c);
	if (c->at == c->end || *c->at != wanted)
		return false;
	c->at++;
	return true;
}

/* Four hexadecimal digits, or -1. */
static int hex4(struct cursor *c)
{
	int value = 0;

	for (int i = 0; i < 4; i++, c->at++) {
		if (c->at == c->end)
			return -1;
		char d = *c->at | 0x20;
		if (*c->at >= '0' && *c->at <= '9')
			value = value * 16 + *c->at - '0';
		else if (d >= 'a' && d <= 'f')
			value = value * 16 + d - 'a' + 10;
		else
			return -1;
	}
	return value;
}

static size_t utf8(uint32_t point, char *out)
{
	if (point < 0x80)
		return out[0] = point, 1;
	if (point < 0x800)
		return out[0] = 0xc0 | point >> 6, out[1] = 0x80 | (point & 0x3f), 2;
	if (point < 0x10000)
		return out[0] = 0xe0 | point >> 12, out[1] = 0x80 | (point >> 6 & 0x3f), out[2] = 0x80 | (point & 0x3f), 3;
	out[0] = 0xf0 | point >> 18, out[1] = 0x80 | (point >> 12 & 0x3f);
	return out[2] = 0x80 | (point >> 6 & 0x3f), out[3] = 0x80 | (point & 0x3f), 4;
}

/* Decode an escape sequence into bytes. Returns 0 for a NUL, an unpaired surrogate or an invalid escape: our keys and
 * paths contain none. */
static size_t escape(struct cursor *c, char *out)
{
	static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
	const char *simple;

	if (c->at == c->end)
		return 0;
	char kind = *c->at++;
	if (kind && (simple = strchr(names, kind)))
		return out[0] = values[simple - names], 1;
	if (kind != 'u')
		return 0;
	int high = hex4(c);
	if (high <= 0 || (high >= 0xdc00 && high < 0xe000))
		return 0;
	if (high < 0xd800 || high >= 0xe000)
		return utf8(high, out);
	if (c->end - c->at < 6 || c->at[0] != '\\' || c->at[1] != 'u')
		return 0;
	c->at += 2;
	int low = hex4(c);
	if (low < 0xdc00 || low >= 0xe000)
		return 0;
	return utf8(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00), out);
}

/* Decode a string into `out`, up to `room` bytes. `*len` is its full length, or ODD if it contains an escape that
 * `escape` rejects. If `out` is NULL, only skip the string. */
static bool string(struct cursor *c, char *out, size_t room, size_t *len)
{
	size_t used = 0;
	bool odd = false;

	if (!take(c, '"'))
		return false;
	while (c->at < c->end && *c->at != '"') {
		char part[4] = { *c->at++ };
		size_t count = 1;
		if (part[0] == '\\' && !out) {
			if (c->at == c->end)
				return false;
			c->at++;
		} else if (part[0] == '\\' && !(count = escape(c, part))) {
			odd = true;
		}
		for (size_t i = 0; i < count; i++, used++)
			if (out && used < room)
				out[used] = part[i];
	}
	if (len)
		*len = odd ? ODD : used;
	if (c->at == c->end)
		return false;
	c->at++;
	return true;
}

/* Skip any value: count brackets and skip strings. */
static bool skip_value(struct cursor *c)
{
	long depth = 0;

	do {
		skip_space(c);
		if (c->at == c->end)
			return false;
		if (*c->at == '"') {
			if (!string(c, NULL, 0, NULL))
				return false;
		} else if (*c->at == '{' || *c->at == '[') {
			depth++;
			c->at++;
		} else if (*c->at == '}' || *c->at == ']') {
			if (--depth < 0)
				return false;
			c->at++;
		} else if (*c->at == ',' || *c->at == ':') {
			if (!depth)
				return false;
			c->at++;
		} else {
			/* Anything else: skip at least one character, so that the loop ends. */
			do
				c->at++;
			while (c->at < c->end && !is_one_of(*c->at, ",:]}[{\" \t\r\n"));
		}
	} while (depth);
	return true;
}

static bool read_member(struct cursor *c, struct config *into)
{
	char key[16] = "", text[sizeof(into->socket) + 1] = "";
	size_t key_len = 0, len = 0;

	if (!string(c, key, sizeof(key), &key_len) || !take(c, ':'))
		return false;
	skip_space(c);
	if (key_len == 11 && !memcmp(key, "agentSocket", 11) && c->at < c->end && *c->at == '"') {
		if (!string(c, text, sizeof(text), &len))
			return false;
		/* ODD is larger than any length. */
		into->bad_socket = len >= sizeof(into->socket);
		if (!into->bad_socket) {
			memcpy(into->socket, text, len);
			into->socket[len] = '\0';
		}
		return true;
	}
	if (key_len == 10 && !memcmp(key, "cniVersion", 10) && c->at < c->end && *c->at == '"') {
		if (!string(c, text, sizeof(text), &len))
			return false;
		/* strspn stops at a NUL, so its result differs from `len` then. */
		bool plain = len > 0 && len < sizeof(into->version) && strspn(text, "0123456789.") == len;
		if (plain) {
			memcpy(into->version, text, len);
			into->version[len] = '\0';
		}
		return true;
	}
	if (key_len == 12 && !memcmp(key, "requireAgent", 12))
		into->require_agent = c->end - c->at >= 4 && !memcmp(c->at, "true", 4);
	return skip_value(c);
}

/* Read the three keys of the outermost object. Returns false for text that is not an object or is incomplete; `into` is
 * unchanged then. */
static bool read_config(struct bytes text, struct config *into)
{
	struct cursor c = { text.at, text.at + text.len };
	struct config found = *into;

	if (!take(&c, '{'))
		return false;
	if (!take(&c, '}')) {
		do {
			if (!read_member(&c, &found))
				return false;
		} while (take(&c, ','));
		if (!take(&c, '}'))
			return false;
	}
	*into = found;
	return true;
}

/* --- The agent ---------------------------------------------------------------------------------------------- */

static void set_timeout(int fd, int seconds)
{
	struct timeval limit = { .tv_sec = seconds };

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
}

/* Returns a connected socket, or -1 if no agent listens. */
static int connect_agent(void)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail(IO_FAILURE, "socket: %s", strerror(errno));
	memcpy(to.sun_path, conf.socket, sizeof(to.sun_path));
	set_timeout(fd, CONNECT_SECONDS);
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0) {
		set_timeout(fd, ANSWER_SECONDS);
		return fd;
	}
	if (errno != ENOENT && errno != ECONNREFUSED)
		fail(errno == EAGAIN ? TRY_AGAIN : IO_FAILURE, "agent socket %s: %s", conf.socket, strerror(errno));
	close(fd);
	return -1;
}

static char *put_length(char *at, size_t value)
{
	for (int shift = 24; shift >= 0; shift -= 8)
		*at++ = value >> shift & 0xff;
	return at;
}

static uint32_t get_length(const char *at)
{
	const unsigned char *u = (const unsigned char *)at;

	return (uint32_t)u[0] << 24 | u[1] << 16 | u[2] << 8 | u[3];
}

static struct bytes request(struct bytes text)
{
	extern char **environ;
	size_t pairs = 0;

	for (char **entry = environ; *entry; entry++)
		if (!strncmp(*entry, "CNI_", 4))
			pairs += strlen(*entry) + 1;
	struct bytes message = { malloc(HEADER + pairs + text.len), HEADER + pairs + text.len };
	if (!message.at)
		fail(IO_FAILURE, "out of memory");
	char *at = put_length(memcpy(message.at, "NNC1", 4) + 4, pairs);
	for (char **entry = environ; *entry; entry++)
		if (!strncmp(*entry, "CNI_", 4))
			at = stpcpy(at, *entry) + 1;
	memcpy(put_length(at, text.len), text.at, text.len);
	return message;
}

static int ask(int agent, struct bytes text)
{
	struct bytes message = request(text), answer;

	for (size_t sent = 0; sent < message.len;) {
		ssize_t done = send(agent, message.at + sent, message.len - sent, MSG_NOSIGNAL);
		if (done < 0 && errno != EINTR)
			fail(TRY_AGAIN, "the agent at %s did not take the request: %s", conf.socket, strerror(errno));
		sent += done > 0 ? done : 0;
	}
	int error = read_all(agent, SIZE_MAX, &answer);
	if (error)
		fail(TRY_AGAIN, "the agent at %s did not answer within %d s: %s", conf.socket, ANSWER_SECONDS, strerror(error));
	if (answer.len < HEADER || memcmp(answer.at, "NNR1", 4) || get_length(answer.at + 8) != answer.len - HEADER)
		fail(TRY_AGAIN, "the agent ended before its answer was complete (%zu bytes)", answer.len);
	write_all(1, answer.at + HEADER, answer.len - HEADER);
	return get_length(answer.at + 4);
}

/* --- Without an agent ------------------------------------------------------------------------------------------- */

/* Execute the standalone program, with the same environment and standard input. */
__attribute__((noreturn)) static void alone(struct bytes text, char **argv)
{
	char path[PATH_MAX + sizeof("/" ALONE)];
	ssize_t len = readlink("/proc/self/exe", path, PATH_MAX);

	if (len < 0)
		fail(IO_FAILURE, "/proc/self/exe: %s", strerror(errno));
	while (len && path[len - 1] != '/')
		len--;
	memcpy(path + len, ALONE, sizeof(ALONE));
	int copy = memfd_create("stdin", 0);
	if (copy < 0)
		fail(IO_FAILURE, "memfd_create: %s", strerror(errno));
	write_all(copy, text.at, text.len);
	if (lseek(copy, 0, SEEK_SET) || dup2(copy, 0) < 0)
		fail(IO_FAILURE, "standard input: %s", strerror(errno));
	if (copy)
		close(copy);
	execv(path, argv);
	fail(TRY_AGAIN, "no agent listens at %s, and %s cannot be started: %s", conf.socket, path, strerror(errno));
}

int main(int argc, char **argv)
{
	struct bytes text;
	const char *verb = getenv("CNI_COMMAND");
	int error;

	(void)argc;
	if (!verb && isatty(0))
		fail(BAD_ENVIRONMENT, "CNI_COMMAND: not set: a container runtime starts this, with a configuration on standard input");
	error = read_all(0, MAX_STDIN, &text);
	if (error)
		fail(error == EFBIG ? DECODE_FAILURE : IO_FAILURE, "standard input: %s", strerror(error));
	read_config(text, &conf);
	if (conf.bad_socket)
		fail(BAD_CONFIG, "agentSocket: expected a path of at most %zu bytes without NUL", sizeof(conf.socket) - 1);
	/* The standalone program reports an error for a path that is not absolute. */
	int agent = conf.socket[0] == '/' ? connect_agent() : -1;
	if (agent >= 0)
		return ask(agent, text);
	if (conf.require_agent && verb && !strcmp(verb, "ADD"))
		fail(TRY_AGAIN, "no agent listens at %s, and without it the pod's policies would not be enforced (requireAgent)", conf.socket);
	alone(text, argv);
}
