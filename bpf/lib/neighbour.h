/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IPv6 link control traffic: neighbour discovery and multicast membership. Policy is not checked for it, so a pod may
 * send only what a host must send, and only about itself. */
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
#define NN_ND_NEIGHBOUR_SIZE 24 /* bytes, without options */
#define NN_ND_SOLICITATION_SIZE 8 /* bytes of a router solicitation, without options */
#define NN_ND_OPTION 8 /* bytes of each option that a host needs */
#define NN_ND_OPTIONS_MAX 2
#define NN_ND_SOURCE_MAC 1
#define NN_ND_TARGET_MAC 2
#define NN_ND_NONCE 14 /* RFC 7527 */
#define NN_ND_HOP_LIMIT 255
#define NN_MLD_HOP_LIMIT 1
#define NN_MLD_EXTENSION 8 /* bytes: hop-by-hop header with the router alert */
#define NN_IGMP_QUERY 0x11

/* Link-local address that is not derived from its owner's MAC -> the owner's interface index. */
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

/* True for neighbour discovery that has not crossed a router (RFC 4861, 6980) and is sent to a destination on the
 * link. */
NN_INLINE int nn_is_neighbour_discovery(const struct nn_packet *packet)
{
	const struct nn_addr *daddr = &packet->tuple.daddr;

	if (packet->icmp_type < NN_ND_ROUTER_SOLICITATION || packet->icmp_type > NN_ND_REDIRECT)
		return 0;
	if (packet->hop_limit != NN_ND_HOP_LIMIT || packet->icmp_code != 0)
		return 0;
	return nn_addr_is_multicast(daddr) || nn_addr_is_link_local(daddr) || nn_endpoint_lookup(daddr) ||
	       nn_identity_of(daddr, nn_generation()) == NN_IDENTITY_HOST;
}

/* True for multicast membership (RFC 2710, 3810): hop limit 1, from a link-local or the unspecified address, to a
 * multicast group. */
NN_INLINE int nn_is_multicast_membership(const struct nn_packet *packet)
{
	const struct nn_tuple *tuple = &packet->tuple;
	__u8 type = packet->icmp_type;

	if ((type < NN_ICMPV6_MLD_QUERY || type > NN_ICMPV6_MLD_DONE) && type != NN_ICMPV6_MLD2_REPORT)
		return 0;
	return packet->hop_limit == NN_MLD_HOP_LIMIT && nn_addr_is_multicast(&tuple->daddr) &&
	       (nn_addr_is_link_local(&tuple->saddr) || nn_addr_is_zero(&tuple->saddr));
}

/* True for packets that a link needs and that no policy can describe. All similar packets are checked as ordinary
 * packets. */
NN_INLINE int nn_is_link_control(const struct nn_packet *packet)
{
	if (packet->ip_version != 6 || packet->tuple.protocol != IPPROTO_ICMPV6 || packet->later_fragment)
		return 0;
	return nn_is_neighbour_discovery(packet) || nn_is_multicast_membership(packet);
}

/* True for messages that only a router sends (advertisement, redirect), and for fragmented control messages (RFC
 * 6980). */
NN_INLINE int nn_is_forbidden_control(const struct nn_packet *packet)
{
	return packet->icmp_type == NN_ND_ROUTER_ADVERTISEMENT || packet->icmp_type == NN_ND_REDIRECT ||
	       packet->fragment_start != 0;
}

/* True for a multicast membership query of IPv4 (RFC 2236, 3376): a snooping bridge treats its sender as a router. */
NN_INLINE int nn_is_igmp_query(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	__u8 type;

	if (packet->tuple.protocol != IPPROTO_IGMP || packet->ip_version != 4 || packet->later_fragment)
		return 0;
	return bpf_skb_load_bytes(ctx, packet->offset, &type, sizeof(type)) < 0 || type == NN_IGMP_QUERY;
}

