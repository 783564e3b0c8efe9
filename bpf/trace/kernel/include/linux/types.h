/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NN_TYPES_H
#define NN_TYPES_H
typedef unsigned char __u8, u8;
typedef unsigned short __u16, u16, __be16, __le16, __sum16;
typedef unsigned int __u32, u32, __be32, __le32, __wsum;
typedef unsigned long long __u64, u64, __be64, __le64, __aligned_u64;
typedef signed char __s8, s8;
typedef short __s16, s16;
typedef int __s32, s32;
typedef long long __s64, s64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef long ssize_t;
typedef int pid_t;
typedef unsigned long uintptr_t;
#define NULL ((void *)0)
#endif
