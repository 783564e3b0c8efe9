/* SPDX-License-Identifier: Apache-2.0 */
/* A kernel source tree of the smallest size that BCC compiles a tracing program against, for nodes without kernel
 * headers. Only what BCC's own helpers.h includes is here; no structure of the kernel is described. */
#define CONFIG_BPF_SYSCALL 1
#define __KERNEL__ 1
