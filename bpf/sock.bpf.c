// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Service translation at the socket: connect, sendmsg, and the two calls that show the peer's address. After connect()
 * a flow costs no more than a direct one. AF_INET6 sockets with an IPv4-mapped address pass the v6 hooks and find IPv4
 * Services, because the maps store IPv4 in the same form. */
#include <linux/errno.h>

#include "lib/accepted.h"
#include "lib/events.h"
#include "lib/sock_lb.h"

/* From bits/socket.h: libc's headers do not support this target. */
#define NN_AF_INET 2
#define NN_AF_INET6 10
#define NN_ALLOW 1
#define NN_REFUSE 0

NN_INLINE void nn_sock_event(struct bpf_sock_addr *ctx, const struct nn_addr *daddr, __be16 dport, __u32 rev_nat_index,
			     int reason)
{
	struct nn_event *event;

	if (!reason && !nn_config.trace_events)
		return;
	event = nn_reserve_event(NN_EGRESS);
	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->type = reason ? NN_EVENT_DROP : NN_EVENT_SOCK;
	event->size = sizeof(*event);
	event->reason = reason;
	event->time = bpf_ktime_get_ns();
	event->cookie = bpf_get_netns_cookie(ctx);
	event->daddr = *daddr;
	event->dport = dport;
	event->protocol = ctx->protocol;
	event->direction = NN_EGRESS;
	event->rev_nat_index = rev_nat_index;
	event->ip_version = nn_addr_is_v4(daddr) ? 4 : 6;
	nn_submit_event(event);
}

/* The Service has no backend, or does not serve this port. Sending to an unserved port is refused. connect() of a UDP
 * socket sends nothing and must not fail: resolvers use it to sort addresses (RFC 6724). Packets of such a socket are
 * dropped at the pod's interface. */
NN_INLINE int nn_sock_refuse(struct bpf_sock_addr *ctx, const struct nn_addr *addr, __be16 port, __u32 rev_nat_index,
			     int reason, int datagram)
{
	if (reason == NN_DROP_IS_A_CLUSTERIP && !datagram && ctx->protocol == IPPROTO_UDP)
		return NN_ALLOW;
	nn_count(-reason, NN_EGRESS, 0);
	nn_sock_event(ctx, addr, port, rev_nat_index, reason);
	if (nn_config.refuse_errno)
		bpf_set_retval(-ECONNREFUSED);
	return NN_REFUSE;
}

/* Only other nodes have backends and the traffic policy is Local, or the source is in no range of the Service. kube-proxy
 * drops such a packet without an answer. So do the programs at a pod's interface; the node itself has none there, so its
 * call fails (EPERM). */
NN_INLINE int nn_sock_no_answer(struct bpf_sock_addr *ctx, const struct nn_addr *addr, __be16 port, __u32 rev_nat_index,
				int reason)
{
	if (nn_sock_is_in_pod(ctx))
		return NN_ALLOW;
	/* Without cookies it is not known who calls. */
	if (reason == NN_DROP_NOT_IN_SOURCE_RANGE && !nn_config.netns_cookie)
		return NN_ALLOW;
	nn_count(-reason, NN_EGRESS, 0);
	nn_sock_event(ctx, addr, port, rev_nat_index, reason);
	return NN_REFUSE;
}

/* sendmsg4 also runs for send() on a connected AF_INET6 socket with an IPv4-mapped peer, with the backend as the
 * target. */
NN_INLINE int nn_sock_is_connected(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk && sk->state == BPF_TCP_ESTABLISHED;
}

/* Replace the Service's address and port by the backend's. Returns NN_ALLOW or NN_REFUSE. */
NN_INLINE int nn_sock_forward(struct bpf_sock_addr *ctx, struct nn_addr *addr, __be16 *port, int datagram)
{
	struct nn_sock_end frontend = { .addr = *addr, .port = *port };
	struct nn_sock_end backend = {};
	/* Set, because Linux 5.10 does not see that it is only read if nn_lb_choose has set it. */
	struct nn_lb_choice choice = {};
	int result;

	result = datagram ? nn_lb_choose_for_socket(ctx, addr, *port, &choice) :
			    nn_lb_choose_connected(ctx, addr, *port, &choice);
	if (result == 0) {
		if (!datagram || !nn_sock_is_connected(ctx))
			nn_sock_forget(ctx, addr, *port);
		return NN_ALLOW;
	}
	if (result == NN_DROP_NOT_IN_SOURCE_RANGE || (result < 0 && choice.flags & NN_FRONTEND_ONLY_ELSEWHERE))
		return nn_sock_no_answer(ctx, addr, *port, choice.rev_nat_index, result);
	if (result < 0)
		return nn_sock_refuse(ctx, addr, *port, choice.rev_nat_index, result, datagram);
	frontend.number = choice.backend_id;
	if (result != NN_LB_LEAVE) {
		backend.addr = *addr = choice.backend.addr;
		backend.port = *port = choice.backend.port;
		backend.number = choice.rev_nat_index;
		nn_sock_event(ctx, addr, *port, choice.rev_nat_index, 0);
	}
	if (datagram)
		nn_sock_has_sent(ctx->sk, &frontend, &backend);
	else
		nn_sock_connected(ctx->sk, &backend);
	return NN_ALLOW;
}

