/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Was a TCP socket accepted, or did it connect? The kernel notes in an accepted one the interface by which its SYN came, where
 * other sockets have the interface for multicast: no option sets that of a stream socket. Used where nn_config.kernel_structs
 * is set. */
#ifndef NN_ACCEPTED_H
#define NN_ACCEPTED_H

#include <bpf/bpf_core_read.h>

#include "common.h"

/* Of the kernel's sockets, the members that are read here. The loader finds them in the running kernel (CO-RE). */
struct ipv6_pinfo {
	int mcast_oif;
} __attribute__((preserve_access_index));

struct inet_sock {
	int mc_index;
	struct ipv6_pinfo *pinet6;
} __attribute__((preserve_access_index));

struct inet_connection_sock {
	struct inet_sock icsk_inet;
} __attribute__((preserve_access_index));

struct tcp_sock {
	struct inet_connection_sock inet_conn;
} __attribute__((preserve_access_index));

/* `v4`: its connection is one of IPv4, whatever the socket is. */
NN_INLINE int nn_was_accepted(struct tcp_sock *tcp, int v4)
{
	struct inet_sock *inet = &tcp->inet_conn.icsk_inet;

	return (v4 ? inet->mc_index : inet->pinet6->mcast_oif) != 0;
}

#endif
