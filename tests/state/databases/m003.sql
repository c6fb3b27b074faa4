BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'mergd','m001_pins_and_requests','2026-11-21 18:04:25.994356+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'mergd','m002_checkpoints','2026-11-21 18:04:25.995402+00:00');
INSERT INTO "_sqlite_migrations" VALUES(3,'mergd','m003_versions','2026-11-21 18:04:25.996725+00:00');
CREATE TABLE "attempts" (
   "id" INTEGER PRIMARY KEY,
   "checkpoint" INTEGER NOT NULL REFERENCES "checkpoints"("id"),
   "started_at" TEXT NOT NULL,
   "outcome" TEXT
) STRICT;
INSERT INTO "attempts" VALUES(1,1,'2026-11-21T18:04:25.999Z','folded');
INSERT INTO "attempts" VALUES(2,2,'2026-11-21T18:04:26.002Z','folded');
CREATE TABLE "checkpoints" (
   "id" INTEGER PRIMARY KEY,
   "source" TEXT NOT NULL,
   "place" TEXT NOT NULL,
   "name" TEXT NOT NULL,
   "fingerprint" TEXT NOT NULL,
   "state" TEXT NOT NULL,
   "since" TEXT NOT NULL,
   "reasons" TEXT NOT NULL,
   "digest" TEXT,
   "order" INTEGER,
   "urgent" INTEGER,
   "duplicate_of" INTEGER REFERENCES "checkpoints"("id")
) STRICT;
INSERT INTO "checkpoints" VALUES(1,'directory','/watch/c1','c1','model.safetensors:1:1:10:1:1','folded','2026-11-21T18:04:26.000Z','[]','0000000000000000000000000000000000000000000000000000000000000001',1,NULL,NULL);
INSERT INTO "checkpoints" VALUES(2,'directory','/watch/c2','c2','model.safetensors:1:2:10:1:1','folded','2026-11-21T18:04:26.002Z','[]','0000000000000000000000000000000000000000000000000000000000000002',2,NULL,NULL);
INSERT INTO "checkpoints" VALUES(3,'directory','/watch/c3','c3','model.safetensors:1:3:10:1:1','refused','2026-11-21T18:04:26.003Z','[{"code": "shape", "found": "(2, 3)", "expected": "(3, 2)", "next_step": "fine-tune the base model"}]',NULL,NULL,NULL,NULL);
CREATE TABLE "moves" (
   "id" INTEGER PRIMARY KEY,
   "from_version" INTEGER REFERENCES "versions"("number"),
   "to_version" INTEGER NOT NULL REFERENCES "versions"("number"),
   "who" TEXT NOT NULL,
   "why" TEXT NOT NULL,
   "at" TEXT NOT NULL
) STRICT;
INSERT INTO "moves" VALUES(1,NULL,1,'mergd run','fold','2026-11-21T18:04:26.000Z');
INSERT INTO "moves" VALUES(2,1,2,'mergd run','fold','2026-11-21T18:04:26.003Z');
CREATE TABLE "pauses" (
   "id" INTEGER PRIMARY KEY,
   "why" TEXT NOT NULL,
   "who" TEXT NOT NULL,
   "at" TEXT NOT NULL,
   "resumed_at" TEXT
) STRICT;
INSERT INTO "pauses" VALUES(1,'a look at it','uid 1000','2026-11-21T18:04:26.004Z',NULL);
CREATE TABLE "pins" (
   "name" TEXT PRIMARY KEY,
   "value" TEXT NOT NULL
) STRICT;
INSERT INTO "pins" VALUES('rule','"opcm"');
INSERT INTO "pins" VALUES('parameters','{"alpha": 0.5}');
INSERT INTO "pins" VALUES('weights','["a.weight", "b.weight"]');
INSERT INTO "pins" VALUES('base_digest','"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"');
CREATE TABLE "requests" (
   "id" INTEGER PRIMARY KEY,
   "verb" TEXT NOT NULL,
   "arguments" TEXT NOT NULL,
   "who" TEXT NOT NULL,
   "at" TEXT NOT NULL,
   "answer" TEXT
) STRICT;
INSERT INTO "requests" VALUES(1,'rollback','{"version": "v1"}','uid 1000','2026-11-21T18:04:26.003Z','done');
CREATE TABLE "tellings" (
   "hook" TEXT,
   "move" INTEGER REFERENCES "moves"("id"),
   "told_at" TEXT,
   PRIMARY KEY ("hook", "move")
) STRICT;
INSERT INTO "tellings" VALUES('webhook',1,NULL);
INSERT INTO "tellings" VALUES('webhook',2,NULL);
CREATE TABLE "versions" (
   "number" INTEGER PRIMARY KEY,
   "parent" INTEGER REFERENCES "versions"("number"),
   "cause" TEXT NOT NULL,
   "checkpoint" INTEGER REFERENCES "checkpoints"("id"),
   "rule" TEXT NOT NULL,
   "folded" INTEGER NOT NULL,
   "shares" REAL,
   "mean_norm" REAL,
   "readout_norm" REAL,
   "scale" REAL NOT NULL,
   "digest" TEXT NOT NULL,
   "created_at" TEXT NOT NULL,
   "seconds" TEXT,
   "bytes_read" INTEGER,
   "bytes_written" INTEGER,
   "slots_kept" INTEGER NOT NULL,
   "model_kept" INTEGER NOT NULL,
   "weights" BLOB
) STRICT;
INSERT INTO "versions" VALUES(1,NULL,'fold',1,'opcm',1,1.0,0.5,0.25,2.0,'0000000000000000000000000000000000000000000000000000000000000001','2026-01-01T00:00:00.000Z','{"folding": 1.25}',10,20,1,1,X'9A9999999999B93F00000000000004400000000000000840000000000000E83F9A9999999999B93F00000000000004400000000000000840000000000000E83F');
INSERT INTO "versions" VALUES(2,1,'fold',2,'opcm',2,2.0,0.5,0.25,2.0,'0000000000000000000000000000000000000000000000000000000000000002','2026-01-02T00:00:00.000Z','{"folding": 1.25}',10,20,1,1,X'9A9999999999C93F00000000000004400000000000000840000000000000E83F9A9999999999C93F00000000000004400000000000000840000000000000E83F');
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX "idx_checkpoints_source_place"
    ON "checkpoints" ("source", "place");
CREATE INDEX "idx_checkpoints_digest"
    ON "checkpoints" ("digest");
CREATE INDEX "idx_checkpoints_state_urgent_order"
    ON "checkpoints" ("state", "urgent", "order");
CREATE INDEX "idx_attempts_checkpoint"
    ON "attempts" ("checkpoint");
CREATE INDEX "idx_versions_checkpoint"
    ON "versions" ("checkpoint");
COMMIT;
