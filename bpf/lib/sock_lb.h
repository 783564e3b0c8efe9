/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Chooses the backend for the datagrams of a socket, and remembers the choice per socket. */
#ifndef NN_SOCK_LB_H
#define NN_SOCK_LB_H

#include "affinity.h"
#include "lb.h"
#include "sock_service.h"
#include "source_range.h"

#define NN_CHOICES 4
/* In place of a backend's number: translate each datagram (service.h). */
#define NN_LB_BY_PACKET 0
/* Returned by nn_lb_choose_for_socket: the datagram keeps the Service's address until it leaves the pod (service.h). */
#define NN_LB_LEAVE 2

/* Only copied into (abi.h). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct nn_sock_revnat_key);
	__type(value, __u32);
} nn_sock_choice SEC(".maps");

/* connect() chose this backend. If there is no memory, the socket sees the backend's address. */
NN_INLINE void nn_sock_connected(struct bpf_sock *sk, const struct nn_sock_end *backend)
{
	struct nn_sock_end *peer = bpf_sk_storage_get(&nn_sock_peer, sk, 0, 0);

	/* Replaced, not written into: others may read it meanwhile. */
	if (peer && peer->number == backend->number && nn_sock_end_is(peer, &backend->addr, backend->port))
		return;
	if (peer)
		bpf_sk_storage_delete(&nn_sock_peer, sk);
	if (!bpf_sk_storage_get(&nn_sock_peer, sk, (void *)backend, BPF_SK_STORAGE_GET_F_CREATE))
		nn_count_entries(NN_TABLE_SOCK, NN_ENTRY_REFUSED, 1);
}

/* Call it with the lock. Returns 1 if another end was replaced. */
NN_INLINE int nn_sock_put(struct nn_sock_end *ends, __u16 *next, const struct nn_sock_end *new)
{
	struct nn_sock_end *end = nn_sock_end_of(ends, &new->addr, new->port);
	__u64 slot;

	if (end) {
		end->number = new->number;
		return 0;
	}
	slot = *next;
	asm volatile("%0 &= 7" : "+r"(slot)); /* the compiler removes a mask, and old verifiers need it */
	*next = (slot + 1) % NN_SOCK_ENDS;
	end = &ends[slot];
	slot = end->port != 0;
	*end = *new;
	return slot;
}

/* The socket sent a datagram to a Service: `choice` is the frontend with the backend_id, `backend` has the Service's
 * number, or port 0 if the datagram is translated packet by packet. */
