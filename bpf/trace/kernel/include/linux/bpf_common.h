/* SPDX-License-Identifier: Apache-2.0 */
/* Included by BCC, nothing of it is needed. */
