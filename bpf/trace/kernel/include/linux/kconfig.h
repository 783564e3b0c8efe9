/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest kernel source tree against which BCC compiles a tracing program, for nodes without kernel headers. It
 * holds only what BCC's helpers.h includes, and no kernel structs. */
#define CONFIG_BPF_SYSCALL 1
#define __KERNEL__ 1
