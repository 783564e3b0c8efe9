/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a socket knows about the Services that it called. It is stored at the socket, so it ends with the socket, and no
 * number of other sockets can evict it. A socket that sends to more than NN_SOCK_ENDS Services without connect() loses
 * what it knew about the first ones. */
#ifndef NN_SOCK_SERVICE_H
#define NN_SOCK_SERVICE_H

#include "events.h"

#define NN_SOCK_ENDS 8

/* A socket that sends datagrams without connect(). */
struct nn_sock_sent_entry {
	struct bpf_spin_lock lock;
	__u16 next_service; /* the slot of `service` that is replaced next */
	__u16 next_choice;
	struct nn_sock_end service[NN_SOCK_ENDS]; /* backend -> rev_nat_index */
	struct nn_sock_end choice[NN_SOCK_ENDS]; /* frontend -> backend_id, or NN_LB_BY_PACKET */
};

/* The backend that connect() chose -> rev_nat_index. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct nn_sock_end);
} nn_sock_peer SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct nn_sock_sent_entry);
} nn_sock_sent SEC(".maps");

/* Only copied into (abi.h). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct nn_sock_revnat_key);
	__type(value, struct nn_sock_revnat_entry);
} nn_sock_revnat SEC(".maps");

NN_INLINE void nn_sock_revnat_key_of(struct nn_sock_revnat_key *key, __u64 cookie, const struct nn_addr *addr,
				     __be16 port, __u8 protocol)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->cookie = cookie;
	key->addr = *addr;
	key->port = port;
	key->protocol = protocol;
}

NN_INLINE int nn_sock_end_is(const struct nn_sock_end *end, const struct nn_addr *addr, __be16 port)
{
	return end->port == port && nn_addr_equal(&end->addr, addr);
}

/* Call it with the lock. */
NN_INLINE struct nn_sock_end *nn_sock_end_of(struct nn_sock_end *ends, const struct nn_addr *addr, __be16 port)
{
#pragma unroll
	for (int i = 0; i < NN_SOCK_ENDS; i++)
		if (nn_sock_end_is(&ends[i], addr, port))
			return &ends[i];
	return 0;
}

/* The Service that a socket called when it got this backend; 0: none. */
NN_INLINE __u32 nn_sock_service(struct bpf_sock *sk, __u64 cookie, const struct nn_addr *backend, __be16 port,
				__u8 protocol)
{
	struct nn_sock_end *peer = bpf_sk_storage_get(&nn_sock_peer, sk, 0, 0);
	struct nn_sock_revnat_entry *before;
	struct nn_sock_sent_entry *sent;
	struct nn_sock_revnat_key key;
	struct nn_sock_end *end;
	__u32 number = 0;

	if (peer && nn_sock_end_is(peer, backend, port))
		return peer->number;
	sent = protocol == IPPROTO_UDP ? bpf_sk_storage_get(&nn_sock_sent, sk, 0, 0) : 0;
	if (sent) {
		bpf_spin_lock(&sent->lock);
		end = nn_sock_end_of(sent->service, backend, port);
		if (end)
			number = end->number;
		bpf_spin_unlock(&sent->lock);
		if (number)
			return number;
	}
	nn_sock_revnat_key_of(&key, cookie, backend, port, protocol);
	before = bpf_map_lookup_elem(&nn_sock_revnat, &key);
	return before ? before->rev_nat_index : 0;
}

NN_GLOBAL int nn_sender_service(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct bpf_sock *sk = ctx->sk;
	struct nn_ct_key *key;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!context || !sk)
		return 0;
	key = &context->key;
	return nn_sock_service(sk, bpf_get_socket_cookie(ctx), &key->remote, key->remote_port, key->protocol);
}

/* The same, of the socket that sent a packet. */
NN_INLINE __u32 nn_packet_service(struct __sk_buff *ctx, struct nn_context *context, const struct nn_ct_key *flow)
{
	context->key = *flow;
	return nn_sender_service(ctx);
}

#endif
