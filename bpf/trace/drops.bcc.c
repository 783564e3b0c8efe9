// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Counts packets that the host's network stack drops, by place and reason. Written for BCC. The layout of the trace
 * record differs between kernels, so user space reads it from tracefs and passes the offsets (NN_..._OFFSET). */
struct nn_drop_key {
	u64 location;
	u32 reason;
	u32 protocol;
};

BPF_HASH(nn_drops, struct nn_drop_key, u64, 8192);

int nn_on_drop(void *record)
{
	struct nn_drop_key key = {};

	key.location = *(u64 *)((char *)record + NN_LOCATION_OFFSET);
	key.protocol = *(u16 *)((char *)record + NN_PROTOCOL_OFFSET);
#ifdef NN_REASON_OFFSET
	key.reason = *(u32 *)((char *)record + NN_REASON_OFFSET);
#endif
	nn_drops.increment(key);
	return 0;
}