/* True for an interface identifier with ff:fe in its middle: the form that is derived from a MAC (RFC 4291, 2.5.6 and
 * appendix A). */
NN_INLINE int nn_is_eui64(const struct nn_addr *addr)
{
	return addr->byte[11] == 0xff && addr->byte[12] == 0xfe;
}

NN_INLINE int nn_is_eui64_of(const struct nn_addr *addr, const __u8 *mac)
{
	return addr->byte[8] == (mac[0] ^ 2) && addr->byte[9] == mac[1] && addr->byte[10] == mac[2] &&
	       addr->byte[13] == mac[3] && addr->byte[14] == mac[4] && addr->byte[15] == mac[5];
}

/* True if the pod on this interface still exists and owns the link-local address. */
NN_INLINE int nn_owns_link_local(__u32 ifindex, const struct nn_addr *addr)
{
	struct nn_port_entry *port = bpf_map_lookup_elem(&nn_port, &ifindex);
	struct nn_endpoint_entry *endpoint;

	if (!port || !nn_addr_equal(&port->link_local, addr))
		return 0;
	endpoint = nn_endpoint_lookup(&port->addr);
	return endpoint && endpoint->ifindex == ifindex;
}

/* Check that the pod may use this link-local address. An address that is derived from a MAC must be derived from the
 * pod's own. A pod may claim one address of another form (RFC 7217, 8981), unless the node or another existing pod has
 * it; a new claim replaces the pod's previous one. The limit of one per pod prevents a pod from evicting the claims of
 * others. */
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
	if (nn_is_eui64(&claimed))
		return nn_is_eui64_of(&claimed, port->mac) ? 0 : NN_DROP_INVALID_SOURCE_IP;
	if (nn_identity_of(&claimed, nn_generation()) == NN_IDENTITY_HOST)
		return NN_DROP_INVALID_SOURCE_IP;
	holder = bpf_map_lookup_elem(&nn_claim, &claimed);
	if (holder && *holder == ifindex && nn_addr_equal(&port->link_local, &claimed))
		return 0;
	if (holder && *holder != ifindex && nn_owns_link_local(*holder, &claimed))
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

/* Check the target address of a neighbour message. A solicitation from an address only asks about its target. A
 * solicitation from the unspecified address is duplicate address detection (RFC 4862), which claims the target as an
 * advertisement does. */
NN_INLINE int nn_check_target(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	struct nn_addr target;
	int result;

	if (packet->offset + NN_ND_NEIGHBOUR_SIZE > packet->end ||
	    bpf_skb_load_bytes(ctx, packet->offset + NN_ND_TARGET_OFFSET, &target, sizeof(target)) < 0)
		return NN_DROP_INVALID_PACKET;
	if (nn_learn_owner(ctx, &target))
		return 0;
	if (packet->icmp_type == NN_ND_NEIGHBOUR_SOLICITATION && !nn_addr_is_zero(&packet->tuple.saddr))
		return 0;
	if (nn_addr_is_link_local(&target))
		return nn_check_claim(ctx, &target);
	result = packet->icmp_type == NN_ND_NEIGHBOUR_SOLICITATION ? nn_check_port(ctx) : 0;
	return result < 0 ? result : NN_DROP_INVALID_SOURCE_IP;
}

/* Check the options of a host: its MAC, which must equal the frame's, and a nonce. All other options are forbidden. */
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
	return nn_learn_owner(ctx, saddr) ? 0 : NN_DROP_INVALID_SOURCE_IP;
}

/* Check link control from a pod: it may describe only the pod itself, and must not come from a router. It may have a
 * link-local or unspecified source, which no other packet may have. The frame's MAC must still be the pod's, or the
 * bridge would learn a wrong port. The target comes first: a message about the pod's own address proves the MAC, and
 * nn_port learns it from there. */
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
	/* Only the router alert may precede the message, and nothing may follow it. */
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
