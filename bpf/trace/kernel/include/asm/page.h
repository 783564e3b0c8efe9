/* SPDX-License-Identifier: Apache-2.0 */
/* BCC includes this file but needs nothing from it. */
