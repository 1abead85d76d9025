-- One file: the queues of a machine, and the results of their tasks. Times are in milliseconds since
-- the epoch.

CREATE TABLE queues (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  max_priority INTEGER NOT NULL
);

CREATE TABLE messages (
  seq INTEGER PRIMARY KEY,
  queue INTEGER NOT NULL,
  -- The negated priority.
  rank INTEGER NOT NULL,
  -- When a delayed message is due; NULL once it has arrived.
  due INTEGER,
  -- The session that holds the message.
  holder INTEGER,
  handed_out INTEGER NOT NULL DEFAULT 0,
  head BLOB NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX ready ON messages (queue, rank, seq) WHERE due IS NULL AND holder IS NULL;
CREATE INDEX delayed ON messages (queue, due) WHERE due IS NOT NULL;
CREATE INDEX held ON messages (holder) WHERE holder IS NOT NULL;

-- Processes that consume, until their sessions expire.
CREATE TABLE sessions (
  id INTEGER PRIMARY KEY,
  until INTEGER NOT NULL
);
CREATE TABLE consumers (
  token INTEGER PRIMARY KEY AUTOINCREMENT,
  session INTEGER NOT NULL,
  queue INTEGER NOT NULL
);

CREATE TABLE results (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL,
  json BLOB NOT NULL,
  expires INTEGER
);
CREATE INDEX results_by_end ON results (expires) WHERE expires IS NOT NULL;

-- Claimed attempts, crashes, idempotency keys, live workers.
CREATE TABLE marks (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL,
  expires INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX marks_by_end ON marks (expires);

CREATE TABLE revoked (
  id TEXT PRIMARY KEY,
  even_running INTEGER NOT NULL,
  at INTEGER NOT NULL
) WITHOUT ROWID;

-- The data that the runs of a task store (journal and stream), and when they expire.
CREATE TABLE left_by (
  task TEXT PRIMARY KEY,
  expires INTEGER NOT NULL,
  -- The owner of the journal; added to files of older versions, see file.rs.
  digest TEXT
) WITHOUT ROWID;
CREATE INDEX left_by_end ON left_by (expires);
CREATE TABLE steps (
  task TEXT NOT NULL,
  name TEXT NOT NULL,
  entry BLOB NOT NULL,
  PRIMARY KEY (task, name)
) WITHOUT ROWID;
CREATE TABLE entries (
  task TEXT NOT NULL,
  number INTEGER NOT NULL,
  said TEXT NOT NULL,
  scope TEXT NOT NULL,
  run INTEGER NOT NULL,
  json BLOB NOT NULL,
  PRIMARY KEY (task, number)
) WITHOUT ROWID;
-- The row of scope 'digest' has the owner of the stream (execution), and the number before its first
-- entry (written).
CREATE TABLE heads (
  task TEXT NOT NULL,
  scope TEXT NOT NULL,
  run INTEGER NOT NULL,
  execution TEXT NOT NULL,
  written INTEGER NOT NULL,
  PRIMARY KEY (task, scope)
) WITHOUT ROWID;

-- Suspended tasks; see lifecycle/suspension.rs. Lists of ids are joined by blanks. Long columns come
-- last. Not WITHOUT ROWID: a row of more than a quarter of a page would take a page of its own.
CREATE TABLE parks (
  task TEXT PRIMARY KEY,
  v INTEGER NOT NULL,
  number INTEGER NOT NULL,
  waits TEXT NOT NULL,
  -- All requests that the task has made.
  asked TEXT NOT NULL,
  holder TEXT,
  until INTEGER,
  ended INTEGER NOT NULL,
  alarm INTEGER,
  queue TEXT NOT NULL,
  expires INTEGER,
  message TEXT,
  -- The owner of the record; added to files of older versions, see file.rs.
  digest TEXT,
  -- The message in place of `message`, see packed.rs; added to files of older versions.
  packed BLOB,
  -- The delayed wake message, see wakes.rs; added to files of older versions.
  wake_queue INTEGER,
  wake_at INTEGER,
  wake_number INTEGER,
  wake_sent INTEGER
);
CREATE INDEX parks_by_wake ON parks (wake_queue, wake_at) WHERE wake_queue IS NOT NULL;
CREATE INDEX parks_by_end ON parks (expires) WHERE expires IS NOT NULL;

-- Approval requests, and the votes on each; see lifecycle/decision_rules.rs. Votes outlive their request.
CREATE TABLE questions (
  id TEXT PRIMARY KEY,
  digest TEXT NOT NULL,
  deadline INTEGER NOT NULL,
  quorum INTEGER NOT NULL,
  requester TEXT,
  self_approval INTEGER NOT NULL,
  -- Their names, as JSON.
  approvers TEXT NOT NULL,
  editable INTEGER NOT NULL,
  -- The requester has not withdrawn it.
  open INTEGER NOT NULL,
  task TEXT,
  at INTEGER NOT NULL,
  -- The deadline by which it is listed among the open ones.
  listed INTEGER,
  expires INTEGER,
  document TEXT NOT NULL,
  -- Identifies the request; added to files of older versions, see file.rs.
  nonce TEXT
);
CREATE INDEX questions_listed ON questions (listed, id) WHERE listed IS NOT NULL;
CREATE INDEX questions_by_end ON questions (expires) WHERE expires IS NOT NULL;
CREATE TABLE ballots (
  id TEXT PRIMARY KEY,
  digest TEXT NOT NULL,
  -- Pairs of approver and decision, as JSON.
  votes TEXT NOT NULL,
  -- The decision that counts, if there is one.
  decision TEXT,
  choice TEXT,
  by TEXT,
  at INTEGER,
  extended INTEGER,
  warned INTEGER,
  expires INTEGER,
  document TEXT,
  -- The nonce of the request that was voted on; added to files of older versions, see file.rs.
  nonce TEXT
) WITHOUT ROWID;
CREATE INDEX ballots_by_end ON ballots (expires) WHERE expires IS NOT NULL;
-- Resume messages that are not known to be sent.
CREATE TABLE outbox (
  entry TEXT PRIMARY KEY,
  at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX outbox_by_age ON outbox (at);

-- Decisions, votes, withdrawals and extensions: the sealed entries.
CREATE TABLE audit (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  at INTEGER NOT NULL,
  -- Pairs of name and value, as JSON.
  fields TEXT NOT NULL
);
-- Other actions of users and workers, and refused attempts to decide. Each table has its own limit;
-- both are added to files of older versions, see file.rs.
CREATE TABLE notes (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  at INTEGER NOT NULL,
  fields TEXT NOT NULL
);
CREATE TABLE refusals (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  at INTEGER NOT NULL,
  fields TEXT NOT NULL
);
CREATE TABLE seals (
  number INTEGER PRIMARY KEY,
  upto TEXT NOT NULL,
  count INTEGER NOT NULL,
  mac TEXT NOT NULL
);
-- The process that may seal: one at a time.
CREATE TABLE sealer (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  holder TEXT NOT NULL,
  until INTEGER NOT NULL
);

-- Recent events, for the other processes: they read them when the file has changed.
CREATE TABLE rings (
  seq INTEGER PRIMARY KEY,
  session INTEGER NOT NULL,
  what INTEGER NOT NULL,
  name TEXT NOT NULL
);
