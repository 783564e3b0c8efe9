/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IPv6's control traffic of a link: neighbour discovery and multicast membership. No policy is asked about it, so a pod may
 * say exactly what a host has to say, about itself. */
#ifndef NN_NEIGHBOUR_H
#define NN_NEIGHBOUR_H

#include "link.h"

#define NN_ICMPV6_MLD_QUERY 130
#define NN_ICMPV6_MLD_DONE 132
#define NN_ICMPV6_MLD2_REPORT 143
#define NN_ND_ROUTER_SOLICITATION 133
#define NN_ND_ROUTER_ADVERTISEMENT 134
#define NN_ND_NEIGHBOUR_SOLICITATION 135
#define NN_ND_NEIGHBOUR_ADVERTISEMENT 136
#define NN_ND_REDIRECT 137
#define NN_ND_TARGET_OFFSET 8
#define NN_ND_NEIGHBOUR_SIZE 24 /* bytes before the options */
#define NN_ND_SOLICITATION_SIZE 8 /* a router's */
#define NN_ND_OPTION 8 /* bytes of each that a host has to send */
#define NN_ND_OPTIONS_MAX 2
#define NN_ND_SOURCE_MAC 1
#define NN_ND_TARGET_MAC 2
#define NN_ND_NONCE 14 /* RFC 7527 */
#define NN_ND_HOP_LIMIT 255
#define NN_MLD_HOP_LIMIT 1
#define NN_MLD_EXTENSION 8 /* bytes: the router alert */
#define NN_IGMP_QUERY 0x11

/* Who holds a link-local address that does not follow from its MAC -> the interface's index. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct nn_addr);
	__type(value, __u32);
} nn_claim SEC(".maps");

/* ff00::/8 */
NN_INLINE int nn_addr_is_multicast(const struct nn_addr *addr)
{
	return addr->byte[0] == 0xff;
}

/* Neighbour discovery that cannot have crossed a router (RFC 4861, 6980), to somebody on the link. */
NN_INLINE int nn_is_neighbour_discovery(const struct nn_packet *packet)
{
	const struct nn_addr *daddr = &packet->tuple.daddr;

	if (packet->icmp_type < NN_ND_ROUTER_SOLICITATION || packet->icmp_type > NN_ND_REDIRECT)
		return 0;
	if (packet->hop_limit != NN_ND_HOP_LIMIT || packet->icmp_code != 0)
		return 0;
	return nn_addr_is_multicast(daddr) || nn_addr_is_link_local(daddr) || nn_endpoint_lookup(daddr) ||
	       nn_identity_of(daddr) == NN_IDENTITY_HOST;
}

/* Multicast membership (RFC 2710, 3810): one hop, from a link-local or no address, to a group. */
NN_INLINE int nn_is_multicast_membership(const struct nn_packet *packet)
{
	const struct nn_tuple *tuple = &packet->tuple;
	__u8 type = packet->icmp_type;

	if ((type < NN_ICMPV6_MLD_QUERY || type > NN_ICMPV6_MLD_DONE) && type != NN_ICMPV6_MLD2_REPORT)
		return 0;
	return packet->hop_limit == NN_MLD_HOP_LIMIT && nn_addr_is_multicast(&tuple->daddr) &&
	       (nn_addr_is_link_local(&tuple->saddr) || nn_addr_is_zero(&tuple->saddr));
}

/* What a link needs to work, and no policy can speak of. Everything else that looks like it is judged as any packet. */
NN_INLINE int nn_is_link_control(const struct nn_packet *packet)
{
	if (packet->ip_version != 6 || packet->tuple.protocol != IPPROTO_ICMPV6 || packet->later_fragment)
		return 0;
	return nn_is_neighbour_discovery(packet) || nn_is_multicast_membership(packet);
}

/* Routers advertise, redirect and query; fragments of such messages are forbidden (RFC 6980). */
NN_INLINE int nn_is_forbidden_control(const struct nn_packet *packet)
{
	return packet->icmp_type == NN_ND_ROUTER_ADVERTISEMENT || packet->icmp_type == NN_ND_REDIRECT ||
	       packet->fragment_start != 0;
}