NN_INLINE void nn_sock_has_sent(struct bpf_sock *sk, const struct nn_sock_end *choice, const struct nn_sock_end *backend)
{
	struct nn_sock_sent_entry *sent = bpf_sk_storage_get(&nn_sock_sent, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	int replaced = 0;

	if (!sent) {
		nn_count_entries(NN_TABLE_SOCK, NN_ENTRY_REFUSED, 1);
		return;
	}
	bpf_spin_lock(&sent->lock);
	replaced += nn_sock_put(sent->choice, &sent->next_choice, choice);
	if (backend->port)
		replaced += nn_sock_put(sent->service, &sent->next_service, backend);
	bpf_spin_unlock(&sent->lock);
	if (replaced)
		nn_count_entries(NN_TABLE_SOCK, NN_ENTRY_EVICTED, replaced);
}

/* The backend_id of the socket's earlier datagrams to this frontend, or NN_LB_BY_PACKET; negative: none. */
NN_INLINE __s64 nn_sock_chosen(struct bpf_sock *sk, __u64 cookie, const struct nn_addr *addr, __be16 port, __u8 protocol)
{
	struct nn_sock_sent_entry *sent = bpf_sk_storage_get(&nn_sock_sent, sk, 0, 0);
	struct nn_sock_revnat_key key;
	struct nn_sock_end *end;
	__s64 number = -1;
	__u32 *before;

	if (sent) {
		bpf_spin_lock(&sent->lock);
		end = nn_sock_end_of(sent->choice, addr, port);
		if (end)
			number = end->number;
		bpf_spin_unlock(&sent->lock);
		if (number >= 0)
			return number;
	}
	nn_sock_revnat_key_of(&key, cookie, addr, port, protocol);
	before = bpf_map_lookup_elem(&nn_sock_choice, &key);
	return before ? *before : -1;
}

/* True if the socket is in a pod. The node's own sockets have no interface with our programs, so their datagrams cannot
 * be translated per packet. */
NN_INLINE int nn_sock_is_in_pod(struct bpf_sock_addr *ctx)
{
	return nn_config.netns_cookie && bpf_get_netns_cookie(ctx) != nn_config.netns_cookie;
}

/* The same backend for all new flows of this client, if the Service wants that. The client is the pod's address, as in its
 * packets (service.h). All processes of another namespace, and those of the node, are one client. */
NN_INLINE void nn_sock_affinity(struct bpf_sock_addr *ctx, const struct nn_addr *addr, struct nn_lb_choice *choice)
{
	struct nn_affinity_key key = { .affinity_id = choice->affinity_id };
	__u64 cookie = bpf_get_netns_cookie(ctx);
	struct nn_client_entry *pod = bpf_map_lookup_elem(&nn_client, &cookie);

	if (pod) {
		key.client = nn_addr_is_v4(addr) ? pod->v4 : pod->v6;
	} else {
		key.client.word[0] = cookie;
		key.client.word[1] = cookie >> 32;
	}
	nn_affinity_keep(&nn_affinity, &key, choice, nn_now_seconds());
}

/* As nn_source_allowed. The source of a pod's packets is the pod's address. The address of another namespace is not
 * known, so its calls are left to the packets. */
NN_INLINE int nn_sock_source_allowed(struct bpf_sock_addr *ctx, const struct nn_addr *addr,
				     const struct nn_lb_choice *choice)
{
	struct nn_client_entry *pod;
	__u64 cookie;

	if (!(choice->flags & NN_FRONTEND_SOURCE_RANGES))
		return 1;
	cookie = bpf_get_netns_cookie(ctx);
	if (cookie == nn_config.netns_cookie)
		return choice->flags & NN_FRONTEND_ALLOWS_NODE;
	pod = bpf_map_lookup_elem(&nn_client, &cookie);
	return pod && nn_source_allowed(choice, nn_addr_is_v4(addr) ? &pod->v4 : &pod->v6);
}

/* As nn_lb_choose, for a socket. The namespace is only looked up for frontends to which it matters. */
NN_INLINE int nn_lb_choose_in_namespace(struct bpf_sock_addr *ctx, const struct nn_addr *addr, __be16 port,
					__u32 number, struct nn_lb_choice *choice)
{
	int result = nn_lb_choose(addr, port, ctx->protocol, NN_SCOPE_NODE, number, choice);

	if (!(choice->flags & NN_FRONTEND_NODE_ONLY))
		return result;
	return nn_config.netns_cookie && !nn_sock_is_in_pod(ctx) ? result : 0;
}

/* As nn_lb_choose, for a new connection of a socket. */
NN_INLINE int nn_lb_choose_connected(struct bpf_sock_addr *ctx, const struct nn_addr *addr, __be16 port,
				     struct nn_lb_choice *choice)
{
	int result = nn_lb_choose_in_namespace(ctx, addr, port, 0, choice);

	if (!nn_sock_source_allowed(ctx, addr, choice))
		return NN_DROP_NOT_IN_SOURCE_RANGE;
	if (result > 0 && choice->affinity_seconds)
		nn_sock_affinity(ctx, addr, choice);
	return result;
}

/* Choose a backend that this socket does not use for another Service: recvmsg() only shows the backend, so replies of
 * two Services that share it cannot be told apart. If all backends that were tried are in use, take the last one and
 * set `shared`. Returns as nn_lb_choose does. */
NN_INLINE int nn_lb_choose_unshared(struct bpf_sock_addr *ctx, const struct nn_addr *addr, __be16 port,
				    struct nn_lb_choice *choice, int *shared)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	__u8 protocol = ctx->protocol;
	__u32 number = bpf_get_prandom_u32();
	__u32 other;
	int result = 0;

#pragma unroll
	for (int i = 0; i < NN_CHOICES; i++) {
		result = nn_lb_choose_in_namespace(ctx, addr, port, number + i, choice);
		if (i == 0 && !nn_sock_source_allowed(ctx, addr, choice))
			return NN_DROP_NOT_IN_SOURCE_RANGE;
		if (result <= 0)
			return result;
		if (i == 0 && choice->affinity_seconds)
			nn_sock_affinity(ctx, addr, choice);
		other = nn_sock_service(ctx->sk, cookie, &choice->backend.addr, choice->backend.port, protocol);
		*shared = other && other != choice->rev_nat_index;
		/* With session affinity no other backend will do. */
		if (!*shared || choice->affinity_seconds)
			break;
	}
	return result;
}

