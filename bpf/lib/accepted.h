/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Tells accepted TCP sockets from connected ones. In an accepted socket the kernel stores the interface on which the
 * SYN arrived, in the field that holds the multicast interface of other sockets. No socket option can set this field on
 * a stream socket. Used only if nn_config.kernel_structs is set. */
#ifndef NN_ACCEPTED_H
#define NN_ACCEPTED_H

#include <bpf/bpf_core_read.h>

#include "common.h"

/* The members of the kernel's socket structs that are read here. The loader finds their offsets in the running kernel
 * (CO-RE). */
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

/* `v4`: the connection uses IPv4, possibly on an AF_INET6 socket. */
NN_INLINE int nn_was_accepted(struct tcp_sock *tcp, int v4)
{
	struct inet_sock *inet = &tcp->inet_conn.icsk_inet;

	return (v4 ? inet->mc_index : inet->pinet6->mcast_oif) != 0;
}

#endif
