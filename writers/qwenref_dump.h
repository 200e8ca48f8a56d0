/* SPDX-License-Identifier: Apache-2.0
 * Dumps an engine's tensors for `engine verify` (qwenref), as one safetensors file. C99 and C++11, no dependencies.
 * In one source file:  #define QWENREF_DUMP_IMPLEMENTATION  before the #include. Then, wherever a stage is in memory:
 *     qwenref_dump_ids("tokens", ids, rows);                          // the ids of this forward pass, once
 *     qwenref_dump("attn_norm", layer, x, rows, columns);             // layer -1: the whole model's (lm_head)
 *     qwenref_dump_any("attn_scores", layer, "F32", s, 3, (size_t[]){heads, rows, keys});
 *     #define QWENREF_DUMP_FACTS "\"dtype\":\"bf16\",\"device\":\"cuda\""  // facts of the run, before the #include
 * Nothing happens unless the environment has QWENREF_DUMP=FILE. A stage that was dumped already begins the next pass.
 * One thread at a time. Between two calls the file is whole, so an engine that dies leaves what it had. */
#ifndef QWENREF_DUMP_H
#define QWENREF_DUMP_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
void qwenref_dump_any(const char *stage, int layer, const char *dtype, const void *x, int axes, const size_t *shape);
void qwenref_dump(const char *stage, int layer, const float *x, size_t rows, size_t columns);
void qwenref_dump_f16(const char *stage, int layer, const void *x, size_t rows, size_t columns);
void qwenref_dump_bf16(const char *stage, int layer, const void *x, size_t rows, size_t columns);
void qwenref_dump_ids(const char *what, const int32_t *ids, size_t count); /* "tokens", "positions" */
#ifdef __cplusplus
}
#endif
#ifdef QWENREF_DUMP_IMPLEMENTATION
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef QWENREF_DUMP_ROOM
#define QWENREF_DUMP_ROOM (4u << 20) /* bytes of header: some 40,000 tensors */
#endif
#ifndef QWENREF_DUMP_FACTS
#define QWENREF_DUMP_FACTS "\"producer\":\"qwenref_dump.h\""
#endif
static struct { FILE *file, *data; char *text; size_t used, bytes; unsigned pass; int off; } qwenref_dump_;
static int qwenref_dump_fails_(const char *why) {
    return fprintf(stderr, "qwenref_dump: %s; nothing more is dumped\n", why), !(qwenref_dump_.off = 1);
}
static int qwenref_dump_opens_(void) {
    const char *path = getenv("QWENREF_DUMP");
    if (qwenref_dump_.off || !path || !*path) return !(qwenref_dump_.off = 1);
    if (qwenref_dump_.data) return 1;
    qwenref_dump_.text = (char *)malloc(QWENREF_DUMP_ROOM + 8), qwenref_dump_.file = fopen(path, "wb");
    if (!qwenref_dump_.text || !qwenref_dump_.file) return qwenref_dump_fails_("cannot make the file");
    memset(qwenref_dump_.text, ' ', QWENREF_DUMP_ROOM + 8);
    for (int i = 0; i < 8; i++) qwenref_dump_.text[i] = (char)((uint64_t)QWENREF_DUMP_ROOM >> 8 * i);
    qwenref_dump_.used = 8 + (size_t)sprintf(qwenref_dump_.text + 8,
        "{\"__metadata__\":{\"format\":\"qwenref-dump-1\"," QWENREF_DUMP_FACTS "}}");
    qwenref_dump_.text[qwenref_dump_.used] = ' ';
    return (fwrite(qwenref_dump_.text, QWENREF_DUMP_ROOM + 8, 1, qwenref_dump_.file) && !fflush(qwenref_dump_.file)
        && (qwenref_dump_.data = fopen(path, "ab"))) || qwenref_dump_fails_("cannot write"); /* "a": no offset of `long` */
}
void qwenref_dump_any(const char *stage, int layer, const char *dtype, const void *x, int axes, const size_t *shape) {
    char pass[32] = "", where[32] = "", key[256], entry[640];
    size_t bytes = (size_t)atoi(dtype + strcspn(dtype, "123456789")) / 8, n; /* of a value: F32, BF16, I64 */
    if (!qwenref_dump_opens_()) return; else if (layer >= 0) sprintf(where, "layer-%d/", layer);
    for (;; qwenref_dump_.pass++) {
        if (qwenref_dump_.pass) sprintf(pass, "phase-%u/", qwenref_dump_.pass);
        if (snprintf(key, sizeof key, "\"%s%s%s\":", pass, where, stage) >= (int)sizeof key || strpbrk(stage, "\"\\"))
            { qwenref_dump_fails_("a stage's name is too long, or has quotes"); return; }
        if (qwenref_dump_.text[qwenref_dump_.used] = 0, !strstr(qwenref_dump_.text + 8, key)) break; /* the end for strstr */
    }
    n = (size_t)sprintf(entry, ",%s{\"dtype\":\"%.8s\",\"shape\":[", key, dtype);
    for (int i = 0; i < axes && i < 8; bytes *= shape[i++]) n += (size_t)sprintf(entry + n, i ? ",%zu" : "%zu", shape[i]);
    n += (size_t)sprintf(entry + n, "],\"data_offsets\":[%zu,%zu]}}", qwenref_dump_.bytes, qwenref_dump_.bytes + bytes);
    if (qwenref_dump_.used + n > QWENREF_DUMP_ROOM) { qwenref_dump_fails_("QWENREF_DUMP_ROOM is full"); return; }
    memcpy(qwenref_dump_.text + qwenref_dump_.used - 1, entry, n + 1);
    if (fwrite(x, 1, bytes, qwenref_dump_.data) != bytes || fflush(qwenref_dump_.data)
        || fseek(qwenref_dump_.file, (long)qwenref_dump_.used - 1, SEEK_SET)
        || fwrite(entry, 1, n, qwenref_dump_.file) != n || fflush(qwenref_dump_.file)) qwenref_dump_fails_("cannot write");
    qwenref_dump_.used += n - 1, qwenref_dump_.bytes += bytes; }
#define QWENREF_DUMP_2_(name, type, dtype) \
    void name(const char *stage, int layer, const type *x, size_t rows, size_t columns) { \
        size_t shape[2]; shape[0] = rows, shape[1] = columns; qwenref_dump_any(stage, layer, dtype, x, 2, shape); }
QWENREF_DUMP_2_(qwenref_dump, float, "F32")
QWENREF_DUMP_2_(qwenref_dump_f16, void, "F16")
QWENREF_DUMP_2_(qwenref_dump_bf16, void, "BF16")
void qwenref_dump_ids(const char *what, const int32_t *ids, size_t count) { qwenref_dump_any(what, -1, "I32", ids, 1, &count); }
#endif
#endif