/* IPv4's query of multicast membership (RFC 2236, 3376): a switch, and so the bridge, takes its sender for a router. */
NN_INLINE int nn_is_igmp_query(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	__u8 type;

	if (packet->tuple.protocol != IPPROTO_IGMP || packet->ip_version != 4 || packet->later_fragment)
		return 0;
	return bpf_skb_load_bytes(ctx, packet->offset, &type, sizeof(type)) < 0 || type == NN_IGMP_QUERY;
}

/* RFC 4291, 2.5.6 and appendix A: fe80::/64 and an interface identifier with ff:fe in its middle. */
NN_INLINE int nn_is_of_mac(const struct nn_addr *addr)
{
	return addr->byte[11] == 0xff && addr->byte[12] == 0xfe;
}

NN_INLINE int nn_follows_from_mac(const struct nn_addr *addr, const __u8 *mac)
{
	return addr->byte[8] == (mac[0] ^ 2) && addr->byte[9] == mac[1] && addr->byte[10] == mac[2] &&
	       addr->byte[13] == mac[3] && addr->byte[14] == mac[4] && addr->byte[15] == mac[5];
}

/* Does the pod behind this interface, which is there still, hold the address? */
NN_INLINE int nn_holds(__u32 ifindex, const struct nn_addr *addr)
{
	struct nn_port_entry *port = bpf_map_lookup_elem(&nn_port, &ifindex);
	struct nn_endpoint_entry *endpoint;

	if (!port || !nn_addr_equal(&port->link_local, addr))
		return 0;
	endpoint = nn_endpoint_lookup(&port->addr);
	return endpoint && endpoint->ifindex == ifindex;
}

/* May the pod say that it has this link-local address? The one that follows from its MAC is its own, as no other of that form is. An
 * address of another form (RFC 7217, 8981) is its own once it has named it, as long as it names no other one and is
 * there, unless another pod or the node has it. One at a time, so that no pod can push the others' out of the table. */
NN_INLINE int nn_check_claim(struct __sk_buff *ctx, const struct nn_addr *addr)
{
	__u32 ifindex = ctx->ifindex, *holder;
	struct nn_port_entry *port;
	struct nn_addr claimed = *addr;
	int result = nn_check_port(ctx);

	if (result < 0)
		return result;
	port = bpf_map_lookup_elem(&nn_port, &ifindex);
	if (!port)
		return NN_DROP_ENDPOINT_NOT_READY;
	if (claimed.word[0] != bpf_htonl(0xfe800000) || claimed.word[1] != 0)
		return NN_DROP_INVALID_SOURCE_IP;
	if (nn_is_of_mac(&claimed))
		return nn_follows_from_mac(&claimed, port->mac) ? 0 : NN_DROP_INVALID_SOURCE_IP;
	if (nn_identity_of(&claimed) == NN_IDENTITY_HOST)
		return NN_DROP_INVALID_SOURCE_IP;
	holder = bpf_map_lookup_elem(&nn_claim, &claimed);
	if (holder && *holder == ifindex && nn_addr_equal(&port->link_local, &claimed))
		return 0;
	if (holder && *holder != ifindex && nn_holds(*holder, &claimed))
		return NN_DROP_INVALID_SOURCE_IP;
	if (holder)
		bpf_map_delete_elem(&nn_claim, &claimed);
	if (bpf_map_update_elem(&nn_claim, &claimed, &ifindex, BPF_NOEXIST) < 0)
		return NN_DROP_INVALID_SOURCE_IP;
	if (!nn_addr_is_zero(&port->link_local))
		bpf_map_delete_elem(&nn_claim, &port->link_local);
	port->link_local = claimed;
	return 0;
}

/* The address that a neighbour's message is about. A solicitation from somewhere asks; one from the unspecified address is
 * RFC 4862's detection of duplicates, and claims as an advertisement does. */
