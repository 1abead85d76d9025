-- One file: the queues of a machine, and what became of their tasks. Times are in milliseconds
-- since the epoch.

CREATE TABLE queues (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  max_priority INTEGER NOT NULL
);

CREATE TABLE messages (
  seq INTEGER PRIMARY KEY,
  queue INTEGER NOT NULL,
  -- Minus the priority.
  rank INTEGER NOT NULL,
  -- When it arrives; nothing once it has.
  due INTEGER,
  -- The process that has it in its hands.
  holder INTEGER,
  handed_out INTEGER NOT NULL DEFAULT 0,
  head BLOB NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX ready ON messages (queue, rank, seq) WHERE due IS NULL AND holder IS NULL;
CREATE INDEX delayed ON messages (queue, due) WHERE due IS NOT NULL;
CREATE INDEX held ON messages (holder) WHERE holder IS NOT NULL;

-- Processes that consume, until their time is over.
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

-- Attempts that were taken, crashes, idempotency keys, workers that are there.
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

-- What the runs of a task leave: its journal, its stream, and until when they are kept.
CREATE TABLE left_by (
  task TEXT PRIMARY KEY,
  expires INTEGER NOT NULL,
  -- Whose journal it is; added to files of older versions, see file.rs.
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
-- The row of scope 'digest' says whose stream it is (execution), and which number came before it
-- (written).
CREATE TABLE heads (
  task TEXT NOT NULL,
  scope TEXT NOT NULL,
  run INTEGER NOT NULL,
  execution TEXT NOT NULL,
  written INTEGER NOT NULL,
  PRIMARY KEY (task, scope)
) WITHOUT ROWID;

-- Parked tasks; see lifecycle/park.rs. Lists of ids are joined by blanks. What is long comes last.
-- Not WITHOUT ROWID: a row of more than a quarter of a page would take a page of its own.
CREATE TABLE parks (
  task TEXT PRIMARY KEY,
  v INTEGER NOT NULL,
  number INTEGER NOT NULL,
  waits TEXT NOT NULL,
  -- Everything that the task has asked.
  asked TEXT NOT NULL,
  holder TEXT,
  until INTEGER,
  ended INTEGER NOT NULL,
  alarm INTEGER,
  queue TEXT NOT NULL,
  expires INTEGER,
  message TEXT,
  -- Whose record it is; added to files of older versions, see file.rs.
  digest TEXT
);
CREATE INDEX parks_by_end ON parks (expires) WHERE expires IS NOT NULL;

-- Questions, and what was said to each; see lifecycle/vote.rs. A ballot outlives its question.
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
  -- The asker has not withdrawn it.
  open INTEGER NOT NULL,
  task TEXT,
  at INTEGER NOT NULL,
  -- It is listed among the open ones, by this deadline.
  listed INTEGER,
  expires INTEGER,
  document TEXT NOT NULL,
  -- Which request it is; added to files of older versions, see file.rs.
  nonce TEXT
);
CREATE INDEX questions_listed ON questions (listed, id) WHERE listed IS NOT NULL;
CREATE INDEX questions_by_end ON questions (expires) WHERE expires IS NOT NULL;
CREATE TABLE ballots (
  id TEXT PRIMARY KEY,
  digest TEXT NOT NULL,
  -- Pairs of who and by which decision, as JSON.
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
  -- Of the request that it is about; added to files of older versions, see file.rs.
  nonce TEXT
) WITHOUT ROWID;
CREATE INDEX ballots_by_end ON ballots (expires) WHERE expires IS NOT NULL;
-- Resume messages that nobody is known to have sent.
CREATE TABLE outbox (
  entry TEXT PRIMARY KEY,
  at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX outbox_by_age ON outbox (at);

CREATE TABLE audit (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  at INTEGER NOT NULL,
  -- Pairs of name and value, as JSON.
  fields TEXT NOT NULL
);
CREATE TABLE seals (
  number INTEGER PRIMARY KEY,
  upto TEXT NOT NULL,
  count INTEGER NOT NULL,
  mac TEXT NOT NULL
);
-- Who may seal: one at a time.
CREATE TABLE sealer (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  holder TEXT NOT NULL,
  until INTEGER NOT NULL
);

-- What happened lately, for the other processes: they look at it when the file has changed.
CREATE TABLE rings (
  seq INTEGER PRIMARY KEY,
  session INTEGER NOT NULL,
  what INTEGER NOT NULL,
  name TEXT NOT NULL
);
