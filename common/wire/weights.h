// Weight synchronisation: one pull protocol for workers inside the job and pools outside it.
//
// The server (a thread of learner 0) keeps the last k + 1 published versions as immutable byte snapshots and answers
// PULL with CHUNK. A worker pulls all chunks of a version, checks manifest and checksum, and only then replaces what it
// holds.
#ifndef COMMON_WIRE_WEIGHTS_H
#define COMMON_WIRE_WEIGHTS_H

#include "common/model/model.h"
#include "common/wire/message.h"

typedef struct weight_server weight_server_t;
// keep: versions held (staleness + 1).
status_t weight_server_open(const link_options_t *options, const char *bind_endpoint, int keep,
                            weight_server_t **out) STATUS_CHECKED;
void weight_server_close(weight_server_t *server);
// Whether the server still serves; to be called now and then. STATUS_TIMEOUT: its I/O thread has stood still for longer
// than the heartbeat, so that workers lose it; closing it may then hang.
status_t weight_server_check(weight_server_t *server) STATUS_CHECKED;
// Copies the trained tensors of the model as `version` and fills the announcement. The oldest version beyond `keep` is
// dropped.
status_t weight_server_publish(weight_server_t *server, model_t *model, int64_t version,
                               message_weights_t *out) STATUS_CHECKED;
// The snapshot's bytes of a held version (for checkpoints); STATUS_INVALID when it is not held. Valid until the next
// publish.
status_t weight_server_snapshot(weight_server_t *server, int64_t version, const void **bytes,
                                size_t *size) STATUS_CHECKED;
// Publishes bytes saved earlier (resume under staleness > 0). Takes over `bytes` (malloc'd), also on error: a second
// copy would make a resumed run need more memory than a fresh one.
status_t weight_server_restore(weight_server_t *server, model_t *model, int64_t version, void *bytes, size_t size,
                               message_weights_t *out) STATUS_CHECKED;

// Hash of names and shapes, and checksum of values, of the model's trained tensors. Equal on both sides of a sync.
status_t weights_manifest(model_t *model, uint64_t *manifest, uint64_t *checksum, int64_t *bytes) STATUS_CHECKED;
// Pulls the announced version into the model (values, packed forms, version, vision_version). Fails with STATUS_PEER on
// a wrong manifest or checksum and leaves the model as it was; STATUS_TIMEOUT after deadline_s.
status_t weights_pull(const message_weights_t *announced, const link_options_t *options, const char *name,
                      model_t *model, double deadline_s) STATUS_CHECKED;

#endif