NN_INLINE int nn_check_target(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	struct nn_addr target;
	int result;

	if (packet->offset + NN_ND_NEIGHBOUR_SIZE > packet->end ||
	    bpf_skb_load_bytes(ctx, packet->offset + NN_ND_TARGET_OFFSET, &target, sizeof(target)) < 0)
		return NN_DROP_INVALID_PACKET;
	if (nn_speaker(ctx, &target))
		return 0;
	if (packet->icmp_type == NN_ND_NEIGHBOUR_SOLICITATION && !nn_addr_is_zero(&packet->tuple.saddr))
		return 0;
	if (nn_addr_is_link_local(&target))
		return nn_check_claim(ctx, &target);
	result = packet->icmp_type == NN_ND_NEIGHBOUR_SOLICITATION ? nn_check_port(ctx) : 0;
	return result < 0 ? result : NN_DROP_INVALID_SOURCE_IP;
}

/* A host's options: its MAC, which is the frame's, and a nonce. Whatever else is there is not for its neighbours. */
NN_INLINE int nn_check_options(struct __sk_buff *ctx, const struct nn_packet *packet, __u32 fixed)
{
	__u32 at = packet->offset + fixed;
	struct {
		__u8 type;
		__u8 length; /* in 8 bytes */
		__u8 mac[ETH_ALEN];
	} option;

#pragma unroll
	for (int i = 0; i < NN_ND_OPTIONS_MAX; i++) {
		if (at == packet->end)
			return 0;
		if (at + NN_ND_OPTION > packet->end || bpf_skb_load_bytes(ctx, at, &option, sizeof(option)) < 0)
			return NN_DROP_INVALID_PACKET;
		if (option.length != 1)
			return NN_DROP_FORBIDDEN_ICMPV6;
		if (option.type == NN_ND_SOURCE_MAC || option.type == NN_ND_TARGET_MAC) {
			if (!nn_has_mac(ctx, offsetof(struct ethhdr, h_source), option.mac))
				return NN_DROP_INVALID_SOURCE_IP;
		} else if (option.type != NN_ND_NONCE) {
			return NN_DROP_FORBIDDEN_ICMPV6;
		}
		at += NN_ND_OPTION;
	}
	return at == packet->end ? 0 : NN_DROP_INVALID_PACKET;
}

NN_INLINE int nn_check_control_source(struct __sk_buff *ctx, const struct nn_addr *saddr)
{
	if (nn_addr_is_zero(saddr))
		return nn_check_port(ctx);
	if (nn_addr_is_link_local(saddr))
		return nn_check_claim(ctx, saddr);
	return nn_speaker(ctx, saddr) ? 0 : NN_DROP_INVALID_SOURCE_IP;
}

/* Link control from a pod: for itself alone, and never as a router. It may have link-local or unspecified sources, which
 * nothing else may have: then the frame's MAC is the pod's all the same, or the bridge would learn another pod's port from
 * it. What is asked or told about the pod's own address proves the MAC by itself, so the target comes first. */
NN_GLOBAL int nn_check_link_control(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	const struct nn_packet *packet;
	int is_discovery, is_neighbours, result;
	__u32 headers;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	packet = &context->packet;
	if (nn_is_forbidden_control(packet) || packet->icmp_type == NN_ICMPV6_MLD_QUERY)
		return NN_DROP_FORBIDDEN_ICMPV6;
	is_discovery = packet->icmp_type >= NN_ND_ROUTER_SOLICITATION && packet->icmp_type <= NN_ND_REDIRECT;
	is_neighbours = packet->icmp_type == NN_ND_NEIGHBOUR_ADVERTISEMENT ||
			packet->icmp_type == NN_ND_NEIGHBOUR_SOLICITATION;
	/* Nothing in front of the message but the router alert, and nothing behind the packet. */
	headers = ETH_HLEN + NN_IPV6_HEADER + (is_discovery ? 0 : NN_MLD_EXTENSION);
	if (packet->offset > headers || packet->end != ctx->len)
		return NN_DROP_INVALID_PACKET;
	result = is_neighbours ? nn_check_target(ctx, packet) : 0;
	if (result < 0)
		return result;
	result = nn_check_control_source(ctx, &packet->tuple.saddr);
	if (result < 0 || !is_discovery)
		return result;
	return nn_check_options(ctx, packet, is_neighbours ? NN_ND_NEIGHBOUR_SIZE : NN_ND_SOLICITATION_SIZE);
}

#endif
