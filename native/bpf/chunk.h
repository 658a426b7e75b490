/* SPDX-License-Identifier: GPL-2.0-only */
/* Contents on their way to the reader, at most a page at a time. Whoever includes it has said what is before each (struct part). */
#ifndef CRYOSHIM_CHUNK_H
#define CRYOSHIM_CHUNK_H

struct chunk {
	struct part head;
	u8 bytes[PAGE];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct chunk);
} scratch SEC(".maps");

#endif