/* Replace the backend's address and port by the Service's. Returns 1 if the socket called one. */
NN_INLINE int nn_sock_reverse(struct bpf_sock_addr *ctx, struct nn_addr *addr, __be16 *port)
{
	__u32 index = nn_sock_service(ctx->sk, bpf_get_socket_cookie(ctx), addr, *port, ctx->protocol);
	struct nn_revnat_entry *frontend;

	if (!index)
		return 0;
	frontend = bpf_map_lookup_elem(&nn_revnat, &index);
	if (!frontend)
		return 0;
	*addr = frontend->addr;
	*port = frontend->port;
	return 1;
}

NN_INLINE void nn_sock_read(struct bpf_sock_addr *ctx, struct nn_addr *addr, __be16 *port, int family)
{
	if (family == NN_AF_INET) {
		nn_addr_from_v4(addr, ctx->user_ip4);
	} else {
		addr->word[0] = ctx->user_ip6[0];
		addr->word[1] = ctx->user_ip6[1];
		addr->word[2] = ctx->user_ip6[2];
		addr->word[3] = ctx->user_ip6[3];
	}
	*port = ctx->user_port;
}

NN_INLINE void nn_sock_write(struct bpf_sock_addr *ctx, const struct nn_addr *addr, __be16 port, int family)
{
	if (family == NN_AF_INET) {
		ctx->user_ip4 = addr->word[3];
	} else {
		ctx->user_ip6[0] = addr->word[0];
		ctx->user_ip6[1] = addr->word[1];
		ctx->user_ip6[2] = addr->word[2];
		ctx->user_ip6[3] = addr->word[3];
	}
	ctx->user_port = port;
}

NN_INLINE int nn_sock_out(struct bpf_sock_addr *ctx, int family, int datagram)
{
	struct nn_addr addr;
	__be16 port;
	int result;

	nn_sock_read(ctx, &addr, &port, family);
	result = nn_sock_forward(ctx, &addr, &port, datagram);
	if (result == NN_ALLOW)
		nn_sock_write(ctx, &addr, port, family);
	return result;
}

NN_INLINE int nn_sock_back(struct bpf_sock_addr *ctx, int family)
{
	struct nn_addr addr;
	__be16 port;

	nn_sock_read(ctx, &addr, &port, family);
	if (nn_sock_reverse(ctx, &addr, &port))
		nn_sock_write(ctx, &addr, port, family);
	return NN_ALLOW;
}

/* A socket that was accepted, disconnected and connected again would still look accepted: policy could not tell who
 * opened its connection (pickup.h). Refuse such a connect(). */
NN_INLINE int nn_sock_connect(struct bpf_sock_addr *ctx, int family)
{
	struct tcp_sock *tcp = 0;
	struct nn_addr addr;
	__be16 port;

	if (nn_config.kernel_structs && ctx->protocol == IPPROTO_TCP && ctx->sk)
		tcp = bpf_skc_to_tcp_sock(ctx->sk);
	if (tcp && (nn_was_accepted(tcp, 1) || (family == NN_AF_INET6 && nn_was_accepted(tcp, 0)))) {
		nn_sock_read(ctx, &addr, &port, family);
		return nn_sock_refuse(ctx, &addr, port, 0, NN_DROP_CT_UNKNOWN_STATE, 0);
	}
	return nn_sock_out(ctx, family, 0);
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	return nn_sock_connect(ctx, NN_AF_INET);
}

SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	return nn_sock_connect(ctx, NN_AF_INET6);
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	return nn_sock_out(ctx, NN_AF_INET, 1);
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	return nn_sock_out(ctx, NN_AF_INET6, 1);
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	return nn_sock_back(ctx, NN_AF_INET);
}

SEC("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	return nn_sock_back(ctx, NN_AF_INET6);
}

SEC("cgroup/getpeername4")
int sock_getpeer4(struct bpf_sock_addr *ctx)
{
	return nn_sock_back(ctx, NN_AF_INET);
}

SEC("cgroup/getpeername6")
int sock_getpeer6(struct bpf_sock_addr *ctx)
{
	return nn_sock_back(ctx, NN_AF_INET6);
}

/* Not attached: the agent runs it (BPF_PROG_TEST_RUN) in the network namespace of a connected UDP socket, because user
 * space cannot read what is stored at the socket of another process. Returns the number of the Service that the socket
 * called, or 0. A socket that is bound to a device is found by a packet on that device. */
SEC("tc")
int sock_service(struct __sk_buff *ctx)
{
	struct nn_sock_question question;
	struct bpf_sock_tuple ends = {};
	struct nn_sock_end *peer;
	struct bpf_sock *sk;
	int v4, number = 0;

	if (bpf_skb_load_bytes(ctx, 0, &question, sizeof(question)) < 0)
		return 0;
	v4 = nn_addr_is_v4(&question.local);
	if (v4) {
		ends.ipv4.saddr = question.remote.word[3];
		ends.ipv4.daddr = question.local.word[3];
		ends.ipv4.sport = question.remote_port;
		ends.ipv4.dport = question.local_port;
	} else {
		__builtin_memcpy(ends.ipv6.saddr, &question.remote, sizeof(ends.ipv6.saddr));
		__builtin_memcpy(ends.ipv6.daddr, &question.local, sizeof(ends.ipv6.daddr));
		ends.ipv6.sport = question.remote_port;
		ends.ipv6.dport = question.local_port;
	}
	sk = bpf_sk_lookup_udp(ctx, &ends, v4 ? sizeof(ends.ipv4) : sizeof(ends.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	peer = bpf_sk_storage_get(&nn_sock_peer, sk, 0, 0);
	if (peer && nn_sock_end_is(peer, &question.remote, question.remote_port))
		number = peer->number;
	bpf_sk_release(sk);
	return number;
}

char nn_license[] SEC("license") = "Dual BSD/GPL";