/* Datagrams of one unconnected socket keep their backend while the Service has it, as with conntrack under kube-proxy:
 * a QUIC or DTLS client that uses sendto() must not change its peer when a Service is scaled. If the socket already
 * uses the backend for another Service, the datagrams of a pod are translated per packet at its interface, where
 * replies can be told apart. Returns as nn_lb_choose does, or NN_LB_LEAVE. */
NN_INLINE int nn_lb_choose_for_socket(struct bpf_sock_addr *ctx, const struct nn_addr *addr, __be16 port,
				      struct nn_lb_choice *choice)
{
	__u8 protocol = ctx->protocol;
	struct nn_frontend_key master_key = { .addr = *addr, .port = port, .protocol = protocol };
	struct nn_frontend_entry *master = bpf_map_lookup_elem(&nn_frontend, &master_key);
	struct nn_backend_entry *member;
	int result, shared = 0;
	__s64 held = -1;

	if (master && master->count)
		held = nn_sock_chosen(ctx->sk, bpf_get_socket_cookie(ctx), addr, port, protocol);
	if (held == NN_LB_BY_PACKET) {
		choice->backend_id = NN_LB_BY_PACKET;
		return NN_LB_LEAVE;
	}
	member = held > 0 ? nn_lb_member(master->rev_nat_index, held) : 0;
	if (member) {
		choice->backend = *member;
		choice->backend_id = held;
		choice->rev_nat_index = master->rev_nat_index;
		return 1;
	}
	result = nn_lb_choose_unshared(ctx, addr, port, choice, &shared);
	if (result <= 0)
		return result;
	if (shared && nn_sock_is_in_pod(ctx)) {
		choice->backend_id = NN_LB_BY_PACKET;
		result = NN_LB_LEAVE;
	}
	return result;
}

/* A UDP socket now calls an address directly that it previously used as the backend of a Service: replies from there no
 * longer belong to the Service. TCP sockets connect only once. */
NN_INLINE void nn_sock_forget(struct bpf_sock_addr *ctx, const struct nn_addr *addr, __be16 port)
{
	struct nn_sock_sent_entry *sent;
	struct nn_sock_revnat_key key;
	struct nn_sock_end *end;

	if (ctx->protocol != IPPROTO_UDP)
		return;
	end = bpf_sk_storage_get(&nn_sock_peer, ctx->sk, 0, 0);
	if (end && nn_sock_end_is(end, addr, port))
		bpf_sk_storage_delete(&nn_sock_peer, ctx->sk);
	sent = bpf_sk_storage_get(&nn_sock_sent, ctx->sk, 0, 0);
	if (sent) {
		bpf_spin_lock(&sent->lock);
		end = nn_sock_end_of(sent->service, addr, port);
		if (end)
			end->port = 0;
		bpf_spin_unlock(&sent->lock);
	}
	nn_sock_revnat_key_of(&key, bpf_get_socket_cookie(ctx), addr, port, ctx->protocol);
	if (bpf_map_lookup_elem(&nn_sock_revnat, &key))
		bpf_map_delete_elem(&nn_sock_revnat, &key);
}

#endif
