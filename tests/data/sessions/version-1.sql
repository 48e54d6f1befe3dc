-- A database of version 1, as sqlite3's iterdump writes it, with its numbers.
PRAGMA application_id = 2003266669;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        session INTEGER NOT NULL REFERENCES sessions(id) DEFERRABLE INITIALLY DEFERRED,
        parent INTEGER REFERENCES messages(id) DEFERRABLE INITIALLY DEFERRED CHECK (parent < id),
        sibling INTEGER NOT NULL,
        role TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('partial', 'complete', 'stopped', 'error', 'interrupted')),
        owner TEXT,
        finish_reason TEXT,
        model TEXT NOT NULL,
        created REAL NOT NULL,
        token_count INTEGER,
        stats TEXT,
        content TEXT NOT NULL
    );
INSERT INTO "messages" VALUES(1,1,NULL,0,'user','complete',NULL,NULL,'',1700000000.5,NULL,NULL,'Why is the sky blue?');
INSERT INTO "messages" VALUES(2,1,1,0,'assistant','complete',NULL,'stop','smollm2',1700000001.0,3,'{"generated_tokens": 3}','Rayleigh scattering.');
INSERT INTO "messages" VALUES(3,1,1,1,'assistant','stopped',NULL,'cancelled','smollm2',1700000050.0,NULL,NULL,'Because of the');
INSERT INTO "messages" VALUES(4,2,NULL,0,'user','complete',NULL,NULL,'',1700000200.0,NULL,NULL,'How long does sourdough rise?');
INSERT INTO "messages" VALUES(5,2,4,0,'assistant','partial','0123456789abcdef',NULL,'smollm2',1700000300.0,NULL,NULL,'About twelve');
CREATE TABLE sessions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        title TEXT NOT NULL,
        named INTEGER NOT NULL DEFAULT 0,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        deleted_at REAL,
        leaf INTEGER REFERENCES messages(id) DEFERRABLE INITIALLY DEFERRED,
        model TEXT NOT NULL,
        settings TEXT NOT NULL,
        system_prompt TEXT NOT NULL,
        draft TEXT NOT NULL DEFAULT ''
    );
INSERT INTO "sessions" VALUES(1,'Why is the sky blue?',0,1700000000.25,1700000100.5,NULL,2,'smollm2','{"temperature": 0.5}','Be brief.','and at night?');
INSERT INTO "sessions" VALUES(2,'Bread',1,1700000200.0,1700000300.0,NULL,5,'smollm2','{}','','');
CREATE TABLE visited (
        parent INTEGER PRIMARY KEY REFERENCES messages(id) ON DELETE CASCADE,
        child INTEGER NOT NULL REFERENCES messages(id) ON DELETE CASCADE
    );
INSERT INTO "visited" VALUES(1,2);
INSERT INTO "visited" VALUES(4,5);
CREATE UNIQUE INDEX messages_place ON messages(session, ifnull(parent, 0), sibling);
CREATE INDEX messages_parent ON messages(parent, sibling);
CREATE INDEX messages_partial ON messages(id) WHERE state = 'partial';
CREATE INDEX sessions_leaf ON sessions(leaf);
CREATE INDEX visited_child ON visited(child);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('sessions',2);
INSERT INTO "sqlite_sequence" VALUES('messages',5);
COMMIT;
