/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Chooses the backend for the datagrams of a socket, and remembers the choice per socket. */
#ifndef NN_SOCK_LB_H
#define NN_SOCK_LB_H

#include "lb.h"

#define NN_CHOICES 4
/* In place of a backend's number: translate each datagram (service.h). */
#define NN_LB_BY_PACKET 0
/* Returned by nn_lb_choose_for_socket: the datagram keeps the Service's address until it leaves the pod (service.h). */
#define NN_LB_LEAVE 2

/* (socket, frontend) -> backend_id, or NN_LB_BY_PACKET: see nn_lb_choose_for_socket. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct nn_sock_revnat_key);
	__type(value, __u32);
} nn_sock_choice SEC(".maps");

/* True if the socket is in a pod. The node's own sockets have no interface with our programs, so their datagrams cannot
 * be translated per packet. */
NN_INLINE int nn_sock_is_in_pod(struct bpf_sock_addr *ctx)
{
	return nn_config.netns_cookie && bpf_get_netns_cookie(ctx) != nn_config.netns_cookie;
}

/* Choose a backend that this socket does not use for another Service: recvmsg() only shows the backend, so replies of
 * two Services that share it cannot be told apart. If all backends that were tried are in use, take the last one and
 * set `shared`. Returns as nn_lb_choose does. */
NN_INLINE int nn_lb_choose_unshared(__u64 cookie, const struct nn_addr *addr, __be16 port, __u8 protocol,
				 struct nn_lb_choice *choice, int *shared)
{
	__u32 number = bpf_get_prandom_u32();
	__u32 other;
	int result = 0;

#pragma unroll
	for (int i = 0; i < NN_CHOICES; i++) {
		result = nn_lb_choose(addr, port, protocol, number + i, choice);
		if (result <= 0)
			return result;
		other = nn_sock_revnat_index(cookie, &choice->backend.addr, choice->backend.port, protocol);
		*shared = other && other != choice->rev_nat_index;
		if (!*shared)
			break;
	}
	return result;
}

/* Datagrams of one unconnected socket keep their backend while the Service has it, as with conntrack under kube-proxy:
 * a QUIC or DTLS client that uses sendto() must not change its peer when a Service is scaled. If the socket already
 * uses the backend for another Service, the datagrams of a pod are translated per packet at its interface, where
 * replies can be told apart. Returns as nn_lb_choose does, or NN_LB_LEAVE. */
NN_INLINE int nn_lb_choose_for_socket(struct bpf_sock_addr *ctx, __u64 cookie, const struct nn_addr *addr, __be16 port,
				      struct nn_lb_choice *choice)
{
	__u8 protocol = ctx->protocol;
	struct nn_frontend_key master_key = { .addr = *addr, .port = port, .protocol = protocol };
	struct nn_frontend_entry *master = bpf_map_lookup_elem(&nn_frontend, &master_key);
	struct nn_backend_entry *member;
	struct nn_sock_revnat_key key;
	int result, shared = 0;
	__u32 *held;

	nn_sock_revnat_key_of(&key, cookie, addr, port, protocol);
	held = master && master->count ? bpf_map_lookup_elem(&nn_sock_choice, &key) : 0;
	if (held && *held == NN_LB_BY_PACKET)
		return NN_LB_LEAVE;
	member = held ? nn_lb_member(master->rev_nat_index, *held) : 0;
	if (member) {
		choice->backend = *member;
		choice->backend_id = *held;
		choice->rev_nat_index = master->rev_nat_index;
		return 1;
	}
	result = nn_lb_choose_unshared(cookie, addr, port, protocol, choice, &shared);
	if (result <= 0)
		return result;
	if (shared && nn_sock_is_in_pod(ctx)) {
		choice->backend_id = NN_LB_BY_PACKET;
		result = NN_LB_LEAVE;
	}
	bpf_map_update_elem(&nn_sock_choice, &key, &choice->backend_id, BPF_ANY);
	return result;
}

/* A UDP socket now calls an address directly that it previously used as the backend of a Service: replies from there no
 * longer belong to the Service. TCP sockets connect only once. */
NN_INLINE void nn_sock_revnat_delete(__u64 cookie, const struct nn_addr *addr, __be16 port, __u8 protocol)
{
	struct nn_sock_revnat_key key;

	if (protocol != IPPROTO_UDP)
		return;
	nn_sock_revnat_key_of(&key, cookie, addr, port, protocol);
	if (bpf_map_lookup_elem(&nn_sock_revnat, &key))
		bpf_map_delete_elem(&nn_sock_revnat, &key);
}

#endif
